"""Number formats and the arithmetic of stored weights. No files, no models."""
