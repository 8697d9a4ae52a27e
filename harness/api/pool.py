"""``harness.pool``: the figures of several results side by side, where they are comparable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.analysis.pooling import Pool
from harness.analysis.pooling import pool as pooled
from harness.api.results import read_folder
from harness.core.collector import uncollected
from harness.errors import UsageError


def pool(sources: Sequence[str | Path]) -> Pool:
    """The figures of results folders, bundles or URLs that two or more of them measured, each with its source.

    Figures stand together only if their comparability keys are equal; others are listed with what differs.
    Raises UsageError for fewer than two sources, and ResultsError for one that cannot be read.
    """
    with uncollected():
        read = [read_folder(source) for source in sources]
        names = [each.name for each in read]
        if len(set(names)) < 2 or len(set(names)) < len(names):
            raise UsageError("figures are laid side by side for two sources or more, each named once")
        return pooled({each.name: each.records for each in read})
