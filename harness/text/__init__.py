"""Evaluation texts and the windows that are cut from them."""
