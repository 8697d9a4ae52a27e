"""The output of ``qharness replay``: what was not run again and why, the comparison, and how many figures agree."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from harness.errors import ExitCode
from harness.report.terminal import print_json, say
from harness.storage.anonymizer import Anonymizer

if TYPE_CHECKING:
    from harness.api.replay import Replay

UNDECIDED = "are undecided: too few values to tell"
AGREEMENT = {
    "unchanged": "agree within noise",
    "improved": "differ",
    "regressed": "differ",
    "inconclusive": UNDECIDED,
    "incomparable": "are incomparable",
}
"""What a verdict of a comparison says about a replay, in which nothing should be better either."""

CONCLUSIONS = {ExitCode.OK: "The replay agrees", ExitCode.GATE_FAILED: "The replay differs"}


def show(found: Replay, as_json: bool) -> None:
    anonymizer = Anonymizer.for_terminals()
    left_out = {title: anonymizer.message(why) for title, why in found.left_out.items()}
    if as_json:
        from harness.report.comparison import render

        compared = None if found.regression is None else json.loads(render(found.regression, "json"))
        print_json({"left_out": left_out, "comparison": compared})
        return
    for title, why in left_out.items():
        say(f"not run again: {title}: {why}")
    if found.regression is None:
        say("nothing of it could be run here")
        return
    from harness.report.comparison.terminal import show as show_comparison

    if found.regression.findings:
        show_comparison(found.regression)
    counts = Counter(AGREEMENT[each.verdict] for each in found.figures)
    counted = "; ".join(f"{count} figures {words}" for words, count in counts.items()) or "no figure was compared"
    conclusion = CONCLUSIONS.get(found.exit_code, "The replay is undecided")
    if found.exit_code == ExitCode.OK and counts[UNDECIDED]:
        conclusion += " as far as it can tell"
    say(f"{conclusion}: {counted}")
