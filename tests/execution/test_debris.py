"""Debris: what a dead owner left goes at the next start, and nothing else."""

from __future__ import annotations

import ast
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness import errors
from harness.core.owner import current_owner
from harness.execution import debris
from harness.execution.debris import Debris, clear

HERE = current_owner()
LIVING, DEAD, UNKNOWN = HERE, replace(HERE, start=HERE.start - 1), replace(HERE, machine="000000")
NAMES = {
    "a temporary folder": "tmp/qharness-{}-ab12_cde/",
    "a run's part in the cache": "cache/quantize/.0123456789abcdef.qharness-{}-ab12_cde.part/",
    "an attempt": "results/sweep/0123456789abcdef/.3.{}.part/",
    "a record": "results/sweep/0123456789abcdef/3/.record.json.{}.part",
    "a removed artifact": "cache/quantize/.0123456789abcdef.{}-0123abcd.removed/",
    "a baseline": "results/.main.{}.part/",
}


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(debris, "end_leftovers", lambda: 0)
    return [tmp_path / "cache", tmp_path / "results"]


def make(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith("/"):
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "file").write_text("x")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_what_a_dead_owner_left_goes(tmp_path: Path, roots: list[Path], name: str) -> None:
    dead, living, unknown = (make(tmp_path, name.format(owner)) for owner in (DEAD, LIVING, UNKNOWN))
    assert clear(roots) == Debris(0, (dead,), (unknown,))
    assert not dead.exists()
    assert living.exists()
    assert unknown.exists()
    assert clear(roots) == Debris(0, (), (unknown,))


@pytest.mark.parametrize(
    "name",
    [
        "tmp/qharness-kernels-1000-0123456789abcdef/",
        "tmp/qharness-ab12_cde/",
        "tmp/other-{}-ab12_cde/",
        "results/sweep/0123456789abcdef/{}/",
        "results/sweep/0123456789abcdef/.3.part/",
        "results/.damaged/.3.{}.part/",
        "cache/quantize/0123456789abcdef/inner/deeper/.file.{}.part",
    ],
)
def test_what_may_be_anyone_s_stays(tmp_path: Path, roots: list[Path], name: str) -> None:
    """No owner in the name, a name of another kind, and what lies inside something finished."""
    path = make(tmp_path, name.format(DEAD))
    assert not clear(roots)
    assert path.exists()


def test_every_temporary_file_of_the_harness_carries_its_owner() -> None:
    """Also a worker's: it may be killed, and where TMPDIR is long, its own folder is not that of the libraries.

    What is made within a folder of a run or a cache (``dir``) goes with it.
    """
    makers = {"TemporaryDirectory", "NamedTemporaryFile", "mkdtemp", "mkstemp"}
    assert makers <= {*dir(tempfile)}
    package = Path(errors.__file__).parent
    found = [
        f"{path.relative_to(package)}:{call.lineno}"
        for path in package.rglob("*.py")
        if path != package / "core" / "owner.py" and "tempfile" in (text := path.read_text(encoding="utf-8"))
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
        and getattr(call.func, "attr", getattr(call.func, "id", None)) in makers
        and not any(each.arg == "dir" for each in call.keywords)
    ]
    assert found == []


def test_what_belongs_to_another_user_stays(tmp_path: Path, roots: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, NAMES["a temporary folder"].format(DEAD))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not clear(roots)
    assert path.exists()


def test_links_are_not_followed(tmp_path: Path, roots: list[Path]) -> None:
    outside = make(tmp_path, "outside/")
    link = tmp_path / "tmp" / f"qharness-{DEAD}-ab12_cde"
    link.symlink_to(outside)
    inner = make(tmp_path, NAMES["an attempt"].format(DEAD))
    (inner / "link").symlink_to(outside)
    assert set(clear(roots).paths) == {link, inner}
    assert (outside / "inner" / "file").exists()


def test_locked_folders_and_special_files_go_too(tmp_path: Path, roots: list[Path]) -> None:
    path = make(tmp_path, NAMES["an attempt"].format(DEAD))
    os.mkfifo(path / "inner" / "fifo")
    (path / "inner").chmod(0)
    path.chmod(0)
    assert clear(roots).paths == (path,)
    assert not path.exists()
