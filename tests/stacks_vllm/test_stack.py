"""The stack of vLLM as made, for a CPU or a GPU: its packages, its command line, and a worker's needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.stacks import Stack, stack_definition
from harness.stacks.build import check, environment

pytestmark = pytest.mark.stack


def test_it_is_whole_and_its_command_line_starts(any_vllm_stack: Stack) -> None:
    assert check(any_vllm_stack) == []


def test_its_bench_command_starts(any_vllm_stack: Stack, tmp_path: Path) -> None:
    command = [any_vllm_stack.python.with_name("vllm"), "bench", "--help"]
    shown = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "throughput" in shown.stdout


def test_it_runs_on_what_it_was_made_for(any_vllm_stack: Stack, tmp_path: Path) -> None:
    """The platform is chosen by the version under which vLLM is registered: without "cpu" in it there would be none."""
    ask = "from vllm.platforms import current_platform as p; print(p.device_type)"
    command = [any_vllm_stack.python, "-c", ask]
    shown = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = "cpu" if any_vllm_stack.definition is stack_definition("vllm") else "cuda"
    assert shown.stdout.split()[-1] == expected
