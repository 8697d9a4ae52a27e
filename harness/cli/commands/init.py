"""``qharness init``: asks what to compare, and writes a commented recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Optional, TypeVar

import typer

from harness.cli.options import (
    AskedEngine,
    AskedMinutes,
    AskedModel,
    AskedPurpose,
    CacheFolder,
    Force,
    MemoryBudget,
    Methods,
    Purpose,
    Pythons,
    RecipeOut,
    ResultsFolder,
    Revision,
    TextName,
    below,
    split_methods,
    workplace,
)
from harness.errors import UsageError
from harness.report.terminal import say

T = TypeVar("T")


def init(
    model: AskedModel = None,
    purpose: AskedPurpose = None,
    engine: AskedEngine = None,
    minutes: AskedMinutes = None,
    methods: Methods = None,
    budget: MemoryBudget = None,
    text: TextName = "demo",
    revision: Revision = None,
    out: RecipeOut = None,
    force: Force = False,
    results: ResultsFolder = "results",
    cache: CacheFolder = None,
    pythons: Pythons = None,
) -> None:
    """Ask what to compare, and write a recipe with comments. Answers given as options are not asked for."""
    from harness.api.propose import TryRequest, propose
    from harness.cli.render.propose import show_proposed
    from harness.plugins import engine_names

    chosen = _answer(model, "Model (a folder, a .gguf file or a hub id)", str)
    if not chosen:
        raise UsageError("name the model: qharness init MODEL")
    aim = Purpose(
        _answer(purpose, f"What for: {', '.join(Purpose)}", _one_of("--for", list(Purpose)), TryRequest.purpose)
    )
    runs_on = _answer(engine, f"Engine: {', '.join(engine_names())}", str, TryRequest.engine)
    time_min = _answer(minutes, "Minutes", _number, TryRequest.minutes)
    request = TryRequest(chosen, split_methods(methods), budget, time_min, aim.value, runs_on, text, revision)
    proposed = propose(request, workplace(results, cache, pythons), out, "init", force, say)
    show_proposed(proposed)
    say(f"next: qharness run {proposed.path}")
    objective = "".join(f" --{option} {name}" for option, name in request.objective.items())
    say(f"then: qharness recommend {below(results, proposed.name)}{objective}")


def _answer(given: Optional[T], question: str, read: Callable[[str], Any], default: Any = "") -> Any:  # noqa: UP045
    """What was given as an option, or else the answer to a question; the default where nobody can be asked.

    Raises KeyboardInterrupt if the user ends the command in place of an answer.
    """
    if given is not None:
        return given
    if not sys.stdin.isatty():
        return default
    try:
        return read(str(typer.prompt(question, default=str(default) or None)).strip())
    except typer.Abort:
        raise KeyboardInterrupt from None


def _one_of(option: str, known: list[str]) -> Callable[[str], str]:
    def read(answer: str) -> str:
        if answer not in known:
            raise UsageError(f"{option}: expected {', '.join(known)}, not {answer!r}")
        return answer

    return read


def _number(answer: str) -> float:
    try:
        return float(answer)
    except ValueError:
        raise UsageError(f"--minutes: expected a number, not {answer!r}") from None
