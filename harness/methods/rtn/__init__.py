"""The harness's own methods: rounding to nearest in plain PyTorch."""
