"""The main engine: transformers' own models."""
