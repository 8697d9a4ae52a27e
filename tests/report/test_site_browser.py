"""The site in a real browser: search, and two rows side by side, from a folder and without a request."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from harness.api.site import write_site

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra 'dev'")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt install chromium)"),
]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example twice: a title that is hostile, and two sweeps of one model."""
    root = tmp_path_factory.mktemp("site")
    shutil.copytree(EXAMPLE, root / "nightly")
    return write_site([EXAMPLE, root / "nightly"], root / "site", "<script>alert(1)</script>").index


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
    assert page.inner_text("[data-search] output") == "2 of 2 sweeps"
    page.focus("[data-search] input")
    page.keyboard.type("nf4 nightly")
    assert page.locator("[data-search] tbody tr:visible th").all_inner_texts() == ["nightly"]
    assert page.inner_text("[data-search] output") == "1 of 2 sweeps"
    page.keyboard.press("Tab")
    page.locator("[data-search] tbody tr:visible th a").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/sweeps/nightly.html")
    assert page.locator("nav[aria-label=Site] a").first.inner_text() == "<script>alert(1)</script>"
    assert page.complaints == []


def test_two_rows_are_compared_where_they_are_comparable(page: Any, site: Path) -> None:
    (model,) = (site.parent / "models").glob("*.html")
    page.goto(model.as_uri())
    names = page.locator("select[data-side='0'] option").all_inner_texts()
    same = [place for place, name in enumerate(names) if name.startswith("bnb-nf4 ")]
    other = next(place for place, name in enumerate(names) if not name.startswith("bnb-nf4 "))

    def lines(one: int, two: int) -> dict[str, list[str]]:
        page.select_option("select[data-side='0']", str(one))
        page.select_option("select[data-side='1']", str(two))
        rows = page.locator("[data-result] tbody tr").all()
        heading = "each => each.firstChild.textContent.trim()"  # the key stands beside it
        return {row.locator("th").evaluate(heading): row.locator("td").all_inner_texts() for row in rows}

    assert len(same) == 2
    equal = lines(*same)
    assert {cells[2] for cells in equal.values()} == {"the same"}
    unlike = lines(same[0], other)
    assert unlike["Quality: Perplexity"][3].startswith(("the intervals", "not every"))
    assert not any("incomparable" in cells[3] for cells in unlike.values())
    data = page.evaluate("JSON.parse(document.querySelector('[data-rows]').textContent)")
    assert all(figure[-1] in data["conditions"] for row in data["rows"] for figure in row["figures"])
    assert page.complaints == []


def test_what_is_not_comparable_says_what_differs(page: Any, site: Path, tmp_path: Path) -> None:
    """A page whose second row was measured on another machine and another text."""
    (model,) = (site.parent / "models").glob("*.html")
    text = model.read_text(encoding="utf-8")
    page.goto(model.as_uri())
    data = page.evaluate("JSON.parse(document.querySelector('[data-rows]').textContent)")
    keys = {figure[0]: figure[-1] for figure in data["rows"][0]["figures"]}
    changed = tmp_path / "model.html"
    script = (
        "const e=document.querySelector('[data-rows]'),d=JSON.parse(e.textContent);"
        f"d.conditions.other={{...d.conditions['{keys['perplexity']}'],text:'another'}};"
        "for(const f of d.rows[1].figures)if(f[0]==='perplexity')f[9]='other';e.textContent=JSON.stringify(d);"
    )
    changed.write_text(text.replace("<script>// Finds", f"<script>{script}</script><script>// Finds"), encoding="utf-8")
    page.goto(changed.as_uri())
    line = page.locator("[data-result] tbody tr", has_text="Quality: Perplexity")
    words = line.locator("td").nth(3).inner_text()
    assert words.startswith("incomparable: text: ")
    assert "another" in words
    assert line.locator("td").nth(2).inner_text() == ""


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark", **PHONE}], ids=["light", "dark phone"])
def test_axe_finds_nothing_to_mend_and_a_phone_scrolls_in_one_direction(
    page: Any, site: Path, options: dict[str, Any]
) -> None:
    """Rules of axe-core, as Deque publishes it, on the index, a model's page and a sweep's, with everything open."""
    package = pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python, of the extra 'dev'")
    axe = (files(package.__name__) / "axe.min.js").read_text(encoding="utf-8")
    context = page.context.browser.new_context(bypass_csp=True, **options)
    opened = context.new_page()
    for path in (site, next((site.parent / "models").glob("*.html")), site.parent / "sweeps" / "nightly.html"):
        opened.goto(path.as_uri())
        opened.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
        if options:
            assert opened.evaluate("document.documentElement.scrollWidth") == 390, path
        opened.evaluate(axe)
        found = opened.evaluate("axe.run().then(found => found.violations)")
        faults = [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found]
        assert faults == [], path
    context.close()
