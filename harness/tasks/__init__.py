"""Tasks of lm-eval: which file defines one, how its requests are scored fast, and what its questions gave."""
