"""The output of ``qharness verify``, ``repair`` and ``merge``: one line for what is not ok, or that was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.report.terminal import print_json, say
from harness.storage.anonymizer import Anonymizer

if TYPE_CHECKING:
    from harness.api.checked import Checked, State
    from harness.api.results_step import ResultsStep


def show(found: Iterable[Checked], as_json: bool) -> Counter[State]:
    """Prints each as it is checked; returns how many are in each state."""
    states: Counter[State] = Counter()
    anonymizer = Anonymizer.for_terminals()
    for each in found:
        states[each.state] += 1
        path, reason = anonymizer.path(str(each.path)), anonymizer.message(each.reason)
        if as_json:
            print_json({"path": path, "state": each.state, "reason": reason})
        elif each.state != "ok":
            say(f"{each.state}: {path}: {reason}")
    if not as_json:
        rest = [f"{count} {state}" for state, count in states.items() if state != "ok"]
        say(", ".join([f"{states['ok']} ok", *rest]))
    return states


def show_steps(steps: Iterable[ResultsStep[str]], as_json: bool) -> Counter[str]:
    """Prints each step when it is done; returns how many there were of each action.

    An attempt that was copied, or needed no copy, is only counted: there may be thousands.
    """
    actions: Counter[str] = Counter()
    anonymizer = Anonymizer.for_terminals()
    for each in steps:
        actions[each.action] += 1
        path, detail = anonymizer.path(each.path), anonymizer.message(each.detail)
        if as_json:
            print_json({"path": path, "action": each.action, "detail": detail})
        elif each.action not in ("copied", "already there"):
            say(f"{each.action}: {path}: {detail}")
    if not as_json:
        say(", ".join(f"{count} {action}" for action, count in actions.items()) or "nothing to repair")
    return actions
