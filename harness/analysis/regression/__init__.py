"""Whether anything got worse: two sets of records in, a verdict per case and metric out; no files."""

from harness.analysis.regression.findings import Change, Finding, Regression, Side, Verdict
from harness.analysis.regression.track import track

__all__ = ["Change", "Finding", "Regression", "Side", "Verdict", "track"]
