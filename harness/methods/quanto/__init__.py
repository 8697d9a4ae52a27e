"""Methods by Quanto."""
