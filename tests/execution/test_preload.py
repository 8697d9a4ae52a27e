"""Runs share what they import as far as that is the same, and no further."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.core.run import RunSpec
from harness.execution.preload import steps
from harness.recipe import load_recipe


@pytest.fixture
def specs(sweeps, tiny: Path) -> Callable[..., dict[str, RunSpec]]:
    """The runs of a recipe with these methods, by title."""

    def planned(*methods: object, **more: object) -> dict[str, RunSpec]:
        content = {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "methods": list(methods),
            "measure": {"perplexity": {"text": "demo", "context": 128, "windows": 2}, "throughput": {}, "memory": {}},
            "device": "cpu",
            **more,
        }
        return {run.spec.title: run.spec for run in plan(load_recipe(sweeps.recipe(content)))}

    return planned


def test_runs_of_one_model_and_library_share_all_steps(specs) -> None:
    found = specs("none", {"rtn": {"bits": [8, 4], "group_size": 32}}, "bnb-nf4", "bnb-int8")
    none, rtn, bnb = (
        {steps(spec) for title, spec in found.items() if title.startswith(("quality", "performance")) and name in title}
        for name in ("none", "rtn", "bnb")
    )
    assert none == rtn
    assert len(none) == 1
    assert len(bnb) == 1
    ((shared, own),) = ((plain[:2], other[2:]) for plain in none for other in bnb)
    assert shared == next(iter(bnb))[:2]
    assert own == (("method", ("bitsandbytes",)),)


def test_a_run_of_no_model_imports_none(specs) -> None:
    (machine,) = (spec for spec in specs("none").values() if spec.kind == "machine")
    assert steps(machine) == ()


def test_a_run_that_needs_an_optional_package_shares_nothing_with_those_that_do_not(specs) -> None:
    """Transformers looks once, when it is imported, which of them it may use."""
    found = specs("none", {"hqq": {"group_size": 32}})
    first = {title.split()[1]: steps(spec)[0] for title, spec in found.items() if title.startswith("quality")}
    assert first == {"none": ("engine", ("transformers",)), "hqq": ("engine", ("transformers", "hqq"))}
