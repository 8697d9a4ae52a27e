"""Methods by AutoGPTQ."""
