"""Baselines that work and baselines that cannot, judged from records with known figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness.analysis.regression.track import track
from harness.analysis.tradeoff import tradeoff
from harness.api.recommend import recommend
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.figures.derived.plausibility import Implausibility, implausible

Bench = Any

MODEL = ModelRef("m", "m", "0", "directory", "/m")
PLAUSIBLE = {"vocabulary_size": 32000.0, "tokens_per_character": 0.25, "latin_letter_share": 1.0}


def judged(
    bench: Bench,
    none: MethodRef,
    perplexity: float = 12.0,
    evidence: Mapping[str, float] = PLAUSIBLE,
    gains: Sequence[float] = (),
) -> tuple[Implausibility, ...]:
    """``gains`` in nats: by how much BOS helps each of some tokens."""
    found = [bench.nll([math.log(perplexity) - 0.1, math.log(perplexity) + 0.1])]
    found += [Measurement(name, 1, "", "neither", "exact", (value,)) for name, value in evidence.items()]
    if gains:
        found.append(Measurement("bos_gain", 1, "nat/token", "neither", "paired", tuple(gains)))
    return implausible(MODEL, bench.record(bench.spec("quality", none), Outcome("ok", measurements=tuple(found))))


def codes(found: Sequence[Implausibility]) -> list[str]:
    return [each.code for each in found]


@pytest.mark.parametrize(
    ("perplexity", "vocabulary", "expected"),
    [
        (12.0, 32000, []),
        (299.0, 32000, []),
        (301.0, 32000, ["perplexity"]),
        (7590.0, 262144, ["perplexity"]),
        (40000.0, 32000, ["guessing"]),
        (115.0, 512, []),  # tests/data/tiny-llama on WikiText, of which it has seen nothing
        (257.0, 512, ["guessing"]),
        (255.0, 512, []),
    ],
)
def test_perplexity_beside_the_vocabulary(
    bench: Bench, none: MethodRef, perplexity: float, vocabulary: int, expected: list[str]
) -> None:
    assert codes(judged(bench, none, perplexity, {**PLAUSIBLE, "vocabulary_size": vocabulary})) == expected


@pytest.mark.parametrize(
    ("tokens", "latin", "expected"),
    [
        (0.25, 1.0, []),
        (1.0, 1.0, []),  # a token for each byte
        (1.2, 1.0, []),
        (1.21, 1.0, ["tokens_per_character"]),
        (1.21, 0.91, ["tokens_per_character"]),
        (3.0, 0.0, []),  # bytes of Thai
        (3.0, 0.5, []),
    ],
)
def test_tokens_per_character_of_latin_text(
    bench: Bench, none: MethodRef, tokens: float, latin: float, expected: list[str]
) -> None:
    evidence = {**PLAUSIBLE, "tokens_per_character": tokens, "latin_letter_share": latin}
    assert codes(judged(bench, none, evidence=evidence)) == expected


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1.7 + 0.5 * (-1) ** token for token in range(240)], ["bos"]),
        ([0.12 + 0.05 * (-1) ** token for token in range(240)], ["bos"]),
        ([0.09 + 0.05 * (-1) ** token for token in range(240)], []),  # clear, and too little to matter
        ([0.12 + 3 * (-1) ** token for token in range(240)], []),  # within its error
        ([-1.0 + 0.5 * (-1) ** token for token in range(240)], []),
    ],
)
def test_a_text_without_the_bos_that_the_model_needs(
    bench: Bench, none: MethodRef, gains: list[float], expected: list[str]
) -> None:
    assert codes(judged(bench, none, gains=gains)) == expected


def test_every_reason_is_told_with_its_figure(bench: Bench, none: MethodRef) -> None:
    evidence = {"vocabulary_size": 262144.0, "tokens_per_character": 1.5, "latin_letter_share": 1.0}
    found = judged(bench, none, 7590.0, evidence, [1.7 + 0.01 * (-1) ** token for token in range(240)])
    assert [each.label.sentence.split(":")[:2] for each in found] == [
        ["implausible baseline", " its perplexity is 7590 per token, above 300"],
        ["implausible baseline", " its tokenizer produces 1.5 tokens per character of Latin text, above 1.2"],
        ["implausible baseline", " BOS in front of a window lowers its loss by 1.7 nat per token, above 0.1"],
    ]


def test_random_weights_say_so(bench: Bench, none: MethodRef) -> None:
    model = replace(bench.model, kind="synthetic")
    synthetic = replace(bench, model=model)
    (table,) = tradeoff([synthetic.performance(none, 1.0, repetition) for repetition in range(3)])
    assert codes(table.implausible) == ["random_weights"]
    assert table.labels[-1].sentence == (
        "implausible baseline: its weights are random: only size, speed and memory mean anything"
    )


def gibberish(record: RunRecord) -> RunRecord:
    """The same record, its text 6 nats per token harder: perplexities are multiplied by 403."""
    measured = tuple(
        replace(each, values=tuple(value + 6 for value in each.values)) if each.metric == "nll" else each
        for each in record.outcome.measurements
    )
    return replace(record, outcome=replace(record.outcome, measurements=measured))


def test_records_of_older_versions_are_judged_by_their_perplexity(bench: Bench) -> None:
    (table,) = tradeoff(bench.sweep())
    assert table.implausible == ()
    (broken,) = tradeoff([gibberish(record) for record in bench.sweep()])
    assert codes(broken.implausible) == ["perplexity"]
    assert broken.implausible[0].label in broken.labels
    changes = [[row.perplexity_change.value for row in each.rows if row.perplexity_change] for each in (broken, table)]
    assert changes[0] == pytest.approx(changes[1])  # as small as ever: nothing else would show it


def test_only_the_baseline_is_judged(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    (table,) = tradeoff([bench.quality(none), gibberish(bench.quality(rtn))])
    assert table.implausible == ()


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"max_perplexity_increase": "20%"},
        {"max_kl": 0.5, "maximize": "decode"},
        {"max_size": "8GB", "minimize": "kl"},
        {"max_accuracy_drop": "1%"},
    ],
)
def test_nobody_is_recommended_for_quality_beside_an_implausible_baseline(bench: Bench, wish: dict[str, Any]) -> None:
    (found,) = recommend([gibberish(record) for record in bench.sweep()], **wish)
    (sound,) = recommend(bench.sweep(), **wish)
    assert codes(found.untrusted) == ["perplexity"]
    assert found.pick is None
    assert found.certain_pick is None
    assert not found.holds
    assert found.unknown
    assert (found.nearest, found.binding) == (None, ())
    assert [each.row.label for each in found.admissible] == [each.row.label for each in sound.admissible]
    assert not sound.untrusted


def test_what_does_not_rest_on_quality_is_answered(bench: Bench) -> None:
    (found,) = recommend([gibberish(record) for record in bench.sweep()], max_size="8GB", maximize="decode")
    assert found.pick is not None
    assert not found.untrusted
    assert found.table.implausible


def test_a_comparison_names_both_sides_baselines(bench: Bench, rtn: MethodRef, none: MethodRef) -> None:
    base = [bench.quality(none), bench.quality(rtn)]
    later = replace(bench, session="s2", day=2)
    head = [gibberish(later.quality(none)), later.quality(rtn)]
    found = track(base, head)
    assert found.base.implausible == {}
    ((title, reasons),) = found.head.implausible.items()
    assert title.startswith("SmolLM2-135M × unquantized × transformers: quality")
    assert codes(reasons) == ["perplexity"]
