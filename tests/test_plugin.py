"""Third parties add a method in one file and an engine in one folder: real packages, really installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import load_results

pytestmark = pytest.mark.heavy

METHOD, ENGINE = (Path(__file__).parent / name for name in ("plugin_package", "engine_package"))
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def qharness(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """The command in an environment in which pip installed the plugins."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    ended = subprocess.run([*install, str(METHOD), str(ENGINE)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from harness.cli import main; main()", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    return run


def test_a_plugins_method_is_listed_and_measured(qharness: Command, sweeps, tiny: Path) -> None:
    assert "intx" in qharness("list", "methods").stdout
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "methods": [{"intx": {"bits": [4, 2]}}],
            "measure": {"perplexity": {"context": 64, "windows": 2}, "memory": {}},
        }
    )
    ended = qharness("run", recipe, "--results", sweeps.store.root, "--cache", sweeps.cache.root)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    frame = load_results(sweeps.store.root)
    nll = frame[frame.metric == "nll"].set_index("method").value
    assert max(nll["none"], nll["intx bits=4"]) < nll["intx bits=2"]
    linear = frame[
        (frame.metric == "stored_bytes") & (frame.protocol.map(lambda p: p == {"role": "linear", "part": "values"}))
    ]
    stored = linear.set_index("method").value
    assert stored["intx bits=4"] == stored["intx bits=2"] == stored["none"] / 4  # one byte a weight at every width


def test_a_plugins_engine_is_listed_and_measured_and_what_it_lacks_is_unsupported(
    qharness: Command, sweeps, tiny: Path
) -> None:
    """In float64 the same model diverges by no more than float32 rounds; its one capability is to score text."""
    assert "float64" in qharness("list", "engines").stdout
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "engines": ["transformers", "float64"],
            "methods": ["none", "int8"],
            "measure": {
                "perplexity": {"context": 64, "windows": 2},
                "divergence": {},
                "throughput": {"prompt_tokens": [8], "new_tokens": 2, "warmup": 1, "iterations": 1},
            },
        }
    )
    ended = qharness("run", recipe, "--results", sweeps.store.root, "--cache", sweeps.cache.root)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    frame = load_results(sweeps.store.root)
    kl = frame[frame.metric == "kl"].set_index(["method", "engine"]).value
    assert abs(kl["none", "float64"]) < 1e-6 < kl["int8", "transformers"]
    assert ("int8", "float64") not in kl.index, "what quantizes while transformers loads is left out elsewhere"
    ends = {(r.spec.kind, r.spec.engine): r for r in sweeps.store.records() if r.spec.kind == "performance"}
    assert ends["performance", "transformers"].status == "ok"
    assert ends["performance", "float64"].status == "unsupported"
