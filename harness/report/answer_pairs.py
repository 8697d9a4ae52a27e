"""Answers side by side: where the baseline was right and a variant was not, the most telling ones first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.core.record import RunRecord
from harness.figures.derived.answers import key_of
from harness.figures.formats import significant
from harness.figures.table import AnswersKey, Table, VariantRow
from harness.stats.shares import question_of
from harness.tasks.answers import PROMPT, TARGET, TEXT
from harness.tasks.aspects import FORMAT, LOOPS, LOST, TOKENS, TRUNCATED, UNFINISHED, Aspect

MOST_PAIRS = 3
"""Of each variant."""
MOST_VARIANTS = 8
"""Those that lost most."""
TELLING: tuple[Aspect, ...] = (LOOPS, TRUNCATED, LOST, UNFINISHED, FORMAT)
"""What a variant's answer shows that the baseline's does not, the most telling first."""


@dataclass(frozen=True)
class ShownAnswer:
    """One answer: how it ended in words, and its text."""

    facts: str
    text: str


@dataclass(frozen=True)
class AnswerPair:
    """The answers of baseline and variant to one question; ``reason`` is what went wrong in the variant's."""

    task: str
    item: str
    prompt: str
    target: str
    reason: str
    baseline: ShownAnswer
    variant: ShownAnswer


@dataclass(frozen=True)
class VariantPairs:
    """The pairs of one variant."""

    variant: str
    pairs: tuple[AnswerPair, ...]


def answer_pairs(table: Table) -> tuple[VariantPairs, ...]:
    """The most telling pairs of the variants that lost most; none if no task's answers were kept."""
    rows = [row for row in table.rows if row.answers and not row.is_baseline and row.evidence]
    worst = sorted(rows, key=_largest_loss, reverse=True)[:MOST_VARIANTS]
    found = [VariantPairs(row.label, _pairs(row)) for row in rows if any(row is each for each in worst)]
    return tuple(each for each in found if each.pairs)


def _largest_loss(row: VariantRow) -> float:
    return max((-score.change.value for score in row.tasks if score.headline and score.change), default=0.0)


@dataclass(frozen=True)
class _Answers:
    """The answers of one run: texts, scores and aspects by the answer's id, and prompts and targets by question."""

    texts: Mapping[str, str]
    scores: Mapping[str, float]
    aspects: Mapping[str, Mapping[str, float]]
    prompts: Mapping[str, str]
    targets: Mapping[str, str]

    def has(self, aspect: Aspect, item: str) -> bool:
        return bool(self.aspects.get(aspect.name, {}).get(item))

    def side(self, item: str) -> ShownAnswer:
        score = self.scores[item]
        words = ["right" if score == 1 else "wrong" if score == 0 else f"score {significant(score)}"]
        tokens = self.aspects.get(TOKENS.name, {}).get(item)
        words += [] if tokens is None else [f"{tokens:.0f} tokens"]
        words += [aspect.heading for aspect in TELLING if self.has(aspect, item)]
        return ShownAnswer(" · ".join(words), self.texts[item])


def _pairs(row: VariantRow) -> tuple[AnswerPair, ...]:
    assert row.evidence is not None
    theirs = dict(_by_key(row.evidence.baseline_tasks))
    found = [
        (rank, number, pair)
        for key, mine in _by_key(row.evidence.tasks)
        if key in theirs
        for number, (rank, pair) in enumerate(_candidates(key, mine, theirs[key]))
    ]
    chosen: list[tuple[int, int, AnswerPair]] = []
    for again in (False, True):  # first one of each reason, then others of the most telling
        for each in sorted(found, key=lambda each: each[:2]):
            new = each not in chosen and (again or each[0] not in {rank for rank, _, _ in chosen})
            if new and len(chosen) < MOST_PAIRS:
                chosen.append(each)
    return tuple(pair for _, _, pair in sorted(chosen, key=lambda each: each[:2]))


def _candidates(key: AnswersKey, mine: _Answers, theirs: _Answers) -> Iterator[tuple[int, AnswerPair]]:
    """Answers that are worse than the baseline's, each with the rank of what went wrong in it."""
    for item, score in mine.scores.items():
        if item not in theirs.scores or score >= theirs.scores[item]:
            continue
        shown = [place for place, each in enumerate(TELLING) if mine.has(each, item) and not theirs.has(each, item)]
        rank = min(shown, default=len(TELLING))
        reason = TELLING[rank].heading if shown else "another answer"
        question = question_of(item)
        prompt, target = mine.prompts.get(question, ""), mine.targets.get(question, "")
        yield rank, AnswerPair(key.label, item, prompt, target, reason, theirs.side(item), mine.side(item))


def _by_key(runs: tuple[RunRecord, ...]) -> Iterator[tuple[AnswersKey, _Answers]]:
    for run in runs:
        texts = next(iter(run.outcome.measured(TEXT)), None)
        if run.status != "ok" or texts is None:
            continue
        items = tuple(texts.cluster_ids)
        aspects = {
            each.name: dict(zip(items, found[0].values, strict=True))
            for each in (TOKENS, *TELLING)
            if (found := run.outcome.measured(each.name))
        }
        written = dict(zip(items, texts.item_ids, strict=True))
        scores = dict(zip(items, texts.values, strict=True))
        yield key_of(texts), _Answers(written, scores, aspects, _texts(run, PROMPT), _texts(run, TARGET))


def _texts(run: RunRecord, metric: str) -> dict[str, str]:
    found = next(iter(run.outcome.measured(metric)), None)
    return dict(zip(found.cluster_ids, found.item_ids, strict=True)) if found else {}
