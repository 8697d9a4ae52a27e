"""lm-eval's tasks: where one is defined, how its requests are scored fast, and what the answers gave."""
