"""A variant's and the baseline's real llama.cpp servers under load, by the commands that a user types, to the report.

What is fast on a machine that does other things too is chance, so no test says which server is. Needs both stacks: that
of vLLM sends the requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.analysis.tradeoff import tradeoff
from harness.cli.app import app
from harness.core.record import RunRecord
from harness.figures.serving import CAPACITY, E2E, GOODPUT, crossover_words
from harness.figures.table import Table
from harness.stacks import Stacks
from harness.stats.estimate import Estimate
from harness.storage.reading import read_records

pytestmark = pytest.mark.stack

LEVELS, WARMUP, REQUESTS, TOKENS = (1, 4), 1, 8, 6


@pytest.fixture(scope="module")
def results(tiny: Path, stacks_with: Callable[[str], Stacks], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sweep's records, beside which lies its report."""
    folder = tmp_path_factory.mktemp("load")
    recipe = {
        "name": "load",
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "engines": [{"llamacpp": {"slots": 4, "slot_tokens": 128}}],
        "methods": ["none", {"gguf": {"type": "Q8_0"}}],
        "measure": {
            "serving": {
                "concurrency": list(LEVELS),
                "prompts": {"text": "demo", "tokens": 16},
                "new_tokens": TOKENS,
                "warmup": WARMUP,
                "requests": REQUESTS,
                "slo": {"e2e": "10m"},
            }
        },
        "device": "cpu",
        "threads": 1,
    }
    (folder / "load.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    pythons = [f"--python={name}={stacks_with(name).find(name).python}" for name in ("llamacpp", "vllm")]
    places = [f"--results={folder / 'results'}", f"--cache={folder / 'cache'}"]
    command(["run", str(folder / "load.yaml"), *places, *pythons])
    command(["report", str(folder / "results" / "load"), f"--out={folder / 'report'}"])
    return folder / "results" / "load"


def command(words: Sequence[str]) -> None:
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output


@pytest.fixture(scope="module")
def records(results: Path) -> dict[str, RunRecord]:
    """Of the servers, by method."""
    return {each.spec.method.name: each for each in read_records(results) if each.spec.kind == "serve"}


@pytest.fixture(scope="module")
def table(results: Path) -> Table:
    (found,) = tradeoff(read_records(results))
    return found


@pytest.fixture(scope="module")
def page(results: Path) -> str:
    return (results.parents[1] / "report" / results.name / "report.html").read_text(encoding="utf-8")


def test_both_servers_answer_the_same_requests_whole(records: dict[str, RunRecord]) -> None:
    assert records.keys() == {"none", "gguf"}
    both = [records[name].outcome for name in ("none", "gguf")]
    for metric in ("serving_ttft_s", "serving_e2e_s"):
        mine, theirs = (outcome.measured(metric) for outcome in both)
        assert [each.protocol for each in mine] == [each.protocol for each in theirs], "the schedules' hashes among it"
        assert [each.item_ids for each in mine] == [each.item_ids for each in theirs]
        assert [len(each.values) for each in mine] == [REQUESTS] * len(LEVELS)
    for outcome in both:
        assert [each.values for each in outcome.measured("serving_failures")] == [(0.0,)] * len(LEVELS)
        assert [set(each.values) for each in outcome.measured("serving_output_tokens")] == [{TOKENS}] * len(LEVELS)


def test_the_variant_is_paired_with_the_baseline_at_each_level(table: Table) -> None:
    base, variant = sorted(table.rows, key=lambda row: not row.is_baseline)
    assert (base.is_baseline, variant.method) == (True, "gguf")
    assert [served.load.level for served in variant.served] == list(LEVELS)
    for served in variant.served:
        against = served.against_baseline
        assert against is not None
        assert (against.answered, against.others_answered, against.length) == (1, 1, 1)
        ratio = against.ratio
        assert ratio is not None, "how many times as fast"
        assert ratio.low is not None
        assert ratio.high is not None
        assert 0 < ratio.low <= ratio.value <= ratio.high
        for figure in (*E2E, GOODPUT):
            found = figure.of(variant, served.load)
            assert isinstance(found, Estimate)
            assert found.value > 0
    for row in table.rows:
        (ladder,) = row.ladders
        largest = CAPACITY.of(row, ladder.load)
        assert isinstance(largest, Estimate)
        assert largest.value == LEVELS[-1], "ten minutes are enough for every answer"


def test_a_crossover_is_told_where_the_curves_cross_and_doubted_where_they_may_not(table: Table, page: str) -> None:
    (variant,) = (row for row in table.rows if not row.is_baseline)
    (ladder,) = variant.ladders
    first, last = (served.against_baseline.ratio for served in variant.served if served.against_baseline)
    assert first is not None
    assert last is not None
    assert (ladder.crossover is not None) == ((first.value > 1) != (last.value > 1))
    if ladder.crossover is None:
        assert "than the baseline up to" not in page
        return
    words = crossover_words(ladder.crossover, ladder.load.unit)
    assert words in page
    undecided = any(each.low <= 1 <= each.high for each in (first, last))  # type: ignore[operator]
    assert ("it may not cross" in words) == undecided


def test_the_page_has_both_plots_with_a_line_for_each_server(table: Table, page: str) -> None:
    for title in ("Latency against throughput", "Goodput by load"):
        assert re.search(rf"<h\d[^>]*>{title}", page), title
    assert re.search(r"SLO: e2e (≤|\\u2264) 600 s", page)
    for row in table.rows:
        lines = page.count(f'<th scope="row">{escape(row.label)}</th>')
        assert lines >= 2 * len(LEVELS), "a line for each level below each plot"
