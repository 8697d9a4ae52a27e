"""Models: sources, file headers, shapes, quantization scope, estimated memory, GGUF."""
