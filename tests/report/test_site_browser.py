"""The site in a real browser: search, and two rows side by side, from a folder and without a request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from run_specs import changed

from harness.api.bundle import bundle
from harness.api.site import write_site
from harness.core.record import Failure, Outcome
from harness.storage.reading import read_records
from harness.storage.store import Store

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.thorough,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)"),
]
WINDOWS = ({"width": 1440, "height": 900}, {"width": 390, "height": 844})
EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A title that is hostile, and three sweeps of one model: a bundle, a copy of what is in it, and another machine's,
    of which one run failed and one record is damaged.
    """
    root = tmp_path_factory.mktemp("site")
    theirs = bundle(EXAMPLE, root / "theirs.qh.zip").path
    shutil.copytree(EXAMPLE, root / "nightly")
    failed = Outcome("failed", Failure("load", "RuntimeError", "no kernel", "a log\nof two lines"))
    *others, last, damaged = read_records(EXAMPLE)
    for record in (*others, replace(last, outcome=failed), damaged):
        elsewhere = changed(record.spec, hardware="another CPU, 64 cores")
        saved = Store(root / "elsewhere").save(replace(record, spec=elsewhere, session="elsewhere"))
    saved.write_text("{")
    return write_site([theirs, root / "nightly", root / "elsewhere"], root / "site", "<script>alert(1)</script>").index


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(300_000)  # milliseconds: a busy machine is slow
        opened.complaints = []
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.on("dialog", lambda dialog: (opened.complaints.append("a dialog"), dialog.dismiss()))
        opened.on("request", lambda request: request.url.startswith("file:") or opened.complaints.append(request.url))
        yield opened
        browser.close()


def test_words_find_a_sweep_by_keyboard(page: Any, site: Path) -> None:
    page.goto(site.as_uri())
    assert page.inner_text("[data-search] output") == "1 of 1 model, 3 of 3 sweeps"
    page.focus("[data-search] input")
    page.keyboard.type("nf4 nightly")
    assert page.locator("[data-found=sweep] tbody tr:visible th").all_inner_texts() == ["nightly"]
    assert page.inner_text("[data-search] output") == "1 of 1 model, 1 of 3 sweeps"
    page.keyboard.press("Tab")
    page.locator("[data-found=sweep] tbody tr:visible th a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/sweeps/nightly.html")
    assert page.locator("nav[aria-label=Site] a").first.inner_text() == "<script>alert(1)</script>"
    assert page.complaints == []


def compared(page: Any, one: str, other: str) -> dict[str, list[str]]:
    """The cells of each figure of two rows, by its heading. A row is known by the ends of its name."""
    names = page.locator("select[data-side='0'] option").all_inner_texts()
    for side, row in enumerate((one, other)):
        first, last = row.split(" … ")
        (place,) = (place for place, name in enumerate(names) if name.startswith(f"{first} ") and name.endswith(last))
        page.select_option(f"select[data-side='{side}']", str(place))
    heading = "each => each.firstChild.textContent.trim()"  # the key stands beside it
    return {
        row.locator("th").evaluate(heading): row.locator("td").all_inner_texts()
        for row in page.locator("[data-result] tbody tr").all()
    }


def test_two_rows_are_compared_where_they_are_comparable(page: Any, site: Path) -> None:
    (model,) = (site.parent / "models").glob("*.html")
    page.goto(model.as_uri())
    equal = compared(page, "bnb-nf4 … theirs", "bnb-nf4 … nightly")
    assert {cells[2] for cells in equal.values()} == {"the same"}
    unlike = compared(page, "bnb-nf4 … nightly", "none … nightly")
    assert unlike["Quality: Perplexity"][3].startswith(("the intervals", "not every"))
    assert unlike["Size: Weights"][3] == "counted exactly: worse", "a size has no interval by nature"
    assert not any("incomparable" in cells[3] for cells in unlike.values())
    elsewhere = compared(page, "bnb-nf4 … nightly", "bnb-nf4 … elsewhere")
    assert elsewhere["Quality: Perplexity"][2] == "the same", "it depends on no machine"
    apart = {heading: cells for heading, cells in elsewhere.items() if "incomparable" in cells[3]}
    assert any("decode" in heading.lower() for heading in apart), apart.keys()
    for _, theirs, change, words in apart.values():
        assert theirs != "—"
        assert change == ""
        assert words.startswith("incomparable: hardware: ")
        assert "another CPU, 64 cores" in words
    data = page.evaluate("JSON.parse(document.querySelector('[data-rows]').textContent)")
    assert all(figure[-1] in data["conditions"] for row in data["rows"] for figure in row["figures"])
    assert page.complaints == []


def test_variants_that_are_collapsed_are_printed(page: Any, site: Path) -> None:
    (model,) = (site.parent / "models").glob("*.html")
    page.goto(model.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = false; })")
    shown = "all => all.map(each => each.checkVisibility())"
    variants, sources = "main details > .scroll", "details details > ul"
    assert set(page.eval_on_selector_all(variants, shown)) == {False}
    page.emulate_media(media="print")
    assert set(page.eval_on_selector_all(variants, shown)) == {True}
    assert set(page.eval_on_selector_all(sources, shown)) == {False}, "what each sweep measured stays collapsed"
    page.emulate_media(media="screen")


def test_axe_finds_nothing_to_mend_and_a_phone_scrolls_in_one_direction(page: Any, site: Path) -> None:
    """Rules of axe-core, as Deque publishes it, on every kind of page, light and dark, with everything open."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, of the extra 'dev'")
    axe = (files(package.__name__) / "axe.min.js").read_text(encoding="utf-8")
    context = page.context.browser.new_context(bypass_csp=True)
    opened = context.new_page()
    sweeps = site.parent / "sweeps"
    for path in (site, *(site.parent / "models").glob("*.html"), sweeps / "theirs.html", sweeps / "elsewhere.html"):
        opened.goto(path.as_uri())
        opened.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        opened.evaluate(axe)
        for window in WINDOWS:
            opened.set_viewport_size(window)
            assert opened.evaluate("document.documentElement.scrollWidth") == window["width"], path
            for look in ("light", "dark"):
                opened.emulate_media(color_scheme=look)
                found = opened.evaluate("axe.run().then(found => found.violations)")
                faults = [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found]
                assert faults == [], (path, window, look)
    context.close()
