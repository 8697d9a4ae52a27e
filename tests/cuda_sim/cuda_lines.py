"""Which lines of the harness are about a GPU, and which of them ran: a plugin of pytest, for ``make cuda-lines``.

A line counts if it names CUDA, NVML or ``on_gpu`` in code, if it belongs to a function or class that does so in its
name, or if it stands in a branch that a condition on such a name chooses; so does what follows ``if not cuda: return``.
Imports, definitions and text do not count. What ran is traced in pytest's processes and in simulated workers.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

VARIABLE = "QHARNESS_CUDA_LINES"
"""The environment variable that names the folder in which each process writes the lines that it ran."""
HARNESS = Path(__file__).resolve().parents[2] / "harness"
LEAST = 0.95
"""The share of the lines below which the run of pytest fails."""
NAMED = re.compile(r"cuda|on_gpu|nvml", re.IGNORECASE)


def cuda_lines() -> dict[Path, set[int]]:
    """The lines of each file, without files that have none."""
    found = {file: _lines(file) for file in sorted(HARNESS.rglob("*.py"))}
    return {file: lines for file, lines in found.items() if lines}


@cache
def _lines(file: Path) -> set[int]:
    text = file.read_text(encoding="utf-8")
    if not NAMED.search(text):
        return set()
    return set(_of_body(ast.parse(text).body, inside=False)) & _executable(compile(text, str(file), "exec"))


def _of_body(body: list[ast.stmt], inside: bool) -> Iterator[int]:
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from _of_body(statement.body, inside or bool(NAMED.search(statement.name)))
            continue
        if isinstance(statement, ast.Import | ast.ImportFrom):
            continue
        blocks = [getattr(statement, name) for name in ("body", "orelse", "finalbody") if hasattr(statement, name)]
        blocks += [handler.body for handler in getattr(statement, "handlers", ())]
        if not blocks:
            if inside or _names_cuda(statement):
                yield from range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
            continue
        head = statement.test if isinstance(statement, ast.If | ast.While) else None
        chosen = head is not None and _names_cuda(head)
        if inside or chosen:
            yield statement.lineno
        negative = chosen and isinstance(head, ast.UnaryOp) and isinstance(head.op, ast.Not)
        for index, block in enumerate(blocks):
            yield from _of_body(block, inside or (chosen and (index == 1 if negative else index == 0)))
        if negative and isinstance(statement, ast.If) and isinstance(statement.body[-1], ast.Return | ast.Raise):
            inside = True


def _names_cuda(node: ast.AST) -> bool:
    """Whether code names CUDA, NVML or ``on_gpu``: a name, an attribute, or a text that is nothing else."""
    for each in ast.walk(node):
        name = getattr(each, "id", None) or getattr(each, "attr", None) or getattr(each, "arg", None)
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and " " not in each.value:
            name = each.value
        if isinstance(name, str) and NAMED.search(name):
            return True
    return False


def _executable(code: Any) -> set[int]:
    """The lines that begin an instruction inside a function: a module's top and a class's body run on import."""
    found: set[int] = set()
    for constant in code.co_consts:
        if hasattr(constant, "co_lines"):
            found |= _executable(constant)
            if constant.co_flags & inspect.CO_OPTIMIZED:  # a function, no class
                found |= {line for _, _, line in constant.co_lines() if line is not None} - {constant.co_firstlineno}
    return found


class Trace:
    """Notes the lines that run in this process from ``start`` on; ``write`` keeps them, if a folder is named."""

    def __init__(self) -> None:
        self._folder = os.environ.get(VARIABLE)
        self._wanted = {str(file): lines for file, lines in cuda_lines().items()}
        self._ran: dict[str, set[int]] = {file: set() for file in self._wanted}

    def start(self) -> None:
        if self._folder is not None:
            threading.settrace(self._call)
            sys.settrace(self._call)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._wanted else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._ran[frame.f_code.co_filename].add(frame.f_lineno)
        return self._line

    def write(self) -> None:
        if self._folder is None:
            return
        text = "".join(f"{file}:{line}\n" for file, lines in self._ran.items() for line in sorted(lines))
        Path(self._folder, f"{os.getpid()}.txt").write_text(text, encoding="utf-8")


def read(folder: Path) -> dict[Path, set[int]]:
    """What all processes ran."""
    found: dict[Path, set[int]] = {}
    for file in folder.glob("*.txt"):
        for entry in file.read_text(encoding="utf-8").splitlines():
            name, _, line = entry.rpartition(":")
            found.setdefault(Path(name), set()).add(int(line))
    return found


def report(ran: Mapping[Path, set[int]]) -> tuple[str, float]:
    """A table of the files with the lines that did not run, and the share of lines that did."""
    wanted = cuda_lines()
    rows = []
    for file, lines in wanted.items():
        missing = sorted(lines - ran.get(file, set()))
        shown = ", ".join(map(str, missing))
        rows.append(f"{len(lines) - len(missing):4} of {len(lines):4}  {file.relative_to(HARNESS.parent)}  {shown}")
    total = sum(map(len, wanted.values()))
    reached = sum(len(lines & ran.get(file, set())) for file, lines in wanted.items())
    return "\n".join([*rows, f"{reached} of {total} lines for a GPU ran: {reached / total:.1%}"]), reached / total


_trace = Trace()


def pytest_configure(config: pytest.Config) -> None:
    _trace.start()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes what ran here; the process that started all others also reports it, and fails if it is too little."""
    _trace.write()
    if hasattr(session.config, "workerinput") or VARIABLE not in os.environ:
        return
    text, share = report(read(Path(os.environ[VARIABLE])))
    print(f"\n{text}")
    if share < LEAST and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
