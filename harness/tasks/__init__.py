"""lm-eval's tasks: finds their definitions, scores their requests fast and aggregates the answers."""
