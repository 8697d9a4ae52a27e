"""The command line: what it costs to start, its exit codes, its messages."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
from command_line import probe, qharness

from harness.cli.app import main
from harness.cli.options import built_in_names, offered_recipes
from harness.execution.starter import forks
from harness.storage.store import Store

ROOT = Path(__file__).parents[2]
RECIPES, EXAMPLE = ROOT / "recipes", ROOT / "results" / "example"
HEAVY = ("pydantic", "numpy", "pandas", "torch", "rich.markdown", "transformers", "plotly", "scipy")


def test_help_imports_nothing_heavy() -> None:
    ended = probe("--help")
    assert ended.imported.isdisjoint(HEAVY)
    assert "Compare LLM quantization methods" in ended.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("plan", "absent.yaml"), "absent.yaml: no such file"),
        (("report", "absent"), "absent: no such folder"),
        (("run",), "Missing argument"),
        (("list", "colours"), "'colours' is not one of"),
        (("nonsense",), "No such command"),
    ],
)
def test_a_wrong_command_is_told_in_one_message_with_exit_code_2(arguments: tuple[str, ...], expected: str) -> None:
    ended = qharness(*arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_deleted_working_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr("sys.argv", ["qharness", "plan", str(RECIPES / "example.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "qharness: the working folder was deleted; change to one that exists\n"


def test_a_folder_that_may_not_be_looked_at_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))  # root may look everywhere

    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr("sys.argv", ["qharness", "verify", "private/results"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "qharness: 'private/results': Permission denied\n"


@pytest.mark.parametrize("kind", [OSError, PermissionError])
def test_a_store_that_fails_in_any_command_is_one_message(
    kind: type[OSError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise kind(errno.EACCES if kind is PermissionError else errno.EIO, "s3://team/results: cannot write: refused")

    monkeypatch.setattr("harness.cli.app.app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "qharness: s3://team/results: cannot write: refused\n"


def test_a_folder_without_records_is_no_results_folder(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    ended = qharness("report", tmp_path, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert "contains no records" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_record_from_the_future_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "sweep" / "0123" / "1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"schema_version": 999}))
    ended = qharness("report", tmp_path, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert "written by a newer qharness" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_report_format_is_refused(tmp_path: Path) -> None:
    ended = qharness("report", EXAMPLE, "--out", tmp_path / "out", "--format", "htm")
    assert ended.returncode == 2
    assert "did you mean 'html'?" in ended.stderr


def test_the_report_of_a_real_sweep_is_written(tmp_path: Path) -> None:
    ended = qharness("report", EXAMPLE, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    written = [Path(line) for line in ended.stdout.split()]
    assert [path.name for path in written] == ["report.html", "report.md", "report.csv"]
    measured = {each.spec.method.name for each in Store(EXAMPLE).read().records if each.spec.kind == "quality"}
    assert len(measured) > 2
    assert all(method in written[0].read_text() for method in measured)


@pytest.mark.parametrize(
    ("what", "name"),
    [("methods", "rtn (ptq)"), ("engines", "transformers"), ("metrics", "divergence"), ("texts", "demo")],
)
def test_list_names_what_a_recipe_can_name(what: str, name: str) -> None:
    assert name in qharness("list", what).stdout


def test_doctor_says_what_is_ready() -> None:
    ended = qharness("doctor")
    assert ended.returncode == 0
    assert re.search(r"^ +rtn +ready$", ended.stdout, re.MULTILINE)
    assert re.search(r"^runs +forked from a warm server" if forks() else r"^runs +each starts anew", ended.stdout, re.M)


def test_the_shell_completes_recipes_folder_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "older").mkdir(parents=True)
    for name in ("quick.yaml", "mine/quick.yaml", "mine/notes.txt"):
        (tmp_path / name).touch()
    assert offered_recipes("mi") == ["mine/"]
    assert offered_recipes("mine/") == ["mine/older/", "mine/quick.yaml"]
    assert offered_recipes("./qu") == ["./quick.yaml"]
    assert offered_recipes(f"{tmp_path}/mine/q") == [f"{tmp_path}/mine/quick.yaml"]
    assert offered_recipes("quick") == ["quick.yaml", *built_in_names("quick")]
    assert offered_recipes("absent/") == []
