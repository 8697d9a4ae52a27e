"""Evaluation and calibration texts, and the windows that perplexity protocols cut from them."""
