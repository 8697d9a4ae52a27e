"""How much neighbouring windows' differences depend on one another: ``python benchmarks/window_dependence.py RESULTS``.

Of every variant in a results folder whose perplexity stands beside the baseline's: the correlation of a window's
difference of nat/token with that of the next window, the one after it and the third, its standard error were there
none, and the skewness of the differences. Prints a table in Markdown, which docs/measurements/stats-calibration.md
records.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from harness.analysis.paired import pair
from harness.analysis.stats import Floats
from harness.record import Measurement, RunRecord
from harness.store import read_records

LAGS = (1, 2, 3)


def main(results: str) -> None:
    measured = [record for record in read_records(Path(results)) if record.status == "ok" and record.find("nll")]
    print("| variant | windows | next window | second | third | standard error | skewness |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for record in measured:
        if not record.spec.is_baseline:
            print(_row(record, next(other for other in measured if other.spec.is_baseline)))


def _row(record: RunRecord, baseline: RunRecord) -> str:
    pairs = pair(_nll(record), _nll(baseline))
    residuals = pairs.sums / pairs.sizes - pairs.effect
    cells = [_correlation(residuals, lag) for lag in LAGS]
    skewness = float(np.mean(residuals**3) / np.mean(residuals**2) ** 1.5)
    cells += [1 / np.sqrt(len(residuals)), skewness]
    return f"| {record.spec.method.label} | {len(residuals)} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


def _nll(record: RunRecord) -> Measurement:
    found = record.find("nll")
    assert found is not None
    return found


def _correlation(residuals: Floats, lag: int) -> float:
    return float(residuals[lag:] @ residuals[:-lag] / (residuals @ residuals))


if __name__ == "__main__":
    main(sys.argv[1])
