"""Methods by torchao."""
