"""Number formats and the arithmetic of weights and predictions, on arrays alone: no files, no models."""
