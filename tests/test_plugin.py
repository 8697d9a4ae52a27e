"""Third parties add methods, metrics with figures, and engines: real packages, really installed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import command_line
import pytest

import harness
from harness import load_results
from harness.execution import starter

pytestmark = pytest.mark.heavy(minutes=1)

HERE = Path(__file__).parent
Command = Callable[..., subprocess.CompletedProcess[str]]


def install(folder: Path, *packages: str) -> Path:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    named = (str(HERE / name) for name in packages)
    ended = subprocess.run([*pip, "--target", str(folder), *named], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def runnable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed a method and an engine, which this process looks up anew each time."""
    return install(tmp_path_factory.mktemp("runnable"), "plugin_package", "engine_package")


@pytest.fixture
def known(runnable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes them known here and in the workers."""
    monkeypatch.syspath_prepend(runnable)
    monkeypatch.setenv("PYTHONPATH", str(runnable))


@pytest.fixture(scope="module")
def qharness(runnable: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command in an environment in which pip installed these, and a metric with its figure."""
    path = os.pathsep.join(map(str, (runnable, install(tmp_path_factory.mktemp("site"), "metric_package"))))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": path, starter.VARIABLE: starter.FORK}
        return command_line.qharness(*arguments, env=environment)

    return run


@pytest.mark.usefixtures("known")
def test_a_plugins_method_is_listed_and_measured(qharness: Command, sweeps, tiny: Path) -> None:
    assert "intx" in qharness("list", "methods").stdout
    records = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "methods": [{"intx": {"bits": [4, 2]}}],
            "measure": {"perplexity": {"context": 64, "windows": 2}, "memory": {}},
        }
    )
    assert {record.status for record in records} == {"ok"}, [record.outcome.failure for record in records]
    frame = load_results(sweeps.store.root)
    nll = frame[frame.metric == "nll"].set_index("method").value
    assert max(nll["none"], nll["intx bits=4"]) < nll["intx bits=2"]
    linear = frame[
        (frame.metric == "stored_bytes") & (frame.protocol.map(lambda p: p == {"role": "linear", "part": "values"}))
    ]
    stored = linear.set_index("method").value
    assert stored["intx bits=4"] == stored["intx bits=2"] == stored["none"] / 4  # one byte a weight at every width


@pytest.mark.usefixtures("known")
@pytest.mark.thorough
def test_a_plugins_engine_is_listed_and_measured_and_what_it_lacks_is_unsupported(
    qharness: Command, sweeps, tiny: Path
) -> None:
    """In float64 the same model diverges by no more than float32 rounds; its one capability is to score text."""
    assert "float64" in qharness("list", "engines").stdout
    sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "engines": ["transformers", {"float64": {"round_logits": True}}],
            "methods": ["none", "int8"],
            "measure": {
                "perplexity": {"context": 64, "windows": 2},
                "divergence": {},
                "throughput": {"prompt_tokens": [8], "new_tokens": 2, "warmup": 1, "iterations": 1},
            },
        }
    )
    frame = load_results(sweeps.store.root)
    own = "float64 round_logits=true"
    kl = frame[frame.metric == "kl"].set_index(["method", "engine"]).value
    assert abs(kl["none", own]) < 1e-6 < kl["int8", "transformers"]
    assert ("int8", own) not in kl.index, "what quantizes while transformers loads is left out elsewhere"
    timed = {
        r.spec.engine: r for r in sweeps.store.read().records if r.spec.kind == "performance" and r.spec.is_baseline
    }
    assert timed["transformers"].status == "ok"
    assert timed["float64"].status == "unsupported"
    assert timed["float64"].outcome.failure.phase == "plan"
    assert timed["float64"].outcome.failure.message == (
        "a performance run needs the capability decodes; float64 has only logits, scores"
    )


@pytest.mark.thorough
def test_a_plugins_metric_is_measured_shown_gated_recommended_by_and_followed(
    qharness: Command, sweeps, tiny: Path, tmp_path: Path
) -> None:
    """One metric and one figure, by their entry points alone; the accuracy is held against transformers' own logits."""
    assert {"next-token", "first-token"} <= set(qharness("list", "metrics").stdout.split())
    demo = (Path(harness.__file__).parent / "text" / "data" / "demo.txt").read_text(encoding="utf-8")
    text = tmp_path / "one line.txt"
    text.write_text(" ".join(demo.split()), encoding="utf-8")
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "methods": [{"rtn": {"bits": [8, 2], "group_size": 32}}],
            "measure": {
                "perplexity": {"text": {"file": str(text)}, "context": 64, "windows": 4},
                "next-token": {"top": 5},
                "first-token": {"prompt_tokens": 16, "prompts": 3},
            },
            "gates": {"next_token_accuracy": "2%"},
        }
    )
    results = sweeps.store.root
    ended = qharness("run", recipe, "--results", results, "--cache", sweeps.cache.root)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    frame = load_results(results)
    accuracy = frame[frame.metric == "next_token_accuracy"].set_index("method").value
    assert accuracy["none"] == pytest.approx(
        _accuracy(tiny, text.read_text(encoding="utf-8"), context=64, windows=4, top=5), abs=1e-9
    )
    assert accuracy["rtn bits=2 group_size=32"] < accuracy["none"]
    assert set(frame[frame.metric == "first_token_s"].n) == {3}
    assert qharness("report", results, "--format", "csv", "--out", tmp_path).returncode == 0
    with (tmp_path / "sweep" / "report.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert float(rows["none"]["next_token_accuracy"]) == pytest.approx(accuracy["none"])
    compared = qharness("compare", results, results, "--format", "json")
    assert "next_token_accuracy" in {each["metric"] for each in json.loads(compared.stdout)["findings"]}
    limit = str(accuracy["none"] - 0.02)
    picked = qharness("recommend", results, "--min-next-token", limit, "--maximize", "next-token")
    assert picked.returncode == 0, picked.stdout + picked.stderr
    assert "next-token accuracy" in picked.stdout
    assert "next_token_accuracy" in qharness("history", results, "--format", "csv").stdout


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"next-tokn": {}}, "measure.next-tokn: unknown metric; did you mean 'next-token'?"),
        ({"next-token": {"topp": 1}}, "measure.next-token.topp: unknown parameter of next-token; did you mean 'top'?"),
        ({"next-token": {"top": 0}}, "measure.next-token.top: expected greater than 0, not 0"),
    ],
)
def test_a_metric_that_a_recipe_names_wrongly_is_refused_with_its_line(
    qharness: Command, sweeps, tiny: Path, metrics: dict[str, object], message: str
) -> None:
    measure = {"perplexity": {"context": 64, "windows": 2}, **metrics}
    recipe = sweeps.recipe({"models": [str(tiny)], "methods": ["rtn"], "measure": measure})
    ended = qharness("plan", recipe)
    assert ended.returncode == 2
    assert message in ended.stderr


def _accuracy(folder: Path, text: str, context: int, windows: int, top: int) -> float:
    """The share of hits over the first windows of a text, by plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    hits = []
    for index in range(windows):
        window = tokens[index * context : (index + 1) * context]
        with torch.inference_mode():
            likeliest = model(window[None]).logits[0, :-1].topk(top, dim=-1).indices
        hits.append((likeliest == window[1:, None]).any(dim=-1))
    return float(torch.cat(hits).double().mean())
