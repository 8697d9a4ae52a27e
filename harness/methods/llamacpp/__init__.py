"""Methods by llama.cpp."""
