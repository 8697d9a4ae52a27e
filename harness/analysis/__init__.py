"""Results computed from records: the trade-off table, verdicts, regressions, history, recommendations; no files."""
