"""The names that users import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness


def test_every_public_name_is_there_and_callable() -> None:
    for name in harness.__all__:
        assert callable(getattr(harness, name)), name
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = harness.no_such_name


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, harness; sys.exit(any(name in sys.modules for name in ('pydantic', 'pandas', 'torch', 'yaml')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.heavy
def test_a_recipe_runs_from_python(sweeps, tiny: Path) -> None:
    recipe = sweeps.recipe(
        {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none"],
            "measure": {"perplexity": {"context": 64, "windows": 2}},
        }
    )
    (record,) = harness.run(recipe, results=sweeps.folder / "out", cache=sweeps.folder / "cache")
    assert record.status == "ok"
    frame = harness.load_results(sweeps.folder / "out" / "sweep")
    plausible = ["vocabulary_size", "tokens_per_character", "latin_letter_share"]
    assert list(frame.metric) == ["nll", *plausible, "bos_gain", "kl_batch_noise"]
    (path,) = harness.write_report([record], sweeps.folder / "report", ["md"])
    assert "perplexity protocol: gptq" in path.read_text()
