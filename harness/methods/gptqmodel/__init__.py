"""Methods by GPTQModel."""
