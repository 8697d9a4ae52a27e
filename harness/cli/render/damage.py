"""The lines about damaged records, for commands that work with the others."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core.foreign import shown
from harness.core.record import Damaged
from harness.report.terminal import say


def say_damaged(damaged: Sequence[Damaged], results: str) -> None:
    """Names each on standard error, and says what to do about them."""
    for each in damaged:
        say(each.remark, error=True)
    if damaged:
        advice = f"'qharness repair {shown(results)}' restores what it can, 'qharness run' makes the rest again"
        say(f"{len(damaged)} damaged: {advice}", error=True)
