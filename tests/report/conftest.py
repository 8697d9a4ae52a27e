"""The made-up sweep of tests/analysis, and pages of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.record import RunRecord


def _bench() -> Any:
    """The builder of tests/analysis/conftest.py; under importlib mode no conftest can be imported by name."""
    name = "tests_analysis_records"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "analysis" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def bench() -> Any:
    return _bench().Bench()


@pytest.fixture
def records(bench: Any) -> list[RunRecord]:
    found: list[RunRecord] = bench.sweep()
    return found


@pytest.fixture
def looks() -> Any:
    return _bench().LOOKS


@pytest.fixture
def none() -> Any:
    return _bench().NONE
