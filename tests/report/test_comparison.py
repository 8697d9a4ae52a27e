"""HEAD beside BASE in every format: golden files, and text of a record that does no harm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from run_specs import changed

from harness.analysis.history.trace import trace
from harness.analysis.regression.findings import Finding, Regression
from harness.analysis.regression.track import track
from harness.core.model import MethodRef
from harness.core.record import Damaged, RunRecord
from harness.errors import UsageError
from harness.report.comparison import FORMATS, render, words
from harness.report.comparison.terminal import terminal
from harness.report.history import render as history
from harness.stats.estimate import Estimate

SUFFIXES = {"terminal": "txt", "markdown": "md", "json": "json", "junit": "xml"}
HOSTILE = "x<script>alert(1)</script> | `a` [b](http://evil) \x1b[31m \x00 ]]> & \ufffe"


def hidden(name: str, label: str) -> MethodRef:
    return MethodRef(name, 1, {"as": label}, label, "on_load")


def sweep(bench: Any, none: MethodRef, looks: Sequence[Any], repetitions: int = 6) -> list[RunRecord]:
    records = [bench.quality(none), *(bench.quality(look.method, look.bits, look.damage) for look in looks)]
    for repetition in range(repetitions):
        records += [bench.performance(none, 1.0, repetition)]
        records += [bench.performance(look.method, look.speed, repetition) for look in looks]
    return records


@pytest.fixture
def found(bench: Any, looks: Sequence[Any], none: MethodRef) -> Regression:
    """Something of every verdict: worse, faster, broken, mended, gone, new, another text, and unchanged."""
    before, after = replace(bench, windows=40), replace(bench, windows=40, session="s2", day=2, torch="2.14.0")
    int8, nf4, double, fp4, torchao, fp8, *_ = looks
    base = sweep(before, none, (int8, nf4, double, fp4))
    base += [before.failed(before.spec("quality", fp8.method)), before.quality(torchao.method, 8, 0.1)]
    worse = replace(int8, bits=9.0, damage=0.06, speed=0.4)
    head = sweep(after, none, (worse, replace(nf4, speed=0.77)))
    head += [after.failed(after.spec("quality", double.method), message="no kernel: <b>sm_90</b> | wanted")]
    head += [after.quality(fp8.method, 8, 0.1), after.quality(looks[6].method, 4, 0.1)]
    other = after.quality(torchao.method, 8, 0.1)
    measured = tuple(
        replace(m, protocol={**m.protocol, "text_sha256": "d" * 64}) if m.metric == "nll" else m
        for m in other.outcome.measurements
    )
    head.append(replace(other, outcome=replace(other.outcome, measurements=measured)))
    gates = {"perplexity": 0.005, "decode": 0.05, "stored_bytes": 0.0, "accuracy": 0.01}
    return track(
        base,
        head,
        gates,
        damaged=((), (Damaged(Path("results/r/1/record.json"), "not a whole record"),)),
        origin="given",
    )


@pytest.mark.parametrize("name", FORMATS)
def test_golden(name: str, found: Regression, golden: Any) -> None:
    golden(f"comparison.{SUFFIXES[name]}", render(found, name))


def test_every_verdict_is_in_the_golden_files(found: Regression) -> None:
    assert {each.verdict for each in found.findings if each.gated} == {
        "improved",
        "regressed",
        "unchanged",
        "inconclusive",
        "incomparable",
    }


def test_one_method_on_two_engines_has_two_names(bench: Any, none: MethodRef) -> None:
    plain = bench.quality(none)
    runs = [plain, replace(plain, spec=changed(plain.spec, engine="llamacpp"))]
    texts = [
        terminal(track(runs, runs), width=200, whole=True),
        *(history(trace(runs), f) for f in ("terminal", "markdown")),
    ]
    assert ["llamacpp" in text for text in texts] == [True, True, True]


def test_all_that_was_compared_can_be_listed(found: Regression) -> None:
    assert terminal(found, whole=True).count("unchanged ") > terminal(found).count("unchanged ")


def hostile(bench: Any) -> Regression:
    evil = hidden("rtn", HOSTILE)
    well = bench.quality(evil, 4.5, 0.2)
    return track(
        [well],
        [bench.failed(well.spec, message=HOSTILE)],
        names=(HOSTILE, HOSTILE),
        damaged=((Damaged(Path(HOSTILE), HOSTILE),), ()),
    )


def test_hostile_text_stays_text_in_xml(bench: Any) -> None:
    root = Xml.fromstring(render(hostile(bench), "junit").encode())
    (failure,) = root.iter("failure")
    assert "<script>alert(1)</script>" in failure.get("message", "")
    assert root.get("failures") == "1"
    assert "\x1b" not in "".join(root.itertext())


def test_hostile_text_marks_nothing_up_and_moves_no_cursor(bench: Any) -> None:
    text = render(hostile(bench), "markdown")
    assert "<script>" not in text
    assert "\\](http" in text  # no link: its bracket is escaped
    rows = [line for line in text.splitlines() if line.startswith("| regressed")]
    assert [row.replace("\\|", "").count("|") for row in rows] == [8]
    shown = terminal(hostile(bench))
    assert "\x1b" not in shown
    assert "\x00" not in shown


def test_hostile_text_is_one_json_object(bench: Any) -> None:
    told = json.loads(render(hostile(bench), "json"))
    assert told["schema_version"] == 1
    assert told["outcome"] == "regressed"
    assert told["exit_code"] == 1
    assert told["findings"][0]["method"] == HOSTILE


def finding(base: float | None, head: float | None, unit: str = "tok/s", change: Estimate | None = None) -> Finding:
    return Finding(
        *("c", "m", "q", "e", "output_throughput", ""),
        "regressed",
        True,
        base,
        head,
        unit,
        relative=True,
        change=change,
    )


@pytest.mark.parametrize(
    ("base", "head", "unit", "text"),
    [
        (19.4, 19.6, "tok/s", "19.40 → 19.60 tok/s"),
        (1.0, 0.0, "", "1.000 → 0"),
        (0.3, None, "s", "0.3000 → — s"),
        (None, None, "s", "—"),
    ],
)
def test_figures_end_with_their_unit_or_with_the_figure(
    base: float | None, head: float | None, unit: str, text: str
) -> None:
    assert words.figures(finding(base, head, unit)) == text


def test_a_change_without_a_percentage_is_a_dash() -> None:
    assert words.change(finding(5.0, 0.0)) == "—"
    assert words.change(finding(5.0, 4.0, change=Estimate(-0.2, None, None, 5, ""))) == "−20%"


def test_an_unknown_format_is_refused(found: Regression) -> None:
    with pytest.raises(UsageError, match=r"did you mean 'markdown'"):
        render(found, "markdwn")


def test_colours_are_asked_for(found: Regression) -> None:
    assert "\x1b[" in terminal(found, colour=True)
