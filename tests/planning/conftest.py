"""Plans for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.core.site import Machine
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe


@pytest.fixture
def make(sweeps, tiny: Path) -> Callable[..., tuple[PlannedRun, ...]]:
    def make(**changes: object) -> tuple[PlannedRun, ...]:
        content: dict[str, object] = {
            "models": [{"id": str(tiny), "label": "tiny"}],
            "methods": ["none", {"rtn": {"bits": [4, 3], "group_size": 32}}],
            "measure": {
                "perplexity": {"text": "demo", "context": 64, "windows": 2},
                "divergence": {},
                "throughput": {"prompt_tokens": 16, "new_tokens": 4},
            },
            "repetitions": 2,
        }
        return plan(load_recipe(sweeps.recipe({**content, **changes})), Machine("cpu", "a test machine"))

    return make
