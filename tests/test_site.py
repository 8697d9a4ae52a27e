"""The documentation site: built as 'make docs' builds it, where every link, heading and page of the menu is checked."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt
from site_hooks import PACKED, ROOT_PAGES

import harness
from harness.cli.app import app
from harness.storage.reading import read_results

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[1]
GITHUB = MarkdownIt("commonmark").enable("table")
COUNTED = ("li", "table", "td", "pre", "h2", "h3", "img")


def build(checkout: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    variables = {**os.environ, "PYTHONPATH": "docs", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=checkout, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    ended = build(ROOT, out)
    assert ended.returncode == 0, ended.stderr
    return out


class Article(HTMLParser):
    """Counts the elements of a page's own text, without the menus around it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        start = page.find("<article")
        self.feed(page[start : page.find("</article>")] if start >= 0 else page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counted[tag] += 1


def sources() -> list[tuple[str, Path]]:
    """The pages of the site that are files of the repository, with these files."""
    pages = [(path.relative_to(ROOT / "docs").as_posix(), path) for path in sorted((ROOT / "docs").rglob("*.md"))]
    return pages + [(page, ROOT / source) for source, page in ROOT_PAGES.items()]


@pytest.mark.parametrize(("page", "source"), sources(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_page_has_the_lists_tables_and_code_that_github_shows(site: Path, page: str, source: Path) -> None:
    """GitHub and the site read Markdown by different rules: lists within lists and after a paragraph, for example."""
    file = site / page.replace("README.md", "index.md").replace(".md", ".html")
    shown = Article(file.read_text(encoding="utf-8")).counted
    expected = Article(GITHUB.render(source.read_text(encoding="utf-8"))).counted
    assert {tag: shown[tag] for tag in COUNTED} == {tag: expected[tag] for tag in COUNTED}


def test_every_command_and_function_has_its_section(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name in [each.name or each.callback.__name__ for each in app.registered_commands]:
        assert f">qharness {name.replace('_', '-')}<" in commands
    functions = (site / "reference" / "python.html").read_text(encoding="utf-8")
    assert all(f">harness.{name}<" in functions for name in harness.__all__)


def test_the_schema_is_published(site: Path) -> None:
    schema = json.loads((site / "reference" / "recipe.schema.json").read_text(encoding="utf-8"))
    jsonschema.validators.validator_for(schema).check_schema(schema)
    jsonschema.validate(yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8")), schema)


def test_the_gallery_shows_the_report_of_the_records_that_are_committed(site: Path) -> None:
    with (site / "gallery" / "report.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    committed = harness.load_results(ROOT / "results" / "example")
    assert rows
    assert {row["variant"] for row in rows} == set(committed.method)
    page = (site / "gallery.html").read_text(encoding="utf-8")
    links = set(re.findall(r'(?:href|src)="(gallery/[^"]+|report.png)"', page))
    packed = {f"gallery/{name}/report.html" for name in PACKED}
    assert packed
    assert links == {"gallery/report.html", "gallery/report.csv", "report.png", *packed}
    assert all((site / link).is_file() for link in links)


@pytest.mark.parametrize("name", PACKED)
def test_packed_records_of_the_gallery_are_whole_and_small(tmp_path: Path, name: str) -> None:
    assert PACKED[name].stat().st_size < 2e6
    with tarfile.open(PACKED[name]) as packed:
        packed.extractall(tmp_path, filter="data")
    records = read_results(tmp_path)
    assert records.damaged == ()
    assert {(each.spec.recipe, each.status) for each in records.records} == {(name, "ok")}


def test_no_page_takes_scripts_styles_fonts_or_images_from_elsewhere(site: Path) -> None:
    """Nor has one a diagram, for which the theme's script would fetch another."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', text), page
        assert 'class="mermaid"' not in text, page
    assert "architecture.svg" in (site / "explanation" / "architecture.html").read_text(encoding="utf-8")


def test_broken_links_and_a_page_without_a_place_in_the_menu_end_the_build(tmp_path: Path) -> None:
    broken = ("absent.md", "../reference/results.md#absent", "../../harness/absent.py")
    for name in ("docs", "results/example"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", *ROOT_PAGES):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("harness", "recipes", "tests", "benchmarks", "constraints.txt", ".github"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "how-to" / "gpu.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n[a]({target})\n" for target in broken)
    (tmp_path / "docs" / "how-to" / "lost.md").write_text("# Lost\n")
    ended = build(tmp_path, tmp_path / "site")
    assert ended.returncode != 0
    for target in (*broken, "how-to/lost.md"):
        assert target in ended.stderr
