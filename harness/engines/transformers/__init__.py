"""The main engine: the models of the transformers library."""
