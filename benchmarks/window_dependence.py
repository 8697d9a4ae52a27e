"""Correlation between the differences of neighbouring windows: ``python benchmarks/window_dependence.py [RESULTS]``.

For every variant in a results folder whose perplexity can be compared with the baseline's: the correlation of a
window's difference in nat/token with that of the next three windows, its standard error if there were none, the
skewness of the differences, and the width of the interval that allows for dependent neighbours relative to the plain
t-interval. Without a folder: how that width varies over simulated series of differences. Prints Markdown tables, which
docs/measurements/stats-calibration.md records.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from harness.core.record import Measurement, RunRecord
from harness.stats.estimate import Floats
from harness.stats.paired import pair
from harness.stats.significance import clustered_t, cosine_t
from harness.storage.reading import read_records

LAGS = (1, 2, 3)
ROWS = 4000
WINDOWS = (8, 16, 30, 64, 100)
CORRELATIONS = (0.0, 0.5)
BEFORE = 20
"""Windows simulated and dropped before each series, so that its first window depends on earlier ones too."""


def main(results: str | None) -> None:
    if results is None:
        simulated()
    else:
        measured(results)


def simulated() -> None:
    print("| windows | correlation | mean | 5% to 95% of the rows | narrower than the plain one |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for windows in WINDOWS:
        for correlation in CORRELATIONS:
            generator = np.random.default_rng([windows, round(100 * correlation)])
            widths = np.array([width(differences(generator, windows, correlation)) for _ in range(ROWS)])
            low, high = np.quantile(widths, (0.05, 0.95))
            cells = [f"{widths.mean():.2f}", f"{low:.2f} to {high:.2f}", f"{np.mean(widths < 1):.1%}"]
            print(f"| {windows} | {correlation:g} | {' | '.join(cells)} |", flush=True)


def differences(generator: np.random.Generator, windows: int, correlation: float) -> Floats:
    """A series in which each window's difference has the given correlation with the previous one."""
    row = generator.standard_normal(windows + BEFORE)
    for place in range(1, len(row)):
        row[place] = correlation * row[place - 1] + (1 - correlation**2) ** 0.5 * row[place]
    return row[BEFORE:]


def width(row: Floats, sizes: Floats | None = None) -> float:
    """The width of the 95% interval that allows for dependent neighbours, relative to the plain one."""
    sizes = np.ones(len(row)) if sizes is None else sizes
    ends = [bound.ends(0.025) for bound in (cosine_t(row, sizes), clustered_t(row, sizes))]
    allowing, plain = (high - low for low, high in ends)
    return allowing / plain


def measured(results: str) -> None:
    records = [record for record in read_records(Path(results)) if record.status == "ok" and record.find("nll")]
    print("| variant | windows | next window | second | third | standard error | skewness | width |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for record in records:
        if not record.spec.is_baseline:
            print(_row(record, next(other for other in records if other.spec.is_baseline)))


def _row(record: RunRecord, baseline: RunRecord) -> str:
    pairs = pair(_nll(record), _nll(baseline))
    residuals = pairs.sums / pairs.sizes - pairs.effect
    cells = [_correlation(residuals, lag) for lag in LAGS]
    skewness = float(np.mean(residuals**3) / np.mean(residuals**2) ** 1.5)
    cells += [1 / np.sqrt(len(residuals)), skewness, width(pairs.sums, pairs.sizes)]
    return f"| {record.spec.method.label} | {len(residuals)} | {' | '.join(f'{cell:.2f}' for cell in cells)} |"


def _nll(record: RunRecord) -> Measurement:
    found = record.find("nll")
    assert found is not None
    return found


def _correlation(residuals: Floats, lag: int) -> float:
    return float(residuals[lag:] @ residuals[:-lag] / (residuals @ residuals))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
