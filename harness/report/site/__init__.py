"""A static site of many sweeps: an index, a page for each sweep, and one for each model."""
