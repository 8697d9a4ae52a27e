"""Every renderer and every command on a terminal, with records in which every free string is hostile.

Each output is read by a parser that is not the harness's own, and has the structure that ordinary records give it.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hostile import CORPUS, pick, spoiled
from markdown_it import MarkdownIt
from markdown_it.token import Token
from thorough import all_thorough_but
from typer.testing import CliRunner

from harness.analysis.history.trace import trace
from harness.analysis.regression.track import track
from harness.api.plan import PlanState
from harness.api.recommend import recommend
from harness.cli import app as command_line
from harness.cli.render import formats, plan, sweep
from harness.cli.render import recommend as recommendation_console
from harness.core.record import Damaged, RunRecord
from harness.errors import ExitCode, UsageError
from harness.execution.events import (
    ArtifactDamaged,
    DamageFound,
    Ended,
    Lost,
    NotFetched,
    PhaseBegan,
    ReadingResults,
    Started,
    TakenIn,
    Verifying,
    Withdrawn,
)
from harness.models.tensor import NamedTensor
from harness.planning.plan import PlannedRun
from harness.report import escape
from harness.report.comparison import render as render_comparison
from harness.report.history import render as render_history
from harness.report.page import Page, page
from harness.report.plots import plots_of
from harness.report.plots.images import on_paper
from harness.report.recommendation import json_line, shown
from harness.report.renderers.csv_file import csv_text
from harness.report.renderers.html import html
from harness.report.renderers.markdown import markdown
from harness.report.renderers.model_card import BADGE, model_cards
from harness.report.renderers.parquet_file import parquet_bytes
from harness.report.shown_recommendation import markdown as recommendation_markdown
from harness.report.summary import job_summary
from harness.storage.store import Store

WORDS = tuple(CORPUS.values())
PLAIN = "plain "
UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
every_word = pytest.mark.parametrize(
    "words",
    [
        pytest.param(WORDS, id="all from 0"),
        *(
            pytest.param(WORDS[start:] + WORDS[:start], id=f"all from {start}", marks=pytest.mark.thorough)
            for start in range(14, len(WORDS), 14)
        ),
        *(pytest.param((word,), id=name, marks=pytest.mark.slow) for name, word in CORPUS.items()),
    ],
)
"""All words at once in a few arrangements, each word under other keys of the records; and each word everywhere."""


@pytest.fixture
def few(bench: Any, looks: Any, answered: list[RunRecord]) -> list[RunRecord]:
    """A sweep of two variants, two runs that failed, and a task."""
    return [*bench.sweep(looks[:2], repetitions=1), *answered[:3]]


@pytest.fixture
def sessions(bench: Any, looks: Any, none: Any) -> list[RunRecord]:
    """Six sessions: one variant becomes worse, another always fails."""

    def session(number: int) -> list[RunRecord]:
        here = replace(bench, session=f"s{number}", day=number, torch=f"2.1{number}")
        runs = [
            here.quality(none),
            here.quality(looks[0].method, 8, 0.02 * number),
            here.quality(looks[1].method, 4, 1),
        ]
        return [*runs, here.failed(here.spec("quality", looks[2].method))]

    return [replace(each, attempt=number) for number in range(1, 7) for each in session(number)]


def compared(records: Sequence[RunRecord], word: str) -> Any:
    base, head = ([each for each in records if each.session.endswith(f"s{number}")] for number in (1, 6))
    gates = {"perplexity": 0.005, "decode": 0.05}
    damaged = Damaged(Path("results", word), word), Damaged(Path("results", word), word, log_only=True)
    return track(base, head, gates, damaged=((), damaged), origin=word)


def tokens(text: str) -> list[Token]:
    """All tokens of GitHub's dialect, with those of paragraphs and cells."""
    found = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [each for token in found for each in (token, *(token.children or ()))]


def structure(text: str) -> Counter[str]:
    """How many headings, items, cells, emphasized words and so on there are; text and line ends are left out."""
    return Counter(
        f"{each.type} {each.tag}" for each in tokens(text) if each.type not in ("text", "text_special", "softbreak")
    )


def hold_markdown(text: str, plain: str) -> None:
    assert structure(text) == structure(plain)
    assert not UNSEEN.search(text)
    found = tokens(text)
    assert not [each for each in found if each.type == "link_open"]
    assert {each.attrs["src"] for each in found if each.type == "image"} <= {BADGE}
    raw = [each.content.strip() for each in found if each.type in ("html_block", "html_inline")]
    for each in raw:
        assert re.fullmatch(r"<details><summary>[^<>]*</summary>|<pre>[^<>]*</pre>|</details>", each)
    shown = [each.content for each in found if each.type in ("text", "text_special")]
    shown += [each.replace("&#8203;", "\u200b") for each in raw if not each.startswith("<pre>")]
    for each in shown:  # GitHub looks for people and issues in text as it is shown
        assert not re.search(r"(?<![A-Za-z0-9])@[A-Za-z0-9]|@[\w-]+\.\w|(?<!&)#\d|\bGH-\d", each, re.IGNORECASE)
    written = re.sub(r"<(pre|summary)>[^<>]*</\1>|```sh\n.*?\n```\n", "", text, flags=re.DOTALL)
    assert not re.search(r"(https?|ftp|mailto):|www\.", written, re.IGNORECASE)  # it makes links of these
    assert not re.search(r"(?<!\\)\$", written)  # and formulas of what stands between these


class Elements(HTMLParser):
    """The elements of a page with the names of their attributes, its addresses, and the content of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, list[str]]] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, sorted(name for name, _ in attributes)))
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src", "action")]
        self._in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)


def hold_html(text: str, plain: str) -> None:
    elements, expected = Elements(text), Elements(plain)
    assert elements.found == expected.found
    assert all(address.startswith("#") for address in elements.addresses)
    plots = [json.loads(script) for script in elements.scripts if script.startswith('{"data"')]
    assert len(plots) > 5
    for drawn in plots:
        hold_plot(drawn)
    without = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
    assert not UNSEEN.search(without)
    assert len(without) < 3_000_000


def hold_plot(drawn: Any) -> None:
    """plotly decodes entities last: what it takes for an element or for TeX stands in its text as it is."""
    for text in texts_of(drawn):
        assert set(re.findall("<[^>]*>?", text)) <= {"<br>", "<b>", "</b>"}
        assert "$" not in text
        assert not UNSEEN.search(text)
        assert len(text) < 5_000


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from texts_of(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_of(each)
    elif isinstance(value, str):
        yield value


def hold_terminal(text: str) -> None:
    """Neither a terminal nor GitHub's runner obeys any of it."""
    assert not UNSEEN.search(text)
    assert not re.search("[\t\r\u2028\u2029]", text)
    for line in text.split("\n"):
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


def hold_json(text: str, plain: str) -> None:
    """The same keys, though not those of the machine, in text that any terminal and any file can hold."""
    hold_terminal(text)
    text.encode()
    assert Counter(map(type, leaves(json.loads(text)))) == Counter(map(type, leaves(json.loads(plain))))


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def hold_csv(text: str, plain: str) -> None:
    lines, expected = (list(csv.reader(io.StringIO(each), strict=True)) for each in (text, plain))
    assert list(map(len, lines)) == list(map(len, expected))
    assert len(text.splitlines()) == len(lines), "a cell is one line"
    assert not UNSEEN.search(text)
    for cell in (cell for line in lines for cell in line):
        assert len(cell) <= 32_767
        assert not cell.lstrip().startswith("::")
        for part in re.split("[;\t]", cell):  # where a spreadsheet may begin another cell
            if re.match(r"\s*[=+\-@＝＋－＠]", part):
                assert re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", part)


def hold_parquet(whole: Page, words: Sequence[str]) -> None:
    stored = pq.read_table(io.BytesIO(parquet_bytes(whole.tables)))
    label = re.sub("[\ud800-\udfff]", "\ufffd", pick(words, "label"))
    assert set(stored.column("model").to_pylist()) == {f"{label}SmolLM2-135M"}
    assert len(set(stored.column_names)) == len(stored.column_names) > 50


def hold_cards(whole: Page, plain: Page, words: Sequence[str]) -> None:
    """The metadata hold the strings as they were recorded, and nothing else."""
    cards, expected = list(model_cards(whole.tables)), list(model_cards(plain.tables))
    assert len(cards) == len(expected) == 4
    for (name, card), (_, plain_card) in zip(cards, expected, strict=True):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*/(README\.md|qharness\.svg)", name)
        if name.endswith("svg"):
            drawn, expected_tags = ([each.tag for each in Xml.fromstring(text).iter()] for text in (card, plain_card))
            assert drawn == expected_tags
            continue
        (head, body), (_, plain_body) = (re.split(r"(?m)^---\n", each, maxsplit=2)[1:] for each in (card, plain_card))
        metadata = yaml.safe_load(head)
        assert set(metadata) == {"tags", "model-index"}
        (model,) = metadata["model-index"]
        assert model["name"].startswith(pick(words, "label")[:9_000])
        named = {each["dataset"]["name"] for each in model["results"]}
        assert named == {f"{pick(words, 'text')}demo", f"{pick(words, 'task')}arc_easy"}
        hold_markdown(body, plain_body)


@every_word
def test_a_report(few: list[RunRecord], words: tuple[str, ...]) -> None:
    whole, plain = page(spoiled(few, *words)), page(spoiled(few, PLAIN))
    assert len(whole.tables) == len(plain.tables) >= 1
    hold_markdown(markdown(whole), markdown(plain))
    hold_markdown(job_summary(whole), job_summary(plain))
    hold_html(html(whole), html(plain))
    hold_csv(csv_text(whole.tables), csv_text(plain.tables))
    hold_parquet(whole, words)
    hold_cards(whole, plain, words)
    for drawn in (plot for table in whole.tables for plot in plots_of(table)):
        hold_plot(on_paper(drawn))


@every_word
def test_a_comparison_and_a_history(sessions: list[RunRecord], words: tuple[str, ...]) -> None:
    hostile, plain = spoiled(sessions, *words), spoiled(sessions, PLAIN)
    found, expected = compared(hostile, words[0]), compared(plain, PLAIN)
    hold_markdown(render_comparison(found, "markdown"), render_comparison(expected, "markdown"))
    hold_terminal(render_comparison(found, "terminal"))
    hold_json(render_comparison(found, "json"), render_comparison(expected, "json"))
    assert json.loads(render_comparison(found, "json"))["gates"]["origin"] == words[0]
    tree, plain_tree = (Xml.fromstring(render_comparison(each, "junit")) for each in (found, expected))
    assert [each.tag for each in tree.iter()] == [each.tag for each in plain_tree.iter()]
    hold_terminal(render_comparison(found, "junit"))
    traced, plain_trace = trace(hostile), trace(plain)
    assert len(traced.series) == len(plain_trace.series) > 3
    hold_markdown(render_history(traced, "markdown"), render_history(plain_trace, "markdown"))
    hold_terminal(render_history(traced, "terminal"))
    hold_json(render_history(traced, "json"), render_history(plain_trace, "json"))
    hold_csv(render_history(traced, "csv"), render_history(plain_trace, "csv"))
    hold_terminal(render_history(traced, "csv"))


@every_word
def test_a_recommendation(few: list[RunRecord], words: tuple[str, ...]) -> None:
    found, expected = recommend(spoiled(few, *words)), recommend(spoiled(few, PLAIN))
    hold_markdown(*(recommendation_markdown(map(shown, each)) for each in (found, expected)))
    for one, other in zip(found, expected, strict=True):
        hold_json(json_line(one), json_line(other))
    hold_terminal(printed(lambda: recommendation_console.show(list(map(shown, found)))))


def printed(show: Callable[[], object]) -> str:
    """All that it prints, to the output and as errors."""
    with redirect_stdout(io.StringIO()) as written, redirect_stderr(written):
        show()
    return written.getvalue()


@every_word
def test_a_plan_and_the_progress_of_a_sweep(
    few: list[RunRecord], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    records = spoiled(few, *words)
    runs = tuple(PlannedRun(each.spec, reason=words[0]) for each in records)
    hold_terminal(printed(lambda: plan.show_plan(PlanState(runs), False)))
    hold_terminal(printed(lambda: plan.show_plan(PlanState(runs), True)))
    events = [
        *(Started(each.spec, number, len(records)) for number, each in enumerate(records)),
        *(PhaseBegan(few[0].spec, word) for word in words),
        *(Ended(each, number, len(records), False) for number, each in enumerate(records)),
        *(event for each in records for event in (Withdrawn(each), TakenIn(each), Verifying(each.spec))),
        *(ArtifactDamaged(records[0].spec, word) for word in words),
        *(NotFetched(records[0].spec, word) for word in words),
        *(ReadingResults(word) for word in words),
        *(Lost(records[0].spec, word, word, True, True) for word in words),
        *(DamageFound(Damaged(Path(word), word), word) for word in words),
    ]
    for as_json in (False, True):
        with sweep.display(as_json) as show:
            hold_terminal(printed(lambda show=show: [show(each) for each in events]))  # type: ignore[misc]
    monkeypatch.setattr(plan, "_rows", lambda what: [(word, word) for word in words])
    hold_terminal(printed(lambda: plan.show_list("methods")))


def test_the_live_line_of_a_sweep(few: list[RunRecord]) -> None:
    from rich.console import Console

    file = io.StringIO()
    live = sweep._Live(Console(file=file, width=200, force_terminal=True, color_system=None))
    for word in WORDS:
        for number, record in enumerate(spoiled(few[-2:], word)):
            live(Started(record.spec, number, 2))
            live(PhaseBegan(record.spec, word))
            hold_terminal(live._line().plain)
            live(Ended(record, number, 2, False))
            for event in (Withdrawn(record), TakenIn(record), ArtifactDamaged(record.spec, word)):
                live(event)
    hold_terminal(file.getvalue())


def test_a_tensor_s_name() -> None:
    for word in WORDS:
        tensor = NamedTensor(word, word, (1, 1), np.ones((1, 1), dtype=np.float32))
        hold_terminal(printed(lambda tensor=tensor: formats.show_trials(tensor, (), "mse", False)))  # type: ignore[misc]


@pytest.mark.parametrize("kind", [UsageError, ZeroDivisionError])
def test_an_error(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    for word in WORDS:

        def fail(word: str = word) -> None:
            raise kind(word)

        def run() -> None:
            with pytest.raises(SystemExit) as ended:
                command_line.main()
            assert ended.value.code == (ExitCode.USAGE if kind is UsageError else ExitCode.INTERNAL)

        monkeypatch.setattr(sys.modules["harness.cli.app"], "app", fail)
        hold_terminal(printed(run))


@pytest.mark.parametrize("start", all_thorough_but([0], [0, 20]))
def test_the_commands(few: list[RunRecord], tmp_path: Path, start: int) -> None:
    """From files: recipes have proper names there, and what UTF-8 cannot encode was never written."""
    words = [word for word in WORDS[start:] + WORDS[:start] if word != CORPUS["surrogate"]]
    results, baselines = tmp_path / "results", tmp_path / "baselines"
    for record in spoiled(few, *words):
        spec = replace(record.spec, recipe="sweep")
        Store(results).save(replace(record, spec=spec))
    kept = ["--baselines", str(baselines)]
    for arguments, code in (
        (["report", str(results), "--out", str(tmp_path / "out"), "--format", "md,csv,model-card,github"], 0),
        (["baseline", "set", "good", str(results), *kept], 0),
        (["baseline", "list", *kept], 0),
        (["compare", "good", str(results), *kept], 4),
        (["compare", "good", str(results), "--out", str(tmp_path / "comparison"), *kept], 4),
        (["history", str(results)], 0),
        (["recommend", str(results)], 0),
        (["baseline", "remove", "good", *kept], 0),
    ):
        ended = CliRunner().invoke(command_line.app, arguments)
        assert ended.exit_code in (code, 0), (arguments, ended.output[-2000:], ended.exception)
        hold_terminal(ended.output)


def test_a_long_text_is_cut(few: list[RunRecord]) -> None:
    whole = page(spoiled(few, "L" * 200_000))
    assert len(markdown(whole)) < 2_000_000
    assert len(html(whole)) - len(html(page(few))) < 3_000_000
    assert len(csv_text(whole.tables)) < 4_000_000
    found = recommend(spoiled(few, "L" * 200_000))
    assert len(printed(lambda: recommendation_console.show(list(map(shown, found))))) < 500_000


def test_ordinary_text_is_unchanged() -> None:
    ordinary = "gptq 4-bit g64 · Löwe’s naïve ½ ≤ 3 × 10⁹, see results/x and a-b, 1.5 #tag user"
    assert escape.page(ordinary) == escape.terminal(ordinary) == escape.csv_cell(ordinary) == escape.xml(ordinary)
    assert escape.plot(ordinary) == escape.markdown(ordinary) == ordinary.replace("’", "’")
    names = [
        *("Q4_K_M", "__init__", "_x_", "a__b", "*x*", "[x](y)", "a|b", "`x`", "# 3", "1. x", "- x", "$x", "~x~"),
        *("<x> & 'y'", "a\\b", "https://x.y", "user@host.com", "模型 🦙👨\u200d👩\u200d👧", "می\u200cخواهم"),
        *("שלום\u200f!", "e\u0301", "\U0001fae8"),
    ]
    for name in names:
        assert escape.page(name) == escape.terminal(name) == escape.xml(name) == name
        assert unescape(escape.plot(name)) == name
        shown = [each.content for each in tokens(escape.markdown(name)) if each.type in ("text", "text_special")]
        assert "".join(shown).replace("\u200b", "") == name
    for number in ("-1.5", "+2", "-1e-9", "-.5"):
        assert escape.csv_cell(number) == number
    assert escape.csv_cell(-1.5) == -1.5
