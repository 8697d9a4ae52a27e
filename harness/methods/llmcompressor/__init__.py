"""Methods by LLM Compressor."""
