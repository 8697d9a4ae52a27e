"""The stack of vLLM as made: its packages, its command line, and a worker's needs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.stacks import Stack
from harness.stacks.build import check, environment

pytestmark = pytest.mark.stack


def test_it_is_whole_and_its_command_line_starts(vllm_stack: Stack) -> None:
    assert check(vllm_stack) == []


def test_its_bench_command_starts(vllm_stack: Stack, tmp_path: Path) -> None:
    command = [vllm_stack.python.with_name("vllm"), "bench", "--help"]
    shown = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "throughput" in shown.stdout


def test_it_runs_on_what_it_was_made_for(run_in_stack: Callable[..., Any]) -> None:
    """The platform is chosen by the version under which vLLM is registered: without "cpu" in it there would be none."""
    platform = run_in_stack("from vllm.platforms import current_platform as p; print('\"' + p.device_type + '\"')")
    assert platform in {"cpu", "cuda"}
