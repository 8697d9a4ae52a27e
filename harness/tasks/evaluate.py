"""Runs an lm-eval task on a model and returns each question's score as measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from harness.core.identity import Scalar, digest
from harness.core.record import Measurement
from harness.core.workload import TaskWorkload
from harness.errors import InvalidRunError, RunError, UnsupportedError
from harness.storage.evidence import find_excess
from harness.tasks.aggregation import FIGURES, headline, kept, mean
from harness.tasks.answers import (
    MOST_SCORED,
    Completion,
    Question,
    Scored,
    WrittenAnswer,
    aspects,
    evidence,
    majority,
    spaced,
    values_per_question,
)
from harness.tasks.definitions import load

if TYPE_CHECKING:
    from lm_eval.api.group import Group


VERSION = 1
SAME = 1e-6
"""Relative difference below which our figure and lm-eval's count as equal."""


@dataclass(frozen=True)
class Answers:
    """lm-eval's result for one task with one score and one filter.

    ``values`` is empty if there is only the aggregate ``figure``.
    """

    task: str
    score: str
    filter: str
    direction: Literal["lower", "higher"]
    aggregation: str
    figure: float
    values: tuple[float, ...]
    weights: tuple[float, ...]
    items: tuple[str, ...]
    clusters: tuple[str, ...]

    def check(self) -> Answers:
        """Returns itself. Raises InvalidRunError if the questions' values do not give lm-eval's own figure."""
        if self.values:
            ours = FIGURES[self.aggregation](mean(self.values, self.weights))
            if abs(ours - self.figure) > SAME * max(1.0, abs(self.figure)):
                raise InvalidRunError(f"{self.task}: {self.score} is {ours} by its questions, {self.figure} by lm-eval")
        return self


@dataclass(frozen=True)
class Evaluation:
    """The result of a task: lm-eval's requests in order, the scores, and what is known of the answers written."""

    requests: tuple[Any, ...]
    scores: tuple[Measurement, ...]
    answers: tuple[Measurement, ...] = ()


def evaluate(lm: Any, workload: TaskWorkload) -> Evaluation:
    """Asks ``lm`` (an ``lm_eval.api.model.LM``) every question with lm-eval's evaluator, prompts, filters and metrics.

    Gives one measurement ``task_score`` per score and filter. It has a value per question if lm-eval's figure is a
    function of their mean, else only that figure. A group's questions are pooled, with the weights that lm-eval gives
    its tasks. If questions are answered several times, each value is that of one answer, and the answers of a question
    are one cluster. Raises UnsupportedError if the questions cannot be loaded, and if answers were to be sampled and
    the task has none; RunError, before anything is asked, for more answers than a record may have.
    """
    loaded = load(workload)
    _refuse_too_many(workload, loaded["tasks"].values())
    rounds = [_ask(lm, workload, loaded, sample) for sample in range(workload.samples)]
    asked = rounds[0].asked
    protocol = _protocol(workload.name, lm, workload, asked)
    written = _written(workload, loaded["tasks"], rounds)
    return Evaluation(
        tuple(request for task in loaded["tasks"].values() for request in task.instances),
        tuple(
            _measurement(found, {**protocol, **_task_protocol(found.task, asked)})
            for found in _merged([each.scores for each in rounds])
        ),
        (*_majority(written, protocol), *_evidence(written, {**protocol, **_task_protocol(workload.name, asked)})),
    )


def _refuse_too_many(workload: TaskWorkload, tasks: Iterable[Any]) -> None:
    if workload.samples == 1:
        return
    counts = [len(task.eval_docs) for task in tasks]
    questions = sum(min(count, workload.limit or count) for count in counts)
    excess = find_excess(questions * values_per_question(workload.samples))
    if excess is not None:
        raise RunError(
            f"{excess}: {questions:,} questions of {workload.name} are answered {workload.samples:,} times each; lower "
            "'samples' or 'limit'"
        )


@dataclass(frozen=True)
class _Round:
    """One answer to every question: lm-eval's results, its figures, and what was written, by task and question."""

    asked: Mapping[str, Any]
    scores: tuple[Answers, ...]
    generations: Mapping[tuple[str, int], Completion]


def _ask(lm: Any, workload: TaskWorkload, loaded: Mapping[str, Any], sample: int) -> _Round:
    from lm_eval.evaluator import evaluate as ask

    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=workload.seed)  # the same examples in every round
    asked = ask(
        lm,
        loaded,
        limit=workload.limit,
        bootstrap_iters=0,
        system_instruction=workload.system,
        apply_chat_template=workload.chat_template,
        fewshot_as_multiturn=workload.chat_template,
    )
    for task in loaded["tasks"].values() if workload.writing else ():
        if any(request.request_type != "generate_until" or request.repeats != 1 for request in task.instances):
            raise UnsupportedError(
                f"{task.task_name}: {', '.join(workload.writing)} is for tasks in which the model writes one answer to "
                "each question; leave it out"
            )
    scores = [
        found.check()
        for name, task in loaded["tasks"].items()
        for found in _answers(name, task, asked, workload.cluster)
    ]
    group = loaded.get("groups", {}).get(workload.name)
    if group is not None and group.has_aggregation:
        scores = [found.check() for found in _pooled(group, scores, asked["results"][workload.name])]
    if workload.samples > 1:
        scores = [_of_sample(found, sample) for found in scores]
    return _Round(asked, tuple(scores), getattr(lm, "generations", {}))


def _of_sample(found: Answers, sample: int) -> Answers:
    """The answers with ids of their own; those of a question are a cluster, if they are in no larger one."""
    return replace(
        found,
        items=tuple(_item(item, sample) for item in found.items),
        clusters=found.clusters or found.items,
    )


def _item(question: str, sample: int) -> str:
    return f"{question}#{sample}"


def _merged(rounds: Sequence[Sequence[Answers]]) -> Iterator[Answers]:
    """Each score with the answers of all rounds, sample after sample; figures without values are averaged."""
    for same in zip(*rounds, strict=True):
        yield replace(
            same[0],
            figure=sum(found.figure for found in same) / len(same),
            values=tuple(value for found in same for value in found.values),
            weights=tuple(weight for found in same for weight in found.weights),
            items=tuple(item for found in same for item in found.items),
            clusters=tuple(each for found in same for each in found.clusters),
        )


@dataclass(frozen=True)
class _Written:
    """An answer that was written: which, by whom it was asked, what was scored, and lm-eval's results by filter."""

    task: Any
    question: str
    sample: int
    cluster: str
    generation: Completion
    scored: Scored
    results: Mapping[str, Any]


def _written(workload: TaskWorkload, tasks: Mapping[str, Any], rounds: Sequence[_Round]) -> list[_Written]:
    """The answers of every round, if there is one to each question, with a score that is a number."""
    found = []
    for sample, each in enumerate(rounds):
        for name, task in tasks.items():
            by_question: dict[int, dict[str, Any]] = {}
            for result in each.asked["samples"][name]:
                by_question.setdefault(result["doc_id"], {})[result["filter"]] = result
            for number, results in by_question.items():
                generation, scored = each.generations.get((name, number)), _scored(task, results)
                if generation is None or scored is None:
                    return []
                first = next(iter(results.values()))
                question = f"{name}:{number}"
                cluster = _cluster(first["doc"], name, workload.cluster) if workload.cluster else question
                found.append(_Written(task, question, sample, cluster, generation, scored, first))
    return found


def _scored(task: Any, results: Mapping[str, Any]) -> Scored | None:
    """The task's headline score by each filter, and what each extracts; None if the score is no number."""
    name = headline(list(task.aggregation()))
    scores = {chosen: result.get(name) for chosen, result in results.items()}
    if not scores or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores.values()):
        return None
    extracted = {chosen: _text(result["filtered_resps"]) for chosen, result in results.items()}
    return Scored({chosen: float(score) for chosen, score in scores.items() if score is not None}, extracted)


def _text(filtered: Sequence[Any]) -> str | None:
    return filtered[0] if len(filtered) == 1 and isinstance(filtered[0], str) else None


def _scorer(task: Any, doc: Mapping[str, Any]) -> Callable[[Sequence[str]], Iterator[Scored]]:
    """Scores beginnings of an answer to a question, by the task's own filters and metrics.

    Each finding of the filters is scored once, and at most MOST_SCORED of them.
    """
    from lm_eval.api.instance import Instance

    def score(texts: Sequence[str]) -> Iterator[Scored]:
        instances = [Instance("generate_until", dict(doc), ("", {}), 0, resps=[text]) for text in texts]
        for each in getattr(task, "_filters", ()) if instances else ():
            each.apply(instances)
        findings = {repr(instance.filtered_resps): instance.filtered_resps for instance in instances}
        for found in spaced(list(findings.values()), MOST_SCORED):
            results = {
                name: {**task.process_results(doc, [filtered]), "filtered_resps": [filtered]}
                for name, filtered in found.items()
            }
            if (scored := _scored(task, results)) is not None:
                yield scored

    return score


def _majority(written: Sequence[_Written], protocol: Mapping[str, Scalar]) -> Iterator[Measurement]:
    """The score of the majority's answer to each question, if each was answered several times.

    Nothing if what the first filter extracts is no text: it cannot be counted.
    """
    votes: dict[str, list[tuple[str, float]]] = {}
    for each in written:
        extracted = next(iter(each.scored.extracted.values()))
        if extracted is None:
            return
        votes.setdefault(each.question, []).append((extracted, each.scored.first))
    if not votes or max(map(len, votes.values())) < 2:
        return
    clusters = {each.question: each.cluster for each in written}
    nested = any(cluster != question for question, cluster in clusters.items())
    yield Measurement(
        "task_majority",
        VERSION,
        "score",
        "higher",
        "paired",
        tuple(map(majority, votes.values())),
        protocol,
        (),
        tuple(votes),
        tuple(clusters.values()) if nested else (),
    )


def _evidence(written: Sequence[_Written], protocol: Mapping[str, Scalar]) -> Iterator[Measurement]:
    if not written:
        return
    several = any(each.sample for each in written)
    answers = [
        WrittenAnswer(
            _item(each.question, each.sample) if several else each.question,
            each.question,
            each.cluster,
            each.generation.whole,
            each.scored.first,
            aspects(each.generation, each.scored, _scorer(each.task, each.results["doc"])),
        )
        for each in written
    ]
    questions = [
        Question(each.question, str(each.results["arguments"][0][0]), str(each.results["target"]))
        for each in written
        if not each.sample
    ]
    yield from evidence(answers, questions, protocol)


def _answers(name: str, task: Any, asked: Mapping[str, Any], cluster: str | None) -> Iterator[Answers]:
    """The results of one task, one per score and filter."""
    samples = asked["samples"][name]
    rising = task.higher_is_better()
    for score, aggregate in task.aggregation().items():
        for chosen in dict.fromkeys(sample["filter"] for sample in samples):
            figure = asked["results"][name].get(f"{score},{chosen}")
            mine = [sample for sample in samples if sample["filter"] == chosen and score in sample]
            if not isinstance(figure, int | float) or not mine:
                continue
            how = getattr(aggregate, "__name__", "own")
            values, weights = kept([sample[score] for sample in mine], how) or ((), ())
            yield Answers(
                task=name,
                score=score,
                filter=chosen,
                direction="higher" if rising.get(score, True) else "lower",
                aggregation=how,
                figure=float(figure),
                values=values,
                weights=weights,
                items=tuple(f"{name}:{sample['doc_id']}" for sample in mine) if values else (),
                clusters=tuple(_cluster(sample["doc"], name, cluster) for sample in mine) if values and cluster else (),
            )


def _cluster(doc: Mapping[str, Any], task: str, name: str) -> str:
    if name not in doc:
        raise UnsupportedError(f"{task}: its questions have no field {name!r}; they have {', '.join(map(str, doc))}")
    return f"{task}:{digest(str(doc[name]))}"


def _pooled(group: Group, answers: Sequence[Answers], results: Mapping[str, Any]) -> Iterator[Answers]:
    """The group's own figures over the questions of all its tasks; all questions or all tasks have equal weight."""
    for chosen in group.aggregate_metric_list or ():
        for name in dict.fromkeys(found.filter for found in answers if found.score == chosen.metric):
            members = [found for found in answers if (found.score, found.filter) == (chosen.metric, name)]
            paired = all(found.values and not found.weights for found in members)
            sizes = [1.0 if chosen.weight_by_size else 1.0 / len(found.values or (0,)) for found in members]
            yield replace(
                members[0],
                task=group.name,
                figure=float(results[f"{chosen.metric},{name}"]),
                values=tuple(value for found in members for value in found.values) if paired else (),
                weights=tuple(size for found, size in zip(members, sizes, strict=True) for _ in found.values),
                items=tuple(item for found in members for item in found.items),
                clusters=tuple(each for found in members for each in found.clusters),
            )


def _protocol(name: str, lm: Any, workload: TaskWorkload, asked: Mapping[str, Any]) -> dict[str, Scalar]:
    """What a score depends on. A variant and the baseline are comparable only if these are equal."""
    prompts = sha256()
    for samples in asked["samples"].values():
        for sample in samples:
            prompts.update(repr((sample["doc_hash"], sample["prompt_hash"], sample["target_hash"])).encode())
    template = lm.chat_template(True) if workload.chat_template else None
    return {
        **_task_protocol(name, asked),
        "bos": workload.bos,
        "chat_template": sha256(template.encode()).hexdigest()[:16] if template else None,
        "system": workload.system,
        "prompts_sha256": prompts.hexdigest(),
        **workload.writing,
    }


def _task_protocol(name: str, asked: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        "task": name,
        "task_version": str(asked["versions"].get(name, "")),
        "fewshot": asked["n-shot"].get(name),
    }


def _measurement(found: Answers, protocol: dict[str, Scalar]) -> Measurement:
    return Measurement(
        metric="task_score",
        version=VERSION,
        unit="nat" if FIGURES.get(found.aggregation) not in (None, FIGURES["mean"], FIGURES["nanmean"]) else "score",
        direction=found.direction,
        evidence="paired" if found.values else "exact",
        values=found.values or (found.figure,),
        protocol={**protocol, "score": found.score, "filter": found.filter, "aggregation": found.aggregation},
        weights=found.weights if found.values else (),
        item_ids=found.items,
        cluster_ids=found.clusters,
    )
