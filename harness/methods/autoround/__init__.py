"""Methods by auto-round."""
