"""Servers that the user runs, in a sweep: planned, asked in workers of their own, recorded, and compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_openai import KEY, FakeOpenAI
from own_tasks import SUBJECTS, choosing, writing

from harness.api.plan import PlanSettings, plan, plan_with_state
from harness.api.run import RunSettings, run, run_part
from harness.api.workplace import Workplace
from harness.core.job import AnswerTask
from harness.core.record import Outcome, RunRecord
from harness.errors import RecipeError
from harness.figures.derived.scores import scores
from harness.planning.recipe_of import recipe_of
from harness.recipe import load_recipe
from harness.report.redact import Redaction
from harness.storage.spill import Saver

pytestmark = pytest.mark.heavy


class Other(FakeOpenAI):
    """As a quantized model is: another one."""

    def successor(self, token: int) -> int:
        return (5 * token + 1) % len(self.tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture
def servers(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeOpenAI, FakeOpenAI]]:
    """One that everybody may ask and one that wants a key."""
    monkeypatch.setenv("QHARNESS_KEY_OTHER", KEY)
    with FakeOpenAI(tokenizer).running() as plain, Other(tokenizer, model="other", key=KEY).running() as other:
        yield plain, other


def content(tiny: Path, servers: tuple[FakeOpenAI, FakeOpenAI], **measured: object) -> dict[str, object]:
    plain, other = servers
    served = {"url": f"{other.url}/v1/", "model": "other", "api_key_env": "QHARNESS_KEY_OTHER"}
    return {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "engines": ["endpoint"],
        "baseline": {"served": {"url": plain.url, "model": "fake"}},
        "methods": [{"served": served}],
        "measure": measured,
        "device": "cpu",
        "threads": 1,
    }


def tasks(folder: Path, tokenizer: Any, plain: FakeOpenAI) -> list[dict[str, str]]:
    """Questions that the plain server answers rightly by writing, and half of them by choosing 'old.'."""
    rows = []
    for index, subject in enumerate(SUBJECTS):
        prompt = tokenizer.encode(f"The {subject} was")
        rows.append(
            {"subject": subject, "answer": index % 2, "target": plain.written(prompt, {"max_tokens": 4})["text"]}
        )
    shortly = {"until": ["###"], "max_gen_toks": 4, "do_sample": False}
    written = writing(folder, "writes", rows, doc_to_text="The {{subject}} was", generation_kwargs=shortly)
    return [{"name": str(choosing(folder, "chooses", rows))}, {"name": str(written)}]


def test_answers_and_log_likelihoods_become_records_beside_the_baselines(
    sweeps, tiny: Path, tokenizer: Any, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    plain, other = servers
    asked = tasks(sweeps.folder, tokenizer, plain)
    records = sweeps.run(content(tiny, servers, tasks=asked, memory={}))
    measured = [record for record in records if isinstance(record.spec.job, AnswerTask)]
    assert len(measured) == len(records), "no run of memory alone, which a server does not show"
    assert [record.status for record in measured] == ["ok"] * 4, [record.outcome.failure for record in measured]
    by_row = {(r.spec.is_baseline, Path(r.spec.task.name).stem): r for r in measured if r.spec.task}
    assert {row: len(r.find("task_score").values) for row, r in by_row.items()} == dict.fromkeys(by_row, len(SUBJECTS))
    assert set(by_row[True, "writes"].find("task_score").values) == {1.0}
    assert 1.0 not in by_row[False, "writes"].find("task_score").values
    for record in measured:
        assert [label.code for label in record.outcome.labels] == ["remote"]
        names = {measurement.metric for measurement in record.outcome.measurements}
        assert not [name for name in names if "bytes" in name or "memory" in name or "weight" in name], names
        assert not record.spec.job.conditions.memory
    found, notes = scores([by_row[False, "writes"]], [by_row[True, "writes"]])
    assert not notes
    (score,) = found
    assert score.change is not None
    assert score.change.value == -1
    whole = "".join(path.read_text(errors="replace") for path in sweeps.folder.rglob("*") if path.is_file())
    assert KEY not in whole
    assert all(record.spec.method.label in ("served fake", "served other") for record in measured)
    again = recipe_of([record.spec for record in measured])
    assert again["engines"] == ["endpoint"]
    assert other.url in json.dumps(again)
    assert all(record.spec.method.server is None for record in Redaction().records(measured))


def test_a_server_may_move_and_its_row_stays(
    sweeps, tiny: Path, servers: tuple[FakeOpenAI, FakeOpenAI], tmp_path: Path
) -> None:
    recipe = content(tiny, servers, tasks=["arc_easy"])

    def ids(**other: str) -> list[tuple[str, str]]:
        (method,) = recipe["methods"]  # type: ignore[misc]
        changed = {**recipe, "methods": [{"served": {**method["served"], **other}}]}
        runs = plan(load_recipe(sweeps.recipe(changed)))
        return [(run.spec.case_id, run.spec.variant.key) for run in runs if isinstance(run.spec.job, AnswerTask)]

    _, other = servers
    usual = ids()
    with Other(other.tokenizer, model="other").running() as moved:
        assert ids(url=moved.url) == usual
    assert ids(label="awq")[0] == usual[0]
    assert ids(label="awq")[1] != usual[1]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model": "others"}, "serves no model 'others'; did you mean 'other'"),
        ({"api_key_env": None}, "refuses access .HTTP 401.: name the environment variable that holds the key"),
        (
            {"api_key_env": "QHARNESS_KEY_ABSENT"},
            "the environment variable QHARNESS_KEY_ABSENT, which holds the server's key, is not set",
        ),
        ({"url": "http://127.0.0.1:1"}, "nothing listens there"),
        ({"url": "http://me:word@127.0.0.1"}, "expected the address of a server.*without a user, a password"),
        ({"api_key_env": "sk-0123"}, "expected the name of an environment variable.*never the key itself"),
        ({"api_key_env": "AWS_SECRET_ACCESS_KEY"}, "a stranger's recipe cannot send your other secrets away"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_while_planning(
    sweeps, tiny: Path, servers: tuple[FakeOpenAI, FakeOpenAI], changed: dict[str, Any], reason: str
) -> None:
    recipe = content(tiny, servers, tasks=["arc_easy"])
    (method,) = recipe["methods"]  # type: ignore[misc]
    served = {name: value for name, value in {**method["served"], **changed}.items() if value is not None}
    with pytest.raises(RecipeError, match=reason) as caught:
        plan(load_recipe(sweeps.recipe({**recipe, "methods": [{"served": served}]})))
    assert "recipe.yaml:" in str(caught.value)
    for secret in ("word", "sk-0123"):
        assert secret not in str(caught.value).replace("password", "")


def test_a_command_asks_each_server_once_or_if_offline_not_at_all(
    sweeps, tiny: Path, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    """The baseline's is named among the methods too, and has two runs."""
    recipe = content(tiny, servers, tasks=["arc_easy", "arc_challenge"])
    recipe["methods"] = [*recipe["methods"], recipe["baseline"]]  # type: ignore[misc]
    path = sweeps.recipe(recipe)
    asked: list[str] = []
    for server in servers:
        server.fault = lambda path, before, server=server: asked.append(server.model)
    planned = plan(load_recipe(path))
    assert sorted(asked) == ["fake", "other"]
    for server in servers:
        server.fault = lambda path, before: (500, b"gone")
    place = Workplace(sweeps.folder / "results", sweeps.folder / "cache")
    state = plan_with_state(path, PlanSettings(place, offline=True))
    assert [run.spec.case_id for run in state.planned] == [run.spec.case_id for run in planned]
    with pytest.raises(RecipeError, match=r"HTTP 500, 1 times"):
        plan_with_state(path, PlanSettings(place))


def test_only_what_is_left_to_run_needs_its_server(
    sweeps, tiny: Path, tokenizer: Any, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    path = sweeps.recipe(content(tiny, servers, tasks=tasks(sweeps.folder, tokenizer, servers[0])))
    planned = plan(load_recipe(path))
    where = (sweeps.folder / "results", sweeps.folder / "cache")
    for server in servers:
        server.fault = lambda path, before: (500, b"gone")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:.*HTTP 500"):
        run(path, *where)
    first, *others = (RunRecord(each.spec, Outcome("ok"), "s", 1, "2026-01-01T00:00:00+00:00", 1.0) for each in planned)
    for record in others:
        sweeps.store.save(record)
    full = where[0].rename(sweeps.folder / "full")
    where[0].touch()  # a file in the folder's place: the record waits elsewhere
    Saver(sweeps.store, [where[1] / "spill"]).save(first)
    where[0].unlink()
    full.rename(where[0])
    assert [record.session for record in run(path, *where)] == ["s"] * len(planned)
    assert not plan_with_state(path, PlanSettings(Workplace(*where))).forecast.runs


def test_only_the_servers_of_the_part_that_is_run_are_asked(
    sweeps, tiny: Path, tokenizer: Any, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    asked_tasks = tasks(sweeps.folder, tokenizer, servers[0])
    recipe = load_recipe(sweeps.recipe(content(tiny, servers, tasks=asked_tasks)))
    where = RunSettings(Workplace(sweeps.folder / "results", sweeps.folder / "cache"))
    asked: list[str] = []
    for server in servers:
        server.fault = lambda path, before, server=server: asked.append(server.model) or (500, b"gone")
    assert run_part(recipe, where, lambda planned: ()) == ()
    assert not asked
    with pytest.raises(RecipeError, match="HTTP 500"):
        run_part(recipe, where, lambda planned: [each for each in planned if not each.spec.is_baseline])
    assert set(asked) == {"other"}


def test_what_needs_a_model_here_is_unsupported_on_a_server(
    sweeps, tiny: Path, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    measured = {"perplexity": {}, "throughput": {"prompt_tokens": 16, "new_tokens": 2}}
    runs = plan(load_recipe(sweeps.recipe(content(tiny, servers, **measured))))
    reasons = {run.spec.kind: run.unsupported for run in runs if run.spec.kind in ("quality", "performance")}
    assert reasons["quality"] == (
        "a quality run needs the capability logits; endpoint has only completes, scores, serves"
    )
    assert "needs the capability decodes" in str(reasons["performance"])


@pytest.mark.thorough
def test_a_server_that_goes_away_is_a_failed_record(
    sweeps, tiny: Path, tokenizer: Any, servers: tuple[FakeOpenAI, FakeOpenAI]
) -> None:
    plain, other = servers
    asked = tasks(sweeps.folder, tokenizer, plain)[:1]
    recipe = content(tiny, servers, tasks=asked) | {"engines": [{"endpoint": {"retries": 0, "timeout": 5}}]}
    planned = plan(load_recipe(sweeps.recipe(recipe)))
    other.fault = lambda path, before: (503, b"going down") if "compl" in path else None
    records = sweeps.make(planned)
    failed = {r.spec.method.label: r.outcome for r in records if isinstance(r.spec.job, AnswerTask)}
    assert failed["served fake"].status == "ok"
    assert failed["served other"].status == "failed"
    assert failed["served other"].failure is not None
    assert "fails (HTTP 503, 1 times): 'going down'" in failed["served other"].failure.message
