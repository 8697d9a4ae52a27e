"""Runs an lm-eval task on a model and returns each question's score as measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

from harness.core.identity import Scalar, digest
from harness.core.record import Measurement
from harness.core.workload import TaskWorkload
from harness.errors import InvalidRunError, UnsupportedError
from harness.tasks.aggregation import FIGURES, kept, mean
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
    """The result of a task: lm-eval's requests in order, and the scores."""

    requests: tuple[Any, ...]
    scores: tuple[Measurement, ...]


def evaluate(lm: Any, workload: TaskWorkload) -> Evaluation:
    """Asks ``lm`` (an ``lm_eval.api.model.LM``) every question with lm-eval's evaluator, prompts, filters and metrics.

    Gives one measurement ``task_score`` per score and filter. It has a value per question if lm-eval's figure is a
    function of their mean, else only that figure. A group's questions are pooled, with the weights that lm-eval gives
    its tasks. Raises UnsupportedError if the questions cannot be loaded.
    """
    from lm_eval.evaluator import evaluate as ask

    loaded = load(workload)
    asked = ask(
        lm,
        loaded,
        limit=workload.limit,
        bootstrap_iters=0,
        system_instruction=workload.system,
        apply_chat_template=workload.chat_template,
        fewshot_as_multiturn=workload.chat_template,
    )
    answers = [
        found for name, task in loaded["tasks"].items() for found in _answers(name, task, asked, workload.cluster)
    ]
    group = loaded.get("groups", {}).get(workload.name)
    if group is not None and group.has_aggregation:
        answers = list(_pooled(group, answers, asked["results"][workload.name]))
    return Evaluation(
        tuple(request for task in loaded["tasks"].values() for request in task.instances),
        tuple(_measurement(found.check(), _protocol(found.task, lm, workload, asked)) for found in answers),
    )


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
        "task": name,
        "task_version": str(asked["versions"].get(name, "")),
        "fewshot": asked["n-shot"].get(name),
        "bos": workload.bos,
        "chat_template": sha256(template.encode()).hexdigest()[:16] if template else None,
        "system": workload.system,
        "prompts_sha256": prompts.hexdigest(),
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
