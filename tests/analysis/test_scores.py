"""Scores of tasks beside the baseline's: paired, with flips, and refused where the questions are not the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.analysis.tradeoff import tradeoff
from harness.core.model import MethodRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.figures.derived.scores import scores
from harness.tasks.evaluate import VERSION

PROTOCOL = {"task": "arc_easy", "fewshot": 0, "filter": "none", "prompts_sha256": "p", "chat_template": None}


def answers(score: str, values: Any, aggregation: str = "mean", **protocol: Any) -> Measurement:
    values = tuple(map(float, values))
    return Measurement(
        "task_score",
        VERSION,
        "score" if aggregation == "mean" else "nat",
        "higher" if aggregation == "mean" else "lower",
        "paired",
        values,
        {**PROTOCOL, "score": score, "aggregation": aggregation, **protocol},
        item_ids=tuple(f"arc_easy:{i}" for i in range(len(values))),
    )


def asked(bench: Any, method: MethodRef, *found: Measurement) -> RunRecord:
    spec: RunSpec = bench.spec("task", method)
    return bench.record(spec, Outcome("ok", measurements=found))  # type: ignore[no-any-return]


def test_flips_and_the_paired_difference(bench: Any, none: MethodRef, rtn: MethodRef) -> None:
    before = [1] * 60 + [0] * 40
    after = [0] * 20 + [1] * 40 + [1] * 5 + [0] * 35
    (mine,), notes = scores([asked(bench, rtn, answers("acc", after))], [asked(bench, none, answers("acc", before))])
    assert notes == ()
    assert mine.estimate.value == pytest.approx(0.45)
    assert mine.change is not None
    assert mine.change.value == pytest.approx(-0.15)
    assert (mine.flips.right_to_wrong, mine.flips.wrong_to_right) == (20, 5)  # type: ignore[union-attr]
    assert mine.comparison is not None
    assert mine.comparison.verdict == "worse"
    assert mine.comparison.test == "McNemar's exact test"


def test_pairing_finds_what_two_apart_would_not(bench: Any, none: MethodRef, rtn: MethodRef) -> None:
    """18 of 1,000 questions are lost and none is won: the two accuracies' own intervals overlap by far."""
    before = np.array([1] * 600 + [0] * 400)
    after = before.copy()
    after[:18] = 0
    (mine,), _ = scores([asked(bench, rtn, answers("acc", after))], [asked(bench, none, answers("acc", before))])
    assert mine.estimate.high > 0.6  # type: ignore[operator]
    assert mine.comparison.p < 1e-4  # type: ignore[union-attr,operator]


def test_other_prompts_are_not_compared(bench: Any, none: MethodRef, rtn: MethodRef) -> None:
    theirs = asked(bench, none, answers("acc", [1, 0] * 20, prompts_sha256="q"))
    (mine,), notes = scores([asked(bench, rtn, answers("acc", [1, 0] * 20))], [theirs])
    assert mine.comparison is None
    assert mine.change is None
    assert notes == (
        "arc_easy 0-shot acc stands alone, task_score: measured by two protocols: prompts_sha256 'p' and 'q'",
    )


def test_a_perplexity_changes_by_a_ratio(bench: Any, none: MethodRef, rtn: MethodRef) -> None:
    nats = np.random.default_rng(0).uniform(1, 5, 50)
    theirs = asked(bench, none, answers("perplexity", nats, "perplexity"))
    (mine,), _ = scores([asked(bench, rtn, answers("perplexity", nats + np.log(1.2), "perplexity"))], [theirs])
    assert mine.estimate.value == pytest.approx(np.exp(nats.mean()) * 1.2)
    assert mine.change.value == pytest.approx(0.2)  # type: ignore[union-attr]
    assert mine.flips is None
    assert mine.comparison.verdict == "worse"  # type: ignore[union-attr]


def test_a_table_judges_headlines_together(bench: Any, none: MethodRef, rtn: MethodRef) -> None:
    """Two scores of one task: acc_norm stands for it. Perplexity and it are judged together, and their p adjusted."""
    before, after = [1, 1, 0, 1] * 30, [1, 1, 0, 0] * 30
    records = [
        bench.quality(none),
        bench.quality(rtn, 4.5, 0.3),
        asked(bench, none, answers("acc", before), answers("acc_norm", before)),
        asked(bench, rtn, answers("acc", after), answers("acc_norm", after)),
    ]
    (table,) = tradeoff(records)
    assert [key.score for key in table.tasks] == ["acc", "acc_norm"]
    row = next(row for row in table.rows if not row.is_baseline)
    found = {score.key.score: score for score in row.tasks}
    assert found["acc_norm"].headline
    assert not found["acc"].headline
    judged = found["acc_norm"].comparison
    assert judged is not None
    assert judged.tests == 2
    assert judged.adjusted_p == pytest.approx(2 * judged.p)
    assert row.perplexity_comparison is not None
    assert row.perplexity_comparison.tests == 2
    assert next(row for row in table.rows if row.is_baseline).tasks[0].comparison is None
