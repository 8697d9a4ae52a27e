"""Methods by Intel Neural Compressor."""
