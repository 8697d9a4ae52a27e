"""llama.cpp through its Python bindings."""
