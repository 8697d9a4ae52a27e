"""The report of a sweep: one renderer per output format."""
