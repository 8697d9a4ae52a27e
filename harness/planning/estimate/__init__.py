"""What a model needs, estimated from its header or configuration; nothing is loaded and no backend is imported."""
