"""The output of ``qharness verify`` and ``repair``: one line for everything that is not ok, or that was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from harness.report.terminal import print_json, say

if TYPE_CHECKING:
    from harness.api.repair import Action, RepairStep
    from harness.api.verify import Checked, State


def show(found: Iterable[Checked], as_json: bool) -> Counter[State]:
    """Prints each as it is checked; returns how many are in each state."""
    states: Counter[State] = Counter()
    for each in found:
        states[each.state] += 1
        if as_json:
            print_json({"path": str(each.path), "state": each.state, "reason": each.reason})
        elif each.state != "ok":
            say(f"{each.state}: {each.path}: {each.reason}")
    if not as_json:
        rest = [f"{count} {state}" for state, count in states.items() if state != "ok"]
        say(", ".join([f"{states['ok']} ok", *rest]))
    return states


def show_steps(steps: Iterable[RepairStep], as_json: bool) -> Counter[Action]:
    """Prints each step when it is done; returns how many there were of each action."""
    actions: Counter[Action] = Counter()
    for each in steps:
        actions[each.action] += 1
        if as_json:
            print_json({"path": str(each.path), "action": each.action, "detail": each.detail})
        else:
            say(f"{each.action}: {each.path}: {each.detail}")
    if not as_json:
        say(", ".join(f"{count} {action}" for action, count in actions.items()) or "nothing to repair")
    return actions
