"""What is kept of a task's questions, held against lm-eval's own figures, with lm-eval's own transformers model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from own_tasks import SUBJECTS, choosing, scored, writing

from harness.core.record import Measurement
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import UnsupportedError
from harness.tasks.answers import MOST_SCORED
from harness.tasks.catalog import catalog
from harness.tasks.evaluate import _scored, evaluate

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")

from lm_eval.api.model import TemplateLM

from harness.tasks.answers import Completion
from harness.tasks.thinking import Thinking

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def lm(tiny: Path):
    """The judge of lm-eval itself."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny), dtype="float32", batch_size=4, device="cpu")


def own(folder: Path, name: str = "endings", count: int = 10, **settings: object) -> TaskWorkload:
    rows = (
        {"subject": subject, "endings": ["wide.", "cold and quiet.", "old."], "answer": i % 3, "passage": f"p{i // 2}"}
        for i, subject in enumerate(SUBJECTS[:count])
    )
    path = choosing(folder, name, rows, doc_to_choice="{{endings}}", **scored("acc", "acc_norm"))
    return TaskWorkload(name, str(path), own="0", **settings)  # type: ignore[arg-type]


def by_score(found: Iterable[Measurement]) -> dict[str, Measurement]:
    return {str(m.protocol["score"]): m for m in found}


def test_each_question_has_its_score_and_their_mean_is_lm_evals(lm, tmp_path: Path) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    workload = own(tmp_path)
    found = by_score(evaluate(lm, workload).scores)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = simple_evaluate(lm, tasks=["endings"], task_manager=manager, bootstrap_iters=0)["results"]["endings"]
    assert set(found) == {"acc", "acc_norm"}
    for score, measured in found.items():
        assert len(measured.values) == 10
        assert set(measured.values) == {0.0, 1.0}  # some right, some wrong
        assert sum(measured.values) / 10 == pytest.approx(theirs[f"{score},none"])
        assert measured.item_ids == tuple(f"endings:{i}" for i in range(10))
        assert (measured.evidence, measured.direction) == ("paired", "higher")


def test_what_changes_the_prompts_changes_the_protocol(lm, tmp_path: Path) -> None:
    plain = by_score(evaluate(lm, own(tmp_path)).scores)["acc"].protocol
    again = by_score(evaluate(lm, own(tmp_path)).scores)["acc"].protocol
    shots = by_score(evaluate(lm, own(tmp_path, fewshot=1)).scores)["acc"].protocol
    assert dict(plain) == dict(again)
    assert shots["fewshot"] == 1
    assert shots["prompts_sha256"] != plain["prompts_sha256"]


def test_local_data_replace_the_tasks_own_and_no_question_is_its_own_example(lm, tmp_path: Path) -> None:
    from harness.tasks.definitions import load

    data = tmp_path / "arc.jsonl"
    rows = [
        {
            "id": str(i),
            "question": f"What was the {subject}?",
            "choices": {"text": ["wide", "cold"], "label": ["A", "B"]},
            "answerKey": "AB"[i % 2],
        }
        for i, subject in enumerate(SUBJECTS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for sampler in ("default", "first_n"):
        workload = TaskWorkload(
            "arc_easy",
            str(catalog().paths["arc_easy"]),
            fewshot=9,
            sampler=sampler,  # type: ignore[arg-type]
            data=TextRef("arc", str(data), sha256="0"),
        )
        (task,) = load(workload)["tasks"].values()
        task.build_all_requests()
        prompts = [instance.args[0] for instance in task.instances]
        assert len(prompts) == 20
        assert all(prompt.count("Question:") == 10 for prompt in prompts)
        assert all(len(set(prompt.split("\n\n"))) == 10 for prompt in prompts)  # nine others and itself, each once


def test_clusters_come_from_a_field_of_the_data(lm, tmp_path: Path) -> None:
    found = by_score(evaluate(lm, own(tmp_path, cluster="passage")).scores)["acc"]
    assert len(set(found.cluster_ids)) == 5
    assert found.cluster_ids[0] == found.cluster_ids[1] != found.cluster_ids[2]
    with pytest.raises(UnsupportedError, match="no field 'page'; they have subject"):
        evaluate(lm, own(tmp_path, cluster="page"))


@pytest.mark.parametrize("by_size", [True, False])
def test_a_group_is_weighted_as_lm_eval_weights_it(lm, tmp_path: Path, by_size: bool) -> None:
    own(tmp_path, "first", 10)
    own(tmp_path, "second", 4)
    group = tmp_path / "both.yaml"
    group.write_text(
        "group: both\ntask:\n"
        + "".join(
            "  - " + json.dumps({"task": name, **_content(tmp_path / f"{name}.yaml")}) + "\n"
            for name in ("first", "second")
        )
        + f"aggregate_metric_list: [{{metric: acc, weight_by_size: {str(by_size).lower()}}}]\n",
        encoding="utf-8",
    )
    (found,) = evaluate(lm, TaskWorkload("both", str(group), own="0")).scores
    assert found.protocol["task"] == "both"
    assert len(found.values) == len(set(found.item_ids)) == 14
    first = sum(found.values[:10]) / 10
    second = sum(found.values[10:]) / 4
    weights = found.weights or (1.0,) * 14
    mean = sum(v * w for v, w in zip(found.values, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx((10 * first + 4 * second) / 14 if by_size else (first + second) / 2)
    assert first != second


def _content(path: Path) -> dict[str, object]:
    import yaml

    content: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["task"]
    return content


def test_a_perplexity_keeps_each_questions_log_likelihood(lm, tmp_path: Path) -> None:
    data = tmp_path / "lambada.jsonl"
    rows = ({"text": f"The {subject} was very old"} for subject in SUBJECTS)
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    workload = TaskWorkload(
        "lambada_openai", str(catalog().paths["lambada_openai"]), data=TextRef("l", str(data), sha256="0")
    )
    found = by_score(evaluate(lm, workload).scores)
    assert set(found) == {"acc", "perplexity"}
    nats = found["perplexity"]
    assert (nats.unit, nats.direction, nats.protocol["aggregation"]) == ("nat", "lower", "perplexity")
    assert len(nats.values) == 10
    assert 1 < math.exp(sum(nats.values) / 10) < math.inf


def test_questions_that_cannot_be_had_are_told(lm, tmp_path: Path) -> None:
    workload = own(tmp_path)
    (tmp_path / "endings.jsonl").unlink()
    with pytest.raises(UnsupportedError, match="endings: its questions cannot be read"):
        evaluate(lm, workload)


def test_a_template_is_compiled_once_and_asks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests are those of jinja's sandbox without anything kept, and no template counts for another question."""
    from jinja2 import Environment, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    from harness.tasks.definitions import load

    def requests() -> list[object]:
        [task] = load(own(tmp_path, fewshot=2))["tasks"].values()
        task.build_all_requests()
        return [(each.doc, each.args, each.idx) for each in task.instances]

    compiled = []
    compile_ = SandboxedEnvironment.compile
    monkeypatch.setattr(
        SandboxedEnvironment, "compile", lambda self, source, *rest: compiled.append(source) or compile_(self, source)
    )
    monkeypatch.setattr(utils, "env", Environment(undefined=StrictUndefined, keep_trailing_newline=True))  # lm-eval's
    once = requests()
    assert len(compiled) == len(set(compiled)) > 0
    monkeypatch.setattr(utils, "env", SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True))
    assert requests() == once
    assert len(compiled) > 2 * len(once)


FIRST = {"function": "take_first"}


class Parrot(TemplateLM):  # type: ignore[misc]
    """Writes what it is given: ``texts`` holds the answers to each question, round by round."""

    def __init__(self, texts: list[list[str]]) -> None:
        super().__init__()
        self.texts, self.contexts = texts, list[list[str]]()
        self.generations: dict[tuple[str, int], Completion] = {}

    eot_token_id = 0

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        own = self.texts[len(self.contexts)]
        self.contexts.append([request.args[0] for request in requests])
        self.generations = {
            ("sums", request.doc_id): Completion(text, text, tuple(map(ord, text)), text.endswith("…"), 0.5, Thinking())
            for request, text in zip(requests, own, strict=True)
        }
        return list(own)

    def loglikelihood(self, requests, **_: object):
        raise AssertionError

    loglikelihood_rolling = _loglikelihood_tokens = tok_encode = loglikelihood


def sums(folder: Path, texts: list[list[str]], **settings: object) -> tuple[Parrot, dict[str, Measurement]]:
    task = writing(
        folder,
        "sums",
        ({"a": n, "target": n + 1, "day": n // 2} for n in range(4)),
        doc_to_text="{{a}} + 1 =",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 30},
        num_fewshot=2,
        filter_list=[
            {"name": "strict", "filter": [{"function": "regex", "regex_pattern": "#([0-9]+)"}, FIRST]},
            {
                "name": "loose",
                "filter": [{"function": "regex", "regex_pattern": "([0-9]+)", "group_select": -1}, FIRST],
            },
        ],
    )
    lm = Parrot(texts)
    workload = TaskWorkload("sums", str(task), own="0", **settings)  # type: ignore[arg-type]
    found = evaluate(lm, workload)
    scores = {f"{m.protocol['filter']}": m for m in found.scores}
    return lm, scores | {m.metric: m for m in found.answers}


def test_samples_are_nested_in_their_questions(tmp_path: Path) -> None:
    texts = [["#1", "#2", "#9", "4"], ["#1", "#9", "#3", "#4"], ["#9", "#9", "2", "#4"]]
    lm, found = sums(tmp_path, texts, samples=3, temperature=0.6)
    assert lm.contexts[0] == lm.contexts[1] == lm.contexts[2], "the same examples in every round"
    strict = dict(zip(found["strict"].item_ids, found["strict"].values, strict=True))
    assert strict == {
        f"sums:{question}#{sample}": float(text == f"#{question + 1}")
        for sample, own in enumerate(texts)
        for question, text in enumerate(own)
    }
    questions = [item.partition("#")[0] for item in strict]
    assert list(found["strict"].cluster_ids) == questions
    assert found["answer_tokens"].cluster_ids == found["strict"].cluster_ids
    assert found["strict"].protocol["samples"] == 3
    assert found["strict"].protocol["temperature"] == 0.6
    assert found["task_majority"].values == (1, 0, 0.5, 1), "of 9 and 3 either; what no filter finds does not vote"
    assert found["task_majority"].item_ids == ("sums:0", "sums:1", "sums:2", "sums:3")


def test_samples_are_nested_in_the_recipes_clusters(tmp_path: Path) -> None:
    _, found = sums(tmp_path, [["#1", "#2", "#3", "#4"]] * 2, samples=2, temperature=1.0, cluster="day")
    for name in ("strict", "answer_tokens", "task_majority"):
        days = dict(zip(found[name].item_ids, found[name].cluster_ids, strict=True))
        assert len(set(days.values())) == 2
        assert {day: {item[:6] for item in days if days[item] == day} for day in days.values()}.keys() == set(
            days.values()
        )
        assert days[next(iter(days))] == days[next(item for item in days if item.startswith("sums:1"))]


def test_there_is_no_majority_of_answers_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tasks.evaluate._text", lambda filtered: None)
    _, found = sums(tmp_path, [["#1", "#2", "#3", "#4"]] * 2, samples=2, temperature=1.0)
    assert found["strict"].mean == 1
    assert "task_majority" not in found


@pytest.mark.parametrize(("score", "known"), [(1.0, True), (float("nan"), False), ("yes", False)])
def test_only_numbers_are_scores_of_answers(score: object, known: bool) -> None:
    """A record holds no NaN, with which a task may mark a question that does not count."""
    task = SimpleNamespace(aggregation=lambda: {"exact_match": None})
    found = _scored(task, {"strict": {"exact_match": score, "filtered_resps": ["18"]}})
    assert (found is not None) is known


def test_what_happened_in_answers_is_beside_their_scores(tmp_path: Path) -> None:
    texts = [["#1", "2", "So #3. No, #9", "no idea…"]]
    _, found = sums(tmp_path, texts)
    assert found["strict"].item_ids == ("sums:0", "sums:1", "sums:2", "sums:3")
    assert found["strict"].cluster_ids == ()
    assert found["answer_tokens"].values == tuple(float(len(text)) for text in texts[0])
    assert found["answer_truncated"].values == (0, 0, 0, 1)
    assert found["answer_unfinished"].values == (0, 0, 0, 1)
    assert found["answer_format_faults"].values == (0, 1, 0, 0)
    assert found["answer_text"].item_ids == tuple(texts[0])
    assert found["answer_text"].values == found["strict"].values == (1, 0, 1, 0), "the first #3 counts"
    assert found["answer_target"].item_ids == ("1", "2", "3", "4")
    assert "answer_thinking_tokens" not in found
    assert "task_majority" not in found


def test_a_right_answer_that_is_given_up_is_lost(tmp_path: Path) -> None:
    _, found = sums(tmp_path, [["It is 1. No, 7.", "It is 7. No, 2.", "It is 7.", "#4"]])
    assert found["loose"].values == (0, 1, 0, 1)
    assert found["answer_lost"].values == (1, 0, 0, 0)


def test_few_findings_of_a_long_answer_are_scored_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the task's scorer is slow; both filters find a number in each sentence."""
    from lm_eval.api.task import ConfigurableTask

    counted: list[str] = []
    plain = ConfigurableTask.process_results
    monkeypatch.setattr(
        ConfigurableTask,
        "process_results",
        lambda self, doc, found: counted.append(found[0]) or plain(self, doc, found),
    )
    long = "".join(f"Or {number}. " for number in range(100, 164)) + "It is 7."
    _, found = sums(tmp_path, [[long, "It is 7. " * 30, "#3", "#4"]])
    assert found["answer_lost"].values == (0, 0, 0, 0)
    told = [each for each in counted if each not in ("[invalid]", "3", "4")]
    assert told.count("7") == 3, "of both answers, and once for all beginnings of the second"
    assert len(told) - 3 == MOST_SCORED, "of sixty-four numbers"


def test_answers_cannot_be_drawn_where_choices_are_scored(lm, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="samples, temperature is for tasks in which the model writes"):
        evaluate(lm, own(tmp_path, samples=2, temperature=0.5))
