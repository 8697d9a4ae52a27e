"""What ``qharness try``, ``init`` and ``pick`` chose for a recipe, and what they left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from harness.api.pick import PickRecipe
from harness.api.propose import Proposed
from harness.cli.render.forecast import expected_words
from harness.planning.draft.propose import LeftOut, Proposal
from harness.report.terminal import Rows, line, show_parts


def show_proposed(proposed: Proposed) -> None:
    """The recipe's file, what it compares, how long that will take, and why other methods are not in it."""
    if proposed.proposal is None:
        show_parts([f"{proposed.path} was written for the same request: going on with it"])
        return
    show_parts(_parts(proposed, proposed.proposal))


def _parts(proposed: Proposed, proposal: Proposal) -> Iterator[Text | Rows | str]:
    draft = proposal.draft
    yield line(draft.source.ref.label, "bold")
    yield f"compares the unquantized model with {', '.join(each.label for each in draft.methods)}"
    yield f"{_amount(proposal)}; expected: {expected_words(proposal.forecast)}"
    yield from _left_out(proposal.left_out)
    yield f"recipe: {proposed.path}"


def show_picked(written: PickRecipe) -> None:
    """The checkpoints that a pick compares, why others are not among them, and its recipe."""
    compares = [f"compares {', '.join(written.checkpoints)}"] if written.checkpoints else []
    show_parts([*compares, *_left_out(written.left_out), f"recipe: {written.path}"])


def _left_out(left_out: Sequence[LeftOut]) -> Iterator[Rows]:
    if left_out:
        table = Rows((("left out", "left"), ("why", "left")))
        for each in left_out:
            table.add(each.label, each.reason)
        yield table


def _amount(proposal: Proposal) -> str:
    """How much is measured: ``16 windows of text, 3 timed processes``."""
    draft, effort = proposal.draft, proposal.draft.effort
    windows = "the whole text" if effort.windows is None else f"{effort.windows} windows of text"
    processes = f"{effort.repetitions} timed process{'es' if effort.repetitions > 1 else ''} per variant"
    return processes if "perplexity" not in draft.data["measure"] else f"{windows}, {processes}"
