"""The files of a report: their shape, their safety, and what each must say."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from run_specs import UNDER_LOAD
from served_records import served

from harness.core.record import RunRecord
from harness.errors import StorageError, UsageError
from harness.report import write_report
from harness.report.answer import default_answer
from harness.report.column import columns, shown_columns
from harness.report.escape import markdown as escape
from harness.report.page import page as page_of
from harness.report.plots import plots_of
from harness.report.renderers import csv_file
from harness.report.renderers import html as html_page
from harness.report.renderers import markdown as markdown_page

Spoil = Callable[[Sequence[RunRecord], str], list[RunRecord]]
HOSTILE = (
    "<script>alert(1)</script>",
    "x</script><script>alert(2)</script>",
    '"><img src=x onerror=alert(3)>',
)


def html(records: Sequence[RunRecord]) -> str:
    return html_page.html(page_of(records))


def markdown(records: Sequence[RunRecord]) -> str:
    return markdown_page.markdown(page_of(records))


def csv_text(records: Sequence[RunRecord]) -> str:
    return csv_file.csv_text(page_of(records).tables)


class Page(HTMLParser):
    """What a browser would make of a page: elements, their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._script = False

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def figures_of(page: Page) -> Iterator[Any]:
    for (_, attributes), script in zip(
        (each for each in page.elements if each[0] == "script"), page.scripts, strict=True
    ):
        if attributes.get("type") == "application/json":
            yield json.loads(script)


@pytest.mark.parametrize(("name", "render"), [("report.md", markdown), ("report.csv", csv_text)])
def test_golden(name: str, render: Any, records: list[RunRecord], golden: Any) -> None:
    golden(name, render(records))


def test_writes_what_was_asked_for_and_nothing_else(tmp_path: Path, records: list[RunRecord]) -> None:
    paths = write_report(records, tmp_path / "new" / "folder", ("md", "csv"))
    assert [path.name for path in paths] == ["report.md", "report.csv"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.csv", "report.md"]


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown report format 'htm'; did you mean 'html'"):
        write_report([], tmp_path / "out", ("md", "htm"))
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_the_old_report(
    tmp_path: Path, records: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_report(records, tmp_path, ("md",))
    before = path.read_text(encoding="utf-8")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(StorageError, match="disk full"):
        write_report(records[:3], tmp_path, ("md",))
    assert path.read_text(encoding="utf-8") == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]


def test_nothing_measured_is_still_a_report(tmp_path: Path) -> None:
    paths = write_report([], tmp_path)
    assert [path.name for path in paths] == ["report.html", "report.md", "report.csv"]
    assert "These results contain no run of a variant" in paths[0].read_text(encoding="utf-8")


def test_the_page_asks_the_network_for_nothing(bench: Any, none: Any, records: list[RunRecord]) -> None:
    page = Page(html([*records, replace(bench, context=1024).quality(none)]))  # two tables: a list of links to them
    assert not [each for each in page.elements if {"src", "srcset", "action", "data", "poster"} & set(each[1])]
    links = [str(each["href"]) for _, each in page.elements if "href" in each]
    assert links
    assert [link for link in links if not link.startswith("#")] == []
    assert "link" not in {tag for tag, _ in page.elements}
    policy = next(str(each["content"]) for tag, each in page.elements if each.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_a_group_of_columns_has_one_heading_and_one_button(
    bench: Any, none: Any, records: list[RunRecord], answered: list[RunRecord]
) -> None:
    """Figures of tasks are declared between those of quality, and figures of servers between those of speed."""
    loads = [bench.record(bench.spec("serve", none, n), served(n, steady, UNDER_LOAD)) for n in range(2)]
    every = [*records, *answered, *loads]
    (table,) = page_of(every).tables
    declared = [each.group for each in columns(table) if each in shown_columns(table)]
    groups = list(dict.fromkeys(declared))
    assert {"Quality", "Tasks", "Speed", "Serving"} <= set(groups)
    assert len(groups) < len(list(groupby(declared))), "some are declared apart"
    page = html(every)
    assert re.findall(r"data-group[^>]*>([^<]+)</button>", page) == groups
    assert re.findall(r'scope="colgroup">([^<]+)</th>', page)[: len(groups)] == groups


def steady(level: float, request: int, process: int) -> tuple[float, float]:
    """To a request's first token and between its tokens (s)."""
    return 0.01 * request, 0.01 + 0.001 * request


def test_plotly_is_embedded_once(records: list[RunRecord]) -> None:
    assert html(records * 2).count("* plotly.js v") == 1


def test_no_inline_handlers(records: list[RunRecord]) -> None:
    names = {name for _, attributes in Page(html(records)).elements for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_every_figure_has_a_text_alternative(records: list[RunRecord]) -> None:
    """The table below a figure names every variant that is drawn, and the figure's label points to it."""
    page = Page(html(records))
    drawn = {str(found["data-figure"]): found for _, found in page.elements if "data-figure" in found}
    assert [name.removeprefix("figure-1-") for name in drawn] == [
        "divergence-size-speed",
        "perplexity-size",
        "divergence-speed",
        "stored-bytes",
        "running-memory",
        "speed-grid",
        "divergence-by-position",
        "divergence-by-confidence",
        "front-probability",
        "bits-per-weight",
        "cost-of-quantizing",
    ]
    assert all(each["role"] == "img" and "as a table" in str(each["aria-label"]) for each in drawn.values())
    (table,) = page_of(records).tables
    assert len(plots_of(table)) == len(drawn)
    for figure in plots_of(table):
        assert len({len(line) for line in (figure.head, *figure.rows)}) == 1
        assert any(line[0] == "gptq 4-bit g64" for line in figure.rows), figure.name


def test_scores_of_tasks_are_drawn_beside_the_baseline_s(answered: list[RunRecord]) -> None:
    (table,) = page_of(answered).tables
    drawn = next(figure for figure in plots_of(table) if figure.name == "tasks")
    plot = json.loads(drawn.json)
    assert [row[0] for row in drawn.rows] == [row.label for row in table.rows if not row.is_baseline]
    assert sorted(plot["data"][0]["x"]) == pytest.approx([51, 54, 57])
    assert [line["x0"] for line in plot["layout"]["shapes"]] == pytest.approx([60])


def test_the_page_says_what_must_be_said(records: list[RunRecord]) -> None:
    text = Page(html(records)).text
    answer = default_answer(page_of(records).tables[0])
    assert answer is not None
    for words in (
        "natively quantized reference: Q4_1, degridded",
        answer.question,
        answer.short,
        *answer.facts,
        "the baseline against itself: at another batch size 1.89e−09, in another dtype 1.89e−06 nat per token.",
        "context 512",
        "quantize: killed: more than 8 GiB of memory",
        "RuntimeError: int4 weight-only needs CUDA of sm_80 or newer",
        "qharness run smollm2-cpu",
        "torch 2.13.0",
        "AMD EPYC 9B14",
        "2 runs without figures",
    ):
        assert words in text


def test_a_recipe_that_is_built_in_is_run_by_its_name_and_another_by_its_file(records: list[RunRecord]) -> None:
    assert page_of(records).commands[0] == "qharness run smollm2-cpu"
    own = [replace(record, spec=replace(record.spec, recipe="my own")) for record in records]
    assert page_of(own).commands == ("qharness run 'my own.yaml'", "qharness report 'results/my own'")


def test_a_native_reference_is_said_without_a_label(bench: Any, none: Any) -> None:
    for render in (html, markdown, csv_text):
        assert "natively quantized reference: Q4_1" in render([bench.quality(none)]).replace("\\", "")


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_record_adds_no_element(word: str, records: list[RunRecord], hostile: Spoil) -> None:
    safe, spoilt = Page(html(records)), Page(html(hostile(records, word)))
    scripts = [tag for tag, _ in safe.elements].count("script")
    assert [tag for tag, _ in spoilt.elements].count("script") == scripts
    assert "img" not in {tag for tag, _ in spoilt.elements}
    assert not [name for _, attributes in spoilt.elements for name in attributes if name.startswith("on")]
    assert word in spoilt.text.replace("  ", " ")


@pytest.mark.parametrize("word", ["<b>bold</b>", '<a href="https://example.org">x</a>'])
def test_a_hostile_label_marks_nothing_up_in_a_figure(word: str, records: list[RunRecord], hostile: Spoil) -> None:
    """plotly takes some HTML in its texts; none of it may come from a record."""
    drawn = list(figures_of(Page(html(hostile(records, word)))))
    escaped = word.split(">")[0].replace("<", "&lt;").replace('"', "&#34;")
    assert sum(escaped in json.dumps(figure).replace("&quot;", "&#34;") for figure in drawn) > 5  # shown, as text
    for figure in drawn:
        assert word not in json.dumps(figure).replace('\\"', '"')
        assert word.split(">")[0] + ">" not in json.dumps(figure).replace('\\"', '"').replace("<b>&lt;", "")


@pytest.mark.parametrize("word", HOSTILE)
def test_a_hostile_record_in_markdown(word: str, records: list[RunRecord], hostile: Spoil) -> None:
    text = markdown(hostile(records, word))
    outside = re.sub(r"```sh.*?```", "", text, flags=re.DOTALL)
    assert "<script" not in outside
    assert "<img" not in outside


def test_markdown_escapes_what_would_leave_a_cell() -> None:
    assert escape("a|b\nc [x](y) `z` *w* _v_ in_word") == r"a\|b c \[x\](y) \`z\` \*w\* \_v\_ in_word"


def test_csv_has_a_line_per_variant_and_holds_no_formula(records: list[RunRecord], hostile: Spoil) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(hostile(records, '=HYPERLINK("x")')))))
    assert len(lines) == 14
    assert not [cell for line in lines for cell in line.values() if cell.startswith("=")]


def test_csv_of_two_protocols_names_each(bench: Any, none: Any) -> None:
    longer = replace(bench, context=1024)
    lines = list(csv.DictReader(io.StringIO(csv_text([bench.quality(none), longer.quality(none)]))))
    assert len({line["perplexity_protocol"] for line in lines}) == 2


def test_a_page_of_two_protocols_has_two_tables(bench: Any, none: Any) -> None:
    longer = replace(bench, context=1024)
    page = Page(html([bench.quality(none), longer.quality(none)]))
    assert len([tag for tag, attributes in page.elements if "data-sortable" in attributes]) == 2


def test_tables_of_one_model_are_called_by_what_tells_them_apart(bench: Any, none: Any) -> None:
    longer = replace(bench, context=1024)
    records = [bench.quality(none), longer.quality(none)]
    assert page_of(records).headings == ("SmolLM2-135M · context 512", "SmolLM2-135M · context 1024")
    assert "SmolLM2-135M · context 1024" in Page(html(records)).text
    assert "\n## SmolLM2-135M · context 1024\n" in markdown_page.markdown(page_of(records))
    assert page_of(records[:1]).headings == ("SmolLM2-135M",)
    elsewhere = replace(bench, hardware="another machine").quality(none)
    assert page_of([records[0], elsewhere]).headings[1].startswith("SmolLM2-135M · another machine")


def test_a_ruined_variant_does_not_ruin_the_page(bench: Any, none: Any, looks: Any) -> None:
    """Its perplexity is infinite: it has a row, sorts last, and has no place in that figure."""
    records = [
        bench.quality(none),
        *(bench.quality(look.method, look.bits, look.damage) for look in looks[:3]),
    ]
    records.append(bench.quality(looks[9].method, 2.5, 900.0))
    page = Page(html(records))
    assert "∞" in page.text
    assert any(attributes.get("data-sort") == "Infinity" for _, attributes in page.elements)
    assert "Infinity" not in json.dumps(list(figures_of(page)))
