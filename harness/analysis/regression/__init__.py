"""Whether anything got worse: ``track`` takes two sets of records, returns a verdict per case and metric; no files."""
