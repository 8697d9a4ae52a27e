"""A third party adds a method in one file: a real package, really installed, found by the command and its workers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import load_results

pytestmark = pytest.mark.heavy

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin installed in it by pip."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(PACKAGE)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_a_plugins_method_is_listed_and_measured(site: Path, sweeps, tiny: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def qharness(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from harness.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

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
