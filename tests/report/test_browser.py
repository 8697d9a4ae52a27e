"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cache_records import cache_grid
from hostile import CORPUS, spoiled
from run_specs import changed
from served_records import RTN, Times, baseline, served_record
from thorough import all_thorough_but
from written_records import faulty_sweep

from harness.core.label import Fact, Label
from harness.core.record import Measurement, Outcome, RunRecord
from harness.report import write_report
from harness.report.choice import MOST_ROWS
from harness.report.renderers import html
from harness.report.templating import source
from harness.tasks.evaluate import VERSION

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy(minutes=1.5),
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)"),
]

WORDS = " ".join(
    (
        "<script>alert(1)</script>",
        "x</script><script>alert(2)</script>",
        '"><img src=x onerror=alert(3)>',
        "</style><svg onload=alert(4)>",
        "javascript:alert(5)",
    )
)
SHOWN = "tbody:last-of-type tr"
PATIENCE_S = 300.0
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@dataclass
class Opened:
    """A page that was opened, and all that it complained of or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """The variants that are shown, from the top; what stands beside their names left out."""
        found: list[str] = self.page.eval_on_selector_all(
            f"[data-sortable] {SHOWN} > th", "all => all.map(each => each.dataset.sort)"
        )
        return found

    def column(self, heading: str) -> list[str]:
        """The ``data-sort`` of that column's cells, from the top."""
        found: list[str] = self.page.evaluate(
            """([heading, rows]) => {
              const table = document.querySelector("[data-sortable]");
              const heads = [...table.tHead.rows[1].cells];
              const at = heads.findIndex(head => head.textContent.trim().startsWith(heading));
              return [...table.querySelectorAll(rows)].map(row => row.cells[at].dataset.sort ?? "");
            }""",
            [heading, SHOWN],
        )
        return found

    def see_all(self) -> None:
        """Scrolls to each plot in turn, so that all are drawn."""
        for plot in self.page.locator("[data-figure]").all():
            plot.evaluate("each => each.scrollIntoView({behavior: 'instant', block: 'center'})")
        self.await_plots()

    def await_plots(self, within: str = "body") -> None:
        """The page's policy forbids what Playwright's own waiting would do."""
        self.until(lambda: not self.page.locator(f"{within} [data-figure]:not(:has(.main-svg))").count())

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until the page is so, however slow the machine is."""
        ends_s = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < ends_s, "the page does not become so"
            self.page.wait_for_timeout(50)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def few(bench: Any, looks: Any) -> list[RunRecord]:
    """A sweep of three variants and two that failed."""
    found: list[RunRecord] = bench.sweep(looks[:3], repetitions=1)
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[RunRecord]], Path]:
    """The page of some records, made once for equal ones and for each change of what decides its shape."""
    pages: list[tuple[object, Path]] = []

    def find(records: Sequence[RunRecord]) -> Path:
        limits = {name: value for name, value in vars(html).items() if name.isupper()}
        wanted = (list(records), limits)
        for known, path in pages:
            if known == wanted:
                return path
        (path,) = write_report(records, tmp_path_factory.mktemp("page"), ("html",))
        pages.append((wanted, path))
        return path

    return find


@pytest.fixture
def open_page(browser: Any, written: Callable[[Sequence[RunRecord]], Path]) -> Iterator[Open]:
    """Opens the report of some records; no request leaves the page's own file."""
    contexts = []

    def opened(records: Sequence[RunRecord], **options: Any) -> Opened:
        path = written(records)
        context = browser.new_context(**options)
        context.set_default_timeout(1000 * PATIENCE_S)
        contexts.append(context)
        found = Opened(context.new_page())

        def answer(route: Any) -> None:
            if route.request.url.partition("#")[0] == path.as_uri():
                route.continue_()
            else:
                found.requests.append(route.request.url)
                route.abort()

        context.route("**/*", answer)
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append("a dialog opened"), dialog.dismiss()))
        found.page.goto(path.as_uri())
        return found

    yield opened
    for context in contexts:
        context.close()


def _served() -> list[RunRecord]:
    """A baseline and a variant that answers more slowly, each measured by two processes."""

    def times(ttft_s: float, gap_s: float) -> Times:
        return lambda level, request, repetition: (ttft_s * level + 0.001 * request, gap_s)

    return [
        *(baseline(repetition, times(0.01, 0.02)) for repetition in range(2)),
        *(served_record(RTN, repetition, times(0.02, 0.03)) for repetition in range(2)),
    ]


def _tool_calls(bench: Any, none: Any, looks: Any) -> list[RunRecord]:
    """A baseline that calls the right tool in nine cases of ten, and a variant that breaks with more tools."""

    def asked(method: Any, tools: int, right: int) -> RunRecord:
        spec = bench.spec("task", method)
        task = f"tool-calls-{tools:02}"
        protocol = {"task": task, "fewshot": 0, "filter": "none", "prompts_sha256": "p", "chat_template": "own"}
        found = [
            Measurement(
                "task_score",
                VERSION,
                "score",
                "higher",
                "paired",
                tuple(float(number < right + more) for number in range(100)),
                {**protocol, "score": score, "aggregation": "mean"},
                item_ids=tuple(f"{task}:{number}" for number in range(100)),
            )
            for score, more in (("valid_json", 9), ("valid_schema", 6), ("right_tool", 4), ("exact_match", 0))
        ]
        spec = changed(spec, task=replace(spec.job.task, name=task))
        record: RunRecord = bench.record(spec, Outcome("ok", measurements=tuple(found)))
        return record

    numbers = (1, 2, 4, 8)
    broken = looks[0].method
    return [
        *(asked(none, tools, 90) for tools in numbers),
        *(asked(broken, tools, 90 - 8 * tools) for tools in numbers),
    ]


@dataclass(frozen=True)
class Kind:
    """A kind of sweep: its records, a plot that only it has, and how many plots the page has at least.

    Without sizes it asks for no smallest variant, and has no answer.
    """

    records: list[RunRecord]
    plot: str
    plots: int
    has_answer: bool = True


KINDS = ("quality and tasks", "serving", "written answers", "caches", "tool calls")
LIKE_ANOTHER = ("caches", "tool calls")
"""Of KINDS, those whose page is made of the same elements as another's: only their plots differ."""


@pytest.fixture(params=all_thorough_but(["quality and tasks"], KINDS))
def kind(request: Any, bench: Any, none: Any, looks: Any) -> Kind:
    match request.param:
        case "quality and tasks":
            records, answered = (request.getfixturevalue(name) for name in ("records", "answered"))
            return Kind([*records, *answered], "Scores on tasks", 10)
        case "serving":
            return Kind(_served(), "Latency against throughput", 2)
        case "written answers":
            return Kind(
                faulty_sweep(bench, none), "What happened in answers: gsm8k 0-shot, 4 samples at temperature 0.6", 8
            )
        case "caches":
            return Kind(cache_grid(bench, none), "KL by bits of weights and key-value cache", 6)
    return Kind(_tool_calls(bench, none, looks), "Tool calls: valid JSON by number of tools", 2, has_answer=False)


def test_the_page_draws_every_plot_and_complains_of_nothing(open_page: Open, kind: Kind) -> None:
    opened = open_page(kind.records, viewport={"width": 1440, "height": 900})
    assert opened.page.title() == f"{kind.records[-1].spec.model.label}: quantization report"
    answers = opened.page.locator(".answer")
    assert answers.count() == kind.has_answer
    for box in (each.bounding_box() for each in answers.all()):
        assert 0 <= box["y"] < box["y"] + box["height"] <= 900, "the answer is on the first screen"
    opened.see_all()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 1440
    assert opened.page.locator("[data-figure] .main-svg").count() >= kind.plots
    assert opened.page.get_by_role("heading", name=kind.plot).is_visible()
    assert (opened.complaints, opened.requests) == ([], [])


def test_a_click_sorts_and_another_turns_the_order(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records)
    head = opened.page.get_by_role("columnheader", name="KL mean")
    for order, back in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        known = [float(value) for value in opened.column("KL mean") if value]
        assert known == sorted(known, reverse=back)
        assert len(known) == 11
        assert opened.column("KL mean")[11:] == ["", ""], "what was not measured comes last"
    first = opened.page.locator("[data-sortable] tbody tr").first
    assert "baseline" in str(first.get_attribute("class"))
    assert opened.page.locator("[aria-sort]").count() == 1


@pytest.mark.thorough
def test_the_keyboard_sorts(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records)
    opened.page.get_by_label("Find").focus()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        if opened.page.evaluate("document.activeElement.matches('th button:not(th:first-child button)')"):
            break
    opened.page.keyboard.press("Enter")
    assert opened.page.locator("th[aria-sort=ascending]").inner_text().strip() == "Perplexity"
    values = [float(value) for value in opened.column("Perplexity") if value]
    assert values == sorted(values)


def test_text_and_status_filter(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records)
    said = opened.page.get_by_role("status")
    assert said.inner_text() == "13 of 13 variants"
    opened.page.get_by_label("Find").fill("RTN 4-bit")
    assert opened.names() == ["rtn 4-bit g32", "rtn 4-bit g64"]
    assert said.inner_text() == "2 of 13 variants"
    opened.page.get_by_label("Find").fill("equivalent")
    assert "rtn 8-bit g64" in opened.names()
    assert "rtn 2-bit g64" not in opened.names()
    opened.page.get_by_label("Find").fill("")
    opened.page.get_by_label("Status").select_option("unsupported")
    assert opened.names() == ["torchao int4-weight-only"]
    assert opened.page.locator("tr.baseline").first.is_visible()


@pytest.mark.thorough
def test_a_label_filters(open_page: Open, bench: Any, none: Any, looks: Any) -> None:
    marked = bench.quality(looks[0].method, 8, 0.1)
    marked = replace(marked, outcome=replace(marked.outcome, labels=(Label("dequantized_on_load"),)))
    opened = open_page([bench.quality(none), marked, bench.quality(looks[1].method, 4, 0.2)])
    opened.page.get_by_label("Label").select_option(Label("dequantized_on_load").sentence)
    assert opened.names() == ["bnb-int8"]


@pytest.mark.thorough
def test_key_columns_are_shown_first_and_the_others_of_a_group_on_demand(
    open_page: Open, records: list[RunRecord]
) -> None:
    opened = open_page(records)
    heads = opened.page.locator("[data-sortable] thead tr:last-child th:visible")
    key = ["Variant", "Perplexity", "Δ perplexity", "KL mean", "Weights", "Bits per weight", "Decode"]
    assert [head.split("\n")[0] for head in heads.all_inner_texts()] == [*key, "Decode vs baseline"]
    group = opened.page.locator("[data-sortable] thead tr.groups th", has_text="Peak memory")
    cell = opened.page.locator("[data-sortable] thead button", has_text="loading")
    chip = opened.page.get_by_role("group", name="More columns").get_by_role("button", name="Peak memory")
    assert not group.is_visible()
    assert not cell.is_visible()
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert group.is_visible()
    assert cell.is_visible()
    chip.click()
    assert not cell.is_visible()
    opened.page.get_by_role("group", name="More columns").get_by_role("button", name="Quality").click()
    assert opened.page.locator("[data-sortable] thead button", has_text="Top-1").is_visible()
    assert opened.page.locator("[data-sortable] thead button", has_text="KL mean").is_visible()


@pytest.mark.thorough
def test_the_address_of_a_page_shows_others_the_same_rows_and_columns(
    open_page: Open, records: list[RunRecord]
) -> None:
    opened = open_page(records)
    page = opened.page
    page.get_by_label("Find").fill("rtn 4-bit")
    page.get_by_role("group", name="More columns").get_by_role("button", name="Peak memory").click()
    for _ in range(2):
        page.get_by_role("columnheader", name="Variant").get_by_role("button").click()
    assert opened.names() == ["rtn 4-bit g64", "rtn 4-bit g32"]
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    assert opened.names() == ["rtn 4-bit g64", "rtn 4-bit g32"]
    assert page.get_by_label("Find").input_value() == "rtn 4-bit"
    assert page.locator("th[aria-sort=descending]").inner_text().strip() == "Variant"
    assert page.locator("[data-sortable] thead button", has_text="loading").is_visible()
    page.goto("about:blank")
    page.goto(address.partition("#")[0])
    assert len(opened.names()) == 13
    page.goto("about:blank")
    page.goto(address.partition("#")[0] + "#table-1.sort=99&table-1.status=none&table-1.columns=x&model-1")
    assert len(opened.names()) == 13
    assert opened.complaints == []


@pytest.mark.thorough
def test_one_screen_answers_the_question(open_page: Open, records: list[RunRecord]) -> None:
    """The verdict, three cards and the main plot are above the fold of a laptop, and the table begins there."""
    opened = open_page(records, viewport={"width": 1440, "height": 900})
    opened.await_plots(".first")
    shown = [".answer", ".cards li:nth-child(3)", ".first .main-svg >> nth=0", ".tools"]
    for part in shown:
        box = opened.page.locator(part).bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] <= 900, part
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 1440


@pytest.mark.thorough
@pytest.mark.parametrize("count", [40, 41])
def test_a_table_of_41_variants_scrolls_in_a_box_of_its_own_and_one_of_40_does_not(
    open_page: Open, bench: Any, none: Any, looks: Any, count: int
) -> None:
    variants = [
        bench.quality(replace(looks[0].method, label=f"method-{number}", params={"n": number}), 4.5, 0.1 + number)
        for number in range(count)
    ]
    opened = open_page([bench.quality(none), *variants], viewport={"width": 1440, "height": 900})
    assert len(opened.names()) == count == MOST_ROWS + (count > MOST_ROWS)
    box = opened.page.locator("[data-trade-off] .scroll", has=opened.page.locator("[data-sortable]"))
    hidden = box.evaluate("each => each.scrollHeight - each.clientHeight")
    assert (hidden > 0) == (count > MOST_ROWS)


@pytest.mark.thorough
def test_rows_have_two_lines_at_most_and_no_box_to_scroll_in(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records, viewport={"width": 1440, "height": 900})
    line, tallest = opened.page.evaluate(
        """() => {
          const table = document.querySelector("[data-sortable]");
          const rows = [...table.tBodies].flatMap(body => [...body.rows]);
          return [parseFloat(getComputedStyle(table).lineHeight), Math.max(...rows.map(row => row.offsetHeight))];
        }"""
    )
    assert tallest < 3 * line
    box = opened.page.locator("[data-trade-off] .scroll", has=opened.page.locator("[data-sortable]"))
    sizes = "box => [box.scrollHeight - box.clientHeight, box.scrollWidth - box.clientWidth]"
    assert box.evaluate(sizes) == [0, 0]


@pytest.mark.thorough
def test_numbers_of_a_column_are_aligned_at_the_point(open_page: Open, records: list[RunRecord]) -> None:
    """The right edge of the digits before the point, or of a whole number, is the same in every row."""
    opened = open_page(records)
    edges = opened.page.evaluate(
        """() => [3, 4, 7].map(column => [...document.querySelectorAll("[data-sortable] tbody tr")].flatMap(row => {
          const text = row.cells[column - 1].querySelector("span").firstChild, range = document.createRange();
          if (!/^[+−]?\\d+(\\.\\d+)?$/.test(text.data)) return [];
          range.setStart(text, 0);
          range.setEnd(text, text.data.split(".")[0].length);
          return [range.getBoundingClientRect().right];
        }))"""
    )
    for column in edges:
        assert len(column) >= 10
        assert max(column) - min(column) < 0.6


@pytest.mark.thorough
def test_an_interval_is_a_bar_beside_its_number(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records)
    bars = opened.page.locator("[data-sortable] tbody:last-of-type td:nth-child(3) i")
    found = [each.get_attribute("style") for each in bars.all()]
    assert len(found) == 13
    assert found[11:] == [None, None], "what was not measured has none"
    ends = [[int(part.split(":")[1]) for part in style.split(";")] for style in found[:11]]
    assert all(0 <= low <= at <= high <= 100 for low, at, high in ends)


@pytest.mark.thorough
def test_a_note_is_a_numbered_footnote(open_page: Open, bench: Any, none: Any, looks: Any) -> None:
    marked = bench.quality(looks[0].method, 8, 0.1)
    marked = replace(marked, outcome=replace(marked.outcome, labels=(Label("dequantized_on_load"),)))
    opened = open_page([bench.quality(none), marked])
    mark, number = opened.page.locator(f"[data-sortable] {SHOWN} > th sup").inner_text().split()
    assert mark == "⚠"
    assert (
        opened.page.locator("[data-notes] li").nth(int(number) - 1).inner_text()
        == Label("dequantized_on_load").sentence
    )
    opened.page.get_by_label("Find").fill("dense matrices")
    assert opened.names() == ["bnb-int8"], "a search finds the words of footnotes"


@pytest.fixture
def many(bench: Any, none: Any, looks: Any) -> list[RunRecord]:
    """A sweep of 230 variants, more than the page has as elements; some have labels, facts, speeds, or failed."""
    found = bench.sweep(looks, repetitions=2)
    for number in range(230 - len(looks) - 2):
        method = replace(looks[0].method, label=f"method-{number}", params={"n": number})
        record = bench.quality(method, 4 + number * 0.618 % 4, 0.1 + number * 0.414 % 1)
        labels = (Label("dequantized_on_load"),) if number % 7 == 0 else ()
        facts = (Fact("noted", {"name": "kernel", "value": f"{number % 3}"}),)
        found.append(replace(record, outcome=replace(record.outcome, labels=labels, facts=facts)))
    return found


@pytest.mark.thorough
def test_a_large_table_is_drawn_as_it_scrolls(open_page: Open, many: list[RunRecord]) -> None:
    opened = open_page(many)
    said = opened.page.get_by_role("status")
    assert len(opened.names()) == 100
    assert said.inner_text() == "230 of 230 variants, the first 100 shown"

    def scrolled_to_the_end() -> bool:
        opened.page.evaluate("document.querySelector('.scroll.long').scrollBy({top: 3000, behavior: 'instant'})")
        return str(said.inner_text()) == "230 of 230 variants"

    opened.until(scrolled_to_the_end)
    assert len(opened.names()) == len(set(opened.names())) == 230
    assert not opened.page.get_by_role("button", name="Show all").is_visible()
    assert opened.complaints == []


@pytest.mark.thorough
def test_a_click_draws_no_more_rows_than_a_browser_lays_out_at_once(
    open_page: Open, many: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fewer(name: str) -> str:
        return source(name).replace("AT_ONCE = 5000", "AT_ONCE = 110")

    assert fewer("table.js") != source("table.js")
    monkeypatch.setattr("harness.report.renderers.html.source", fewer)
    opened = open_page(many[:-1])  # no other test's page
    opened.page.get_by_role("button", name="Show 110 more").click()
    assert len(opened.names()) == 210
    opened.page.get_by_role("columnheader", name="KL mean").get_by_role("button").click()
    assert len(opened.names()) == 110
    opened.page.get_by_role("button", name="Show 110 more").click()
    opened.page.get_by_role("button", name="Show all 229").click()
    assert len(opened.names()) == len(set(opened.names())) == 229
    assert opened.complaints == []


@pytest.mark.thorough
def test_a_large_table_sorts_and_filters_by_the_values_of_the_csv_file(
    open_page: Open, many: list[RunRecord], tmp_path: Path
) -> None:
    (path,) = write_report(many, tmp_path / "csv", ("csv",))
    lines = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    kl = {line["variant"]: line["kl_mean_nat"] for line in lines if line["is_baseline"] == "false"}
    opened = open_page(many)
    opened.page.get_by_role("button", name="Show all 230").click()
    for turn in (1, -1):
        opened.page.get_by_role("columnheader", name="KL mean").get_by_role("button").click()
        shown = dict(zip(opened.names(), opened.column("KL mean"), strict=True))
        assert shown.keys() == kl.keys()
        assert {name: float(value) for name, value in shown.items() if value} == {
            name: float(value) for name, value in kl.items() if value
        }
        known = [float(value) for value in shown.values() if value]
        assert known == sorted(known, reverse=turn < 0)
    labelled = {line["variant"] for line in lines if "dequantized_on_load" in line["label_codes"]}
    opened.page.get_by_label("Label").select_option(Label("dequantized_on_load").sentence)
    assert set(opened.names()) == labelled
    opened.page.get_by_label("Label").select_option("any")
    opened.page.get_by_label("Find").fill("METHOD-117")
    assert opened.names() == ["method-117"]
    opened.page.get_by_label("Find").fill("")
    opened.page.get_by_label("Status").select_option("unsupported")
    assert set(opened.names()) == {line["variant"] for line in lines if line["status"] == "unsupported"}
    assert opened.complaints == []


@pytest.mark.thorough
def test_a_row_drawn_from_data_looks_like_one_that_the_page_has(
    open_page: Open, many: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name by name: what the script draws, and what the template writes; footnotes by what they say."""
    rows = """() => {
      const data = document.querySelector("[data-rows]"), listed = document.querySelectorAll("[data-notes] li");
      const notes = data ? JSON.parse(data.textContent).notes : [...listed].map(each => each.textContent);
      const told = numbers => numbers.replace(/\\d+/g, number => notes[number - 1]);
      return Object.fromEntries([...document.querySelectorAll("[data-sortable] tbody:last-of-type tr")].map(row => {
        for (const mark of row.querySelectorAll("sup")) mark.textContent = told(mark.textContent);
        if (row.dataset.labels) row.dataset.labels = told(row.dataset.labels);
        for (const cell of row.querySelectorAll("td[data-sort]")) cell.dataset.sort = Number(cell.dataset.sort);
        return [row.cells[0].dataset.sort, row.outerHTML.replace(/\\s+/g, " ").replace(/ ?(<[^>]*>) ?/g, "$1")];
      }));
    }"""
    facts = """() => {
      document.querySelector("[data-facts]").open = true;
      return new Promise(done => setTimeout(() => done(document.querySelector("[data-facts] dl").innerText), 200));
    }"""
    opened = open_page(many)
    opened.page.get_by_role("button", name="Show all 230").click()
    drawn, told = opened.page.evaluate(rows), opened.page.evaluate(facts)
    monkeypatch.setattr("harness.report.renderers.html.MOST_STATIC", 1000)
    plain = open_page(many, java_script_enabled=True)
    assert plain.page.locator("[data-rows]").count() == 0
    written = plain.page.evaluate(rows)
    assert list(drawn) == list(written)
    for name in written:
        assert drawn[name].replace(' class=""', "") == written[name].replace(' class=""', "")
    assert told == plain.page.evaluate(facts)
    assert "method-200" in told


@pytest.mark.thorough
@pytest.mark.parametrize("most_open", [0, 100], ids=["closed", "open"])
def test_every_mark_of_a_large_table_has_its_footnote(
    open_page: Open, many: list[RunRecord], monkeypatch: pytest.MonkeyPatch, most_open: int
) -> None:
    """Those too that no row has which the page has as an element."""
    monkeypatch.setattr("harness.report.renderers.html.MOST_OPEN_NOTES", most_open)
    monkeypatch.setattr("harness.report.renderers.html.FIRST_ROWS", 1)
    opened = open_page(many)
    opened.page.get_by_role("button", name="Show all 230").click()
    notes = opened.page.locator("[data-notes]")
    if not most_open:
        notes.locator("summary").click()
    marks = " ".join(opened.page.locator("[data-sortable] sup").all_inner_texts()).replace("⚠", "").split()
    known = opened.page.evaluate("JSON.parse(document.querySelector('[data-rows]').textContent).notes")
    assert max(map(int, marks)) == len(known) > 10
    opened.until(lambda: notes.locator("li").all_inner_texts() == known)


@pytest.mark.thorough
def test_a_large_table_without_scripts_has_its_first_rows(open_page: Open, many: list[RunRecord]) -> None:
    opened = open_page(many, java_script_enabled=False)
    assert opened.page.locator("[data-sortable] tbody:last-of-type tr:visible").count() == 100
    assert opened.page.get_by_text("The first 100 of 230 variants").is_visible()
    assert opened.page.get_by_role("link", name="report.csv").get_attribute("href") == "report.csv"


@pytest.mark.thorough
def test_a_hostile_large_table_runs_nothing(open_page: Open, many: list[RunRecord], hostile: Any) -> None:
    opened = open_page(hostile(many, WORDS))
    opened.page.get_by_role("button", name="Show all 230").click()
    assert len(opened.names()) == 230
    assert (opened.complaints, opened.requests) == ([], [])
    assert opened.page.locator("[data-sortable] img, [data-sortable] svg, [data-sortable] script").count() == 0


@pytest.mark.thorough
def test_the_baseline_stays_below_the_head(open_page: Open, records: list[RunRecord]) -> None:
    opened = open_page(records, viewport={"width": 1440, "height": 500})
    top, gap = opened.page.evaluate(
        """async () => {
          const table = document.querySelector("[data-sortable]");
          scrollTo({top: scrollY + table.getBoundingClientRect().top + 200, behavior: "instant"});
          await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
          const base = table.querySelector("tr.baseline td").getBoundingClientRect();
          const head = table.tHead.getBoundingClientRect();
          return [head.top, base.top - head.bottom];
        }"""
    )
    assert top == pytest.approx(0, abs=1)
    assert gap == pytest.approx(0, abs=1.5)


def test_without_scripts_it_is_a_plain_table(open_page: Open, few: list[RunRecord]) -> None:
    opened = open_page(few, java_script_enabled=False)
    assert opened.page.locator("[data-sortable] tbody tr:visible").count() == 6
    assert not opened.page.locator(".tools").is_visible()
    assert opened.page.locator("[data-sortable] thead button", has_text="loading").is_visible()
    assert opened.page.get_by_text("The plots need JavaScript").is_visible()


def test_a_phone_scrolls_in_one_direction(open_page: Open, few: list[RunRecord]) -> None:
    opened = open_page(few, **PHONE)
    opened.see_all()
    for details in opened.page.locator("main > section details").all():
        details.evaluate("each => each.open = true")
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    wide = "each => each.closest('.scroll').scrollWidth > 390"
    assert opened.page.locator("[data-sortable]").evaluate(wide), "the table has its own box"


@pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=pytest.mark.slow if name in LIKE_ANOTHER else pytest.mark.thorough) for name in KINDS],
    indirect=True,
)
def test_axe_finds_nothing_to_mend_and_nothing_is_wider_than_a_phone(open_page: Open, kind: Kind) -> None:
    """Rules of axe-core, as Deque publishes it; with everything open that can be opened."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, of the extra 'dev'")
    axe = (files(package.__name__) / "axe.min.js").read_text(encoding="utf-8")
    opened = open_page(kind.records, bypass_csp=True)
    opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    for chip in opened.page.locator("[data-group]:visible").all():
        chip.click()
    opened.page.evaluate(axe)
    for window, look in product(({"width": 1440, "height": 900}, PHONE["viewport"]), ("light", "dark")):
        opened.page.set_viewport_size(window)
        opened.page.emulate_media(color_scheme=look)
        opened.see_all()
        found = opened.page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
        assert [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE["viewport"]["width"]


@pytest.mark.thorough
def test_dark_and_light_are_followed(open_page: Open, few: list[RunRecord]) -> None:
    def brightness(colour: str) -> float:
        return sum(float(part) for part in colour.strip("rgba()").split(",")[:3]) / 765

    opened = open_page(few, color_scheme="dark")
    opened.see_all()
    text = ".xtick text"
    colour = "each => getComputedStyle(each).fill"
    paper = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert brightness(paper) < 0.2
    assert brightness(opened.page.locator(text).first.evaluate(colour)) > 0.5
    opened.page.emulate_media(color_scheme="light")

    def is_dark_ink() -> bool:
        fill = opened.page.locator(text).first.evaluate(colour)
        return bool(fill) and brightness(fill) < 0.5  # while the plot is drawn anew, the old text has no colour

    opened.until(is_dark_ink)
    assert opened.complaints == []


@pytest.mark.thorough
def test_paper_gets_every_plot_in_dark_ink(open_page: Open, few: list[RunRecord]) -> None:
    opened = open_page(few, color_scheme="dark")
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    opened.await_plots()
    fill = opened.page.locator(".xtick text").first.evaluate("each => getComputedStyle(each).fill")
    assert fill == "rgb(0, 0, 0)"
    opened.page.set_viewport_size({"width": 1030, "height": 700})  # A4 across, within its margins, at 96 dpi
    opened.page.emulate_media(media="print", color_scheme="dark")
    table = opened.page.locator("[data-sortable]")
    assert table.bounding_box()["width"] <= 1030
    assert table.locator("th, td").first.evaluate("each => getComputedStyle(each).display") == "table-cell"
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not opened.page.locator(".tools").is_visible()
    beyond = """() => [...document.querySelectorAll("figure")].filter(figure =>
      figure.querySelector(".main-svg").getBoundingClientRect().right > figure.getBoundingClientRect().right).length"""
    assert opened.page.evaluate(beyond) == 0, "a plot is wider than its figure"
    opened.page.emulate_media(media="screen", color_scheme="dark")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    unlike = """() => [...document.querySelectorAll("[data-figure]")].filter(plot =>
      Math.abs(plot.querySelector(".main-svg").clientWidth - plot.clientWidth) > 1).length"""
    opened.until(lambda: opened.page.evaluate(unlike) == 0)  # no plot keeps the width that it has on paper
    assert opened.complaints == []


@pytest.mark.thorough
def test_paper_has_the_answer_beside_the_plot_whatever_sheet_the_printer_holds(
    open_page: Open, few: list[RunRecord]
) -> None:
    opened = open_page(few, viewport={"width": 816, "height": 1056})  # Letter, upright
    columns = "getComputedStyle(document.querySelector('.first')).gridTemplateColumns.split(' ').length"
    assert opened.page.evaluate(columns) == 1
    opened.page.emulate_media(media="print")
    assert opened.page.evaluate(columns) == 2


@pytest.mark.thorough
@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.slow) for start in (13, 26))])
def test_hostile_records_run_nothing_and_ask_for_nothing(open_page: Open, few: list[RunRecord], start: int) -> None:
    words = tuple(CORPUS.values())
    opened = open_page(spoiled(few, *words[start:], *words[:start]))
    opened.see_all()
    for plot in opened.page.locator("[data-figure]").all()[:3]:
        plot.hover()
    assert (opened.complaints, opened.requests) == ([], [])
    assert opened.page.locator("a:not([href^='#'])").count() == 0


def test_a_hostile_record_runs_nothing(open_page: Open, few: list[RunRecord], hostile: Any) -> None:
    opened = open_page(hostile(few, WORDS))
    opened.see_all()
    opened.page.locator("[data-figure]").first.hover()
    assert (opened.complaints, opened.requests) == ([], [])
    assert WORDS in opened.page.locator("h1").inner_text()
