"""Methods by vLLM."""
