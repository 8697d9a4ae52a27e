"""Methods by the harness itself: rounding to the nearest in plain PyTorch."""
