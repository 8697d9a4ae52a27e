"""The documents say what the code does: a current reference, recipes that can be read, links that lead somewhere."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import grimp
import networkx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from modules_by_path import module_at
from places import linked, place
from typer.testing import CliRunner

from harness.cli.app import app
from harness.core.capability import PROTOCOLS
from harness.core.engine import Engine, LoadRequest
from harness.core.method import Method
from harness.figures.gate import shown
from harness.plugins import gates, limit_options, objectives
from harness.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^\[[^\]]+\]:\s*(\S+)|\b(?:src|href|srcset)=\"([^\"]+)\"", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:|^//")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sections(page: Path) -> set[str]:
    """The names that a page's headings have in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def relative_links(page: Path) -> Iterator[tuple[str, str]]:
    """Files and sections named in the page's prose; code is not prose."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
    for match in LINK.finditer(prose):
        target = next(group for group in match.groups() if group)
        if not ELSEWHERE.match(target):
            path, _, section = target.partition("#")
            yield unquote(path), section


def examples() -> list[Any]:
    """Every recipe that a page shows whole: a YAML block that begins with its name."""
    return [
        pytest.param(text, id=f"{named(page)}-{number}")
        for page in PAGES
        if page.is_file()
        for number, (language, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")), 1)
        if language in ("yaml", "yml") and text.startswith("name:")
    ]


def script(name: str) -> Any:
    """A script of docs as a module; docs is no package."""
    return module_at(DOCS / f"{name}.py")


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("recipe-reference.md", "make_reference"),
        ("labels.md", "make_labels"),
        ("architecture.md", "make_architecture"),
        ("reliability.md", "make_reliability"),
    ],
)
def test_a_generated_page_is_what_the_code_says(page: str, name: str) -> None:
    written = place(page).read_text(encoding="utf-8")
    assert written == script(name).render(), f"out of date: run python docs/{name}.py"


def test_the_drawing_is_what_the_code_says() -> None:
    made = script("make_architecture")
    drawing = made.drawing()
    assert place("architecture.md").with_suffix(".svg").read_text(encoding="utf-8") == drawing
    rooms = {room for layer in made.layers() for room in layer}
    texts = ElementTree.fromstring(drawing).findall(".//{*}text")
    assert {each.text for each in texts if not each.get("class")} == rooms


def test_the_imports_that_are_drawn_are_those_that_import_linter_sees() -> None:
    drawn = script("make_architecture")
    rooms = [room for layer in drawn.layers() for room in layer]
    graph = grimp.build_graph("harness", cache_dir=None)
    expected = Counter()
    for module in graph.modules - {"harness", "harness.__main__"}:
        imported = {name.split(".")[1] for name in graph.find_modules_directly_imported_by(module) if "." in name}
        expected.update((module.split(".")[1], room) for room in imported - {module.split(".")[1]})
    counted, lazily = drawn.edges(rooms)
    assert counted == expected
    assert ("plugins", "methods") in lazily
    assert {room.name.removesuffix(".py") for room in (ROOT / "harness").iterdir() if room.suffix in ("", ".py")} - {
        "__init__",
        "__main__",
        "__pycache__",
    } == set(rooms)


@given(st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(lambda pair: pair[0] < pair[1]), max_size=20))
def test_only_arrows_that_a_longer_path_implies_are_left_out(pairs: set[tuple[int, int]]) -> None:
    expected = networkx.transitive_reduction(networkx.DiGraph(sorted(pairs)))
    assert script("make_architecture").reduced(pairs) == set(expected.edges)


@pytest.mark.parametrize(("path", "name"), [("core/variant.py", "Variety"), ("core/none_such.py", "Variant")])
def test_a_definition_that_is_gone_is_named(path: str, name: str) -> None:
    with pytest.raises(LookupError, match=f"harness/{path} defines no {name}"):
        script("make_architecture").found(path, name)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    broken = [target for target, _ in relative_links(page) if not (page.parent / target).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_to_a_section_leads_to_its_heading(page: Path) -> None:
    places = [((page.parent / target) if target else page, section) for target, section in relative_links(page)]
    broken = [(place.name, section) for place, section in places if section and section not in sections(place)]
    assert not broken


def test_generated_pages_name_other_pages_by_their_file_names() -> None:
    page = DOCS / "reference" / "labels.md"
    text = "[a](speed.md#suspect) [b](results.md) [c](../harness/core/label.py) [d](https://e.f/g.md) [h](#i)"
    assert linked(text, page) == (
        "[a](../explanation/speed.md#suspect) [b](results.md) [c](../../harness/core/label.py) "
        "[d](https://e.f/g.md) [h](#i)"
    )
    with pytest.raises(LookupError, match=r"0 pages of docs are named absent\.md"):
        linked("[a](absent.md)", page)


def test_links_are_found() -> None:
    assert ("docs/reference/methods.md", "what-goes-wrong-silently") in list(relative_links(ROOT / "README.md"))


def test_the_methods_that_are_shown_are_those_that_are_tested() -> None:
    """docs/how-to/adding-a-method.md repeats the plugin of tests/plugin_package and rtn's ``quantize``."""
    plugin = ROOT / "tests" / "plugin_package"
    files = (plugin / "qharness_intx.py", plugin / "pyproject.toml", ROOT / "harness" / "methods" / "rtn" / "rtn.py")
    sources = [path.read_text(encoding="utf-8") for path in files]
    blocks = FENCE.findall(place("adding-a-method.md").read_text(encoding="utf-8"))
    shown = [text for language, text in blocks if language in ("python", "toml")]
    assert [sum(text in source for source in sources) for text in shown] == [1, 1, 1]


def test_the_metrics_that_are_shown_are_those_that_are_tested() -> None:
    plugin = ROOT / "tests" / "metric_package"
    files = (plugin / "qharness_next_token.py", plugin / "pyproject.toml")
    blocks = FENCE.findall(place("adding-a-metric.md").read_text(encoding="utf-8"))
    shown = [text for language, text in blocks if language in ("python", "toml")]
    assert shown == [path.read_text(encoding="utf-8") for path in files]


def test_the_figure_that_is_shown_is_the_one_that_is_tested() -> None:
    plugin = ROOT / "tests" / "figure_package"
    files = (plugin / "qharness_top5.py", plugin / "pyproject.toml")
    blocks = FENCE.findall(place("adding-a-figure.md").read_text(encoding="utf-8"))
    shown = [text for language, text in blocks if language in ("python", "toml")]
    assert shown == [path.read_text(encoding="utf-8") for path in files]


def test_the_options_of_recommend_are_those_of_the_figures() -> None:
    page = place("recommend.md").read_text(encoding="utf-8")
    limits = [line for line in page.splitlines() if line.startswith("| `--")]
    options = {name for line in limits for name in re.findall(r"`--([a-z0-9-]+) ", line)}
    assert options == {figure.limit.name for figure in limit_options().values()}
    (named,) = re.findall(r"`--minimize` takes (.*?); `--maximize` takes (.*?\))", page, re.DOTALL)
    for text, direction in zip(named, ("lower", "higher"), strict=True):
        assert [name for name in re.findall(r"`(\w+)`", text) if name != "price"] == list(objectives(direction))


def test_the_engine_that_is_shown_is_the_one_that_is_tested() -> None:
    plugin = ROOT / "tests" / "engine_package"
    files = (plugin / "qharness_float64" / "__init__.py", plugin / "pyproject.toml")
    blocks = FENCE.findall(place("adding-an-engine.md").read_text(encoding="utf-8"))
    shown = [text for language, text in blocks if language in ("python", "toml")]
    assert shown == [path.read_text(encoding="utf-8") for path in files]


def names_in_first_cells(page: str) -> set[str]:
    """What the rows of a page's tables are about."""
    cells = re.findall(r"^\| ([^|]*) \|", place(page).read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_capabilities_and_the_fields_of_an_engine_are_those_of_the_code() -> None:
    page = place("adding-an-engine.md").read_text(encoding="utf-8")
    named = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", page, re.MULTILINE))
    assert named == {name: protocol.__name__ for name, protocol in PROTOCOLS.items()}
    cells = names_in_first_cells("adding-an-engine.md")
    assert {field.name for field in fields(Engine)} <= cells
    assert {field.name for field in fields(LoadRequest)} <= cells


def test_the_fields_of_a_method_are_those_of_the_code() -> None:
    in_prose = {"passes"}
    assert {field.name for field in fields(Method)} <= names_in_first_cells("adding-a-method.md") | in_prose


def test_the_gates_are_those_of_the_code() -> None:
    page = place("regressions.md").read_text(encoding="utf-8")
    rows = {name: rest for name, rest in re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE) if name in gates()}
    assert list(rows) == list(gates())
    for name, figure in gates().items():
        gate = figure.gate
        assert rows[name].startswith(f"{gate.says} | ")
        assert rows[name].endswith(f"| {shown(figure, gate.default)} | {'yes' if gate.usual else 'no'}")


def assert_commands(lines: list[str]) -> None:
    """Each line calls a command of qharness, with options that it has."""
    for line in lines:
        command, options = line.split()[1], re.findall(r"--[a-z-]+", line)
        told = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert told.exit_code == 0, line
        assert all(option in told.stdout for option in options), line


def test_what_the_workflow_runs_are_commands_with_these_options() -> None:
    workflow = yaml.safe_load((DOCS / "how-to" / "github-workflow.yml").read_text(encoding="utf-8"))
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    lines = [line for step in steps for line in step.splitlines() if line.strip().startswith("qharness ")]
    assert {line.split()[1] for line in lines} == {"run", "compare"}
    assert_commands(lines)
    for recipe in re.findall(r"recipes/\S+", "\n".join(lines)):
        assert (ROOT / recipe).is_file()


def test_what_the_tutorial_types_are_commands_with_these_options(tmp_path: Path) -> None:
    """``test_tutorial.py`` runs them, which takes minutes."""
    text = place("first-comparison.md").read_text(encoding="utf-8")
    typed = "".join(block for language, block in FENCE.findall(text) if language == "sh")
    assert_commands([line for line in typed.splitlines() if line.startswith("qharness ")])
    (recipe,) = re.findall(r"^cat > first.yaml <<'END'\n(.*?)^END$", typed, re.MULTILINE | re.DOTALL)
    (later,) = re.findall(r"s/\^methods:\.\*/(.*)/' first.yaml$", typed, re.MULTILINE)
    named = {}
    for number, content in enumerate((recipe, re.sub("(?m)^methods:.*", later, recipe))):
        (tmp_path / f"{number}.yaml").write_text(content, encoding="utf-8")
        named[number] = [method.name for method in load_recipe(tmp_path / f"{number}.yaml").methods]
    assert named[1] == [*named[0], "rtn"]


@pytest.mark.parametrize("text", examples())
def test_every_recipe_in_the_documents_can_be_read(text: str, tmp_path: Path) -> None:
    for recipe in RECIPES:  # an example may extend one of them
        shutil.copy(recipe, tmp_path)
    path = tmp_path / "example.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path).methods
