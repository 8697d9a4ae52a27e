"""llama.cpp by its Python bindings."""
