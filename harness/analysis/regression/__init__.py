"""Whether anything got worse: takes two sets of records, returns a verdict per case and metric; no files."""

from harness.analysis.regression.findings import Change, Finding, Regression, Side, Verdict
from harness.analysis.regression.track import track

__all__ = ["Change", "Finding", "Regression", "Side", "Verdict", "track"]
