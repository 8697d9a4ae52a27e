"""Which compilers a worker would find."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.host import compilers
from harness.host.compilers import absent_compilers, worker_path


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is on the path, and an interpreter in a folder of its own."""
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("path", "environment", "toolkit/bin"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(compilers, "DEFAULT_TOOLKIT", tmp_path / "default")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "environment" / "python"))
    return tmp_path


def make(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_compilers_are_on_the_path_or_where_variables_say(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert absent_compilers() == ("nvcc", "ninja", "c++")
    make(programs / "environment" / "ninja")  # as pip installs it
    assert absent_compilers() == ("nvcc", "c++")
    monkeypatch.setenv("CUDA_HOME", str(programs / "toolkit"))
    assert absent_compilers() == ("nvcc", "c++")
    make(programs / "toolkit" / "bin" / "nvcc")
    make(programs / "path" / "my-c++")
    monkeypatch.setenv("CXX", "my-c++")
    assert absent_compilers() == ()
    monkeypatch.delenv("CUDA_HOME")
    assert absent_compilers() == ("nvcc",)
    make(programs / "path" / "nvcc")
    assert absent_compilers() == ()


def test_a_workers_path_ends_with_its_interpreters_folder() -> None:
    assert (
        worker_path("/stack/bin/python", f"/usr/bin{os.pathsep}/bin")
        == f"/usr/bin{os.pathsep}/bin{os.pathsep}/stack/bin"
    )
    assert worker_path("/stack/bin/python", None) == "/stack/bin"
