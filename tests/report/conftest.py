"""The made-up sweep of tests/analysis, and pages of it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from modules_by_path import module_at
from run_specs import changed

from harness.core.job import VariantJob
from harness.core.label import Fact, Label
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.tasks.evaluate import VERSION


def _bench() -> Any:
    """The builder of tests/analysis/conftest.py; under importlib mode no conftest can be imported by name."""
    return module_at(Path(__file__).parents[1] / "analysis" / "conftest.py", "tests_analysis_records")


GOLDEN = Path(__file__).parent / "golden"
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
SAME_NUMBER = 1e-6
"""Processors sum in different orders: at full precision the last digits of a figure are not the same everywhere."""


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Holds a text against the file of that name: letter by letter, and its numbers to 6 digits.

    Regenerate with QHARNESS_UPDATE_GOLDEN=1 and read the difference.
    """

    def hold(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("QHARNESS_UPDATE_GOLDEN") == "1":
            path.write_text(text, encoding="utf-8", newline="")
        expected = path.read_bytes().decode()
        if not _alike(text, expected):
            assert text == expected

    return hold


def _alike(text: str, expected: str) -> bool:
    """Whether two texts are the same but for the last digits of their numbers."""
    ours, theirs = NUMBER.findall(text), NUMBER.findall(expected)
    return (
        NUMBER.sub("0", text) == NUMBER.sub("0", expected)
        and len(ours) == len(theirs)
        and all(
            one == other or math.isclose(float(one), float(other), rel_tol=SAME_NUMBER)
            for one, other in zip(ours, theirs, strict=True)
        )
    )


@pytest.fixture
def bench() -> Any:
    return _bench().Bench()


@pytest.fixture(scope="session")
def made_up() -> SimpleNamespace:
    """What ``bench``, ``none`` and ``looks`` are made of, for fixtures of a wider scope."""
    return SimpleNamespace(bench=_bench().Bench, none=_bench().NONE, looks=_bench().LOOKS)


@pytest.fixture(scope="session")
def whole_sweep(made_up: SimpleNamespace) -> tuple[RunRecord, ...]:
    return tuple(made_up.bench().sweep())


@pytest.fixture
def records(bench: Any, whole_sweep: tuple[RunRecord, ...]) -> list[RunRecord]:
    """A whole sweep; what the bench makes next is later."""
    bench.seconds[0] = len(whole_sweep)
    return list(whole_sweep)


@pytest.fixture
def looks() -> Any:
    return _bench().LOOKS


@pytest.fixture
def none() -> Any:
    return _bench().NONE


@pytest.fixture
def hostile() -> Callable[[Sequence[RunRecord], str], list[RunRecord]]:
    return _hostile


def _hostile(records: Sequence[RunRecord], word: str) -> list[RunRecord]:
    """Every text that a record holds, replaced."""

    def spoil(record: RunRecord) -> RunRecord:
        spec, outcome = record.spec, record.outcome
        failure = Failure(word, word, word, word) if outcome.failure else None
        spec = changed(spec, recipe=word, hardware=word)
        if spec.job.models:
            spec = changed(spec, model=replace(spec.model, label=word, id=word, native_quantization=word))
        if isinstance(spec.job, VariantJob):
            method = replace(spec.method, label=f"{word} {spec.method.label}", name=word)
            baseline = replace(spec.baseline, name=word, label=word)
            spec = changed(spec, method=method, baseline=baseline, engine=word)
        labels, facts = (Label("other", {"text": word}),), (Fact("noted", {"name": word, "value": word}),)
        return replace(
            record,
            spec=spec,
            outcome=replace(outcome, failure=failure, labels=labels, facts=facts),
            session=word,
        )

    return [spoil(record) for record in records]


@pytest.fixture
def answered(bench: Any, none: Any, looks: Any) -> list[RunRecord]:
    """Runs of a task by the baseline, which has 60 of 100 questions right, and by three variants, which lose some."""

    def asked(method: Any, right: int) -> RunRecord:
        spec = bench.spec("task", method)
        protocol = {"task": "arc_easy", "fewshot": 0, "filter": "none", "prompts_sha256": "p", "chat_template": None}
        values = (1.0,) * right + (0.0,) * (100 - right)
        scored = Measurement(
            "task_score",
            VERSION,
            "score",
            "higher",
            "paired",
            values,
            {**protocol, "score": "acc", "aggregation": "mean"},
            item_ids=tuple(f"arc_easy:{number}" for number in range(100)),
        )
        record: RunRecord = bench.record(spec, Outcome("ok", measurements=(scored,)))
        return record

    return [asked(none, 60), *(asked(look.method, 57 - 3 * number) for number, look in enumerate(looks[:3]))]
