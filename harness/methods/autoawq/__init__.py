"""Methods by AutoAWQ."""
