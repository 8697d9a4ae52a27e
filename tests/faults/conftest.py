"""Benches, the server that forks their commands, and the count of faults that were really made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Figures
from warm_commands import Commands

HERE = Path(__file__).parent
COUNTS = "QHARNESS_FAULT_COUNTS"
"""The variable that names a file to which every test adds how often it made its fault, one JSON object a line."""

MakeBench = Callable[[Mapping[str, Any]], Bench]


@pytest.fixture(scope="session")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A library that gives processes another time of day; None where no C compiler is."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    built = tmp_path_factory.mktemp("clock") / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, HERE / "clock.c"], check=True)
    return built


@pytest.fixture(scope="session")
def commands(clock: Path | None) -> Iterator[Commands]:
    started = Commands([HERE / "plugin"], [clock] if clock else [])
    yield started
    started.close()


@pytest.fixture
def make_bench(tmp_path: Path, commands: Commands, tiny: Path) -> Iterator[MakeBench]:
    """Makes benches, and clears them away."""
    made: list[Bench] = []

    def make(content: Mapping[str, Any]) -> Bench:
        made.append(Bench(tmp_path / str(len(made)), commands, tiny, content))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, commands: Commands, tiny: Path
) -> Callable[[Mapping[str, Any]], Figures]:
    """The figures of a sweep to which nothing happened, by what its benches contain."""
    kept: dict[str, Figures] = {}

    def find(content: Mapping[str, Any]) -> Figures:
        key = json.dumps(content, sort_keys=True)
        if key not in kept:
            bench = Bench(tmp_path_factory.mktemp("undisturbed") / "bench", commands, tiny, content)
            ended = bench.run()
            assert ended.code == 0, ended.output
            kept[key] = bench.figures()
            assert bench.debris() == []
        return kept[key]

    return find


@pytest.fixture
def count() -> Callable[[str, int], None]:
    """Notes that a fault was made so many times."""

    def note(fault: str, times: int) -> None:
        path = os.environ.get(COUNTS)
        if path:
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"fault": fault, "times": times}) + "\n")

    return note
