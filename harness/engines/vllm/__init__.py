"""The vLLM engine: checkpoints on the engine that serves them, in a stack of its own."""
