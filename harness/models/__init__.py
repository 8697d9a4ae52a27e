"""Where weights come from, what they consist of and what they cost: sources, headers, shapes, scope, GGUF."""
