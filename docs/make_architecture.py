"""Writes docs/explanation/architecture.md and its drawing from the code: ``python docs/make_architecture.py``.

Rooms and layers are those of import-linter's contract in pyproject.toml; imports, docstrings and definitions are read
from the syntax trees, so that nothing is run. Raises LookupError if a home or a step of the walk no longer exists.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from drawing import layered
from places import linked, place

PAGE = place("architecture.md")
DRAWING = PAGE.with_suffix(".svg")
ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "harness"
NAMED_OBJECT = re.compile(r"harness\.(\w+)[\w.]*:\w+")
"""How ``plugins`` and the public names refer to what is imported only when it is used."""

INTRO = """\
# Architecture

Made by `python docs/make_architecture.py` from the code; edit that, not this file.

qharness turns a recipe into records, and records into answers. Data flow one way:

```text
recipe.yaml ─ load_recipe ─ Recipe ─ plan ─ planned runs ─ sweep ─ executor ─ worker processes
                                                                                   │
        report, recommend, compare, history ◄─ figures ◄─ analysis ◄─ records ◄─ results store
```"""
HOUSE = """\
## The house

Every folder of `harness/` is a room, and its name says what may stand in it. Imports go downwards only; import-linter
checks that. An arrow means that one room imports another, and its number counts the files that do; a dotted arrow leads
to what is imported only when it is used. Arrows that a longer path implies are left out of the drawing; the table below
has them all."""
DRAWN = "![The rooms by layer, with an arrow from each to those that it imports](explanation/architecture.svg)"
HOMES_INTRO = """\
## Six homes

Each idea that a newcomer must understand is defined once; everything else is derived from that definition."""
WALK_INTRO = """\
## From a recipe to a report

One walk through the code, by the functions that `qharness run` and `qharness report` call."""
EXTENSIONS = """\
## What an extension costs

| add | touch | example |
| --- | --- | --- |
{rows}

The packages in `tests/` are those of a third party: a test installs them and uses them through their entry points
alone."""


@dataclass(frozen=True)
class Home:
    """An idea, the files that define it, and the definitions there that matter first."""

    idea: str
    meaning: str
    definitions: Mapping[str, Sequence[str]]
    """By file below ``harness/``; an empty list means all public definitions."""


HOMES = (
    Home(
        "Variant",
        "What one row of a table is: model × method × engine × scope × calibration × key-value cache × seed.",
        {"core/variant.py": ()},
    ),
    Home("Job", "What one run does, one type per kind of run.", {"core/job.py": ()}),
    Home(
        "Figure",
        "One number that people see: columns, gates, options of `recommend`, history and plot axes come from it.",
        {
            "figures/figure.py": ("Figure", "Axis"),
            "figures/gate.py": ("Gate",),
            "figures/ask.py": ("Ask", "Objective", "LimitOption"),
        },
    ),
    Home("Capability", "What an engine's loaded model can do, as small protocols.", {"core/capability.py": ()}),
    Home(
        "Label and Fact",
        "What is remarkable about a run: a code from a closed list, its arguments, and a sentence made from both.",
        {"core/label.py": ("Label", "Fact", "codes")},
    ),
    Home(
        "Site and Executor",
        "Where a sweep runs, and what runs one planned run there.",
        {
            "core/site.py": (),
            "execution/executor.py": (),
            "execution/executors.py": ("ExecutorChoice", "open_executor"),
            "execution/local.py": (),
            "execution/cluster.py": ("NodeReport", "ClusterSite"),
        },
    ),
)
WALK = (
    ("cli/commands/run.py", "run", "the command: reads its options, prints what happens"),
    ("api/run.py", "run", "the same for Python; joins the steps below"),
    (
        "recipe/sweep.py",
        "load_recipe",
        "the file and those it extends become a `Recipe`; an error names file, line and key",
    ),
    ("planning/plan.py", "plan", "the recipe becomes planned runs, in order, for a `Site`"),
    ("planning/expand.py", "choices", "lists of parameters become one variant per combination"),
    ("execution/sweep.py", "sweep", "skips what is done, makes the rest, and saves a record after every run"),
    ("execution/local.py", "LocalExecutor.run", "one run in a process, with its limits of time and memory"),
    (
        "execution/starter.py",
        "Starter.prepare",
        "the warm server that its process is forked from",
    ),
    ("execution/worker.py", "main", "inside that process: loads, runs the job, writes the outcome"),
    ("storage/cache.py", "Cache.publish", "artifacts of a job appear whole in the cache"),
    ("storage/store.py", "Store.save", "the record, its evidence and its log appear whole in the results folder"),
    ("cli/commands/report.py", "report", "the command that writes a report"),
    ("storage/reading.py", "read_results", "records come back, checked field by field"),
    ("analysis/tradeoff.py", "tradeoff", "records become tables with one row per variant and decode mode"),
    ("figures/row.py", "row", "the figures of one row, each with its uncertainty"),
    ("report/page.py", "page", "what a report says, whatever its format"),
    ("report/write.py", "write_report", "one renderer per format writes its file"),
)
COSTS = (
    (
        "a method",
        "one file, one entry point",
        "[Adding a method](adding-a-method.md), [tests/plugin_package](../tests/plugin_package)",
    ),
    (
        "an engine",
        "one folder, the pins of its stack, one entry point",
        "[Adding an engine](adding-an-engine.md), [tests/engine_package](../tests/engine_package)",
    ),
    (
        "a metric with a gate, a column and an option of `recommend`",
        "one metric, one figure, one section of the recipe",
        "[Adding a metric](adding-a-metric.md), [tests/metric_package](../tests/metric_package)",
    ),
    ("a column of known data", "one figure", "[figures/quantizing.py](../harness/figures/quantizing.py)"),
    (
        "a kind of run",
        "one job type, one file in `execution/jobs/`",
        "[core/job.py](../harness/core/job.py), [execution/jobs](../harness/execution/jobs)",
    ),
    (
        "an executor",
        "one file in `execution/`, one entry in `execution/executors.py`",
        "[execution/local.py](../harness/execution/local.py), "
        "[tests/execution/test_executor.py](../tests/execution/test_executor.py)",
    ),
)


def layers() -> list[list[str]]:
    """The rooms by layer, the highest first, as import-linter's contract has them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = [each for each in contracts if each["type"] == "layers"]
    return [[room.strip().removeprefix("harness.") for room in layer.split("|")] for layer in contract["layers"]]


def files(room: str) -> list[Path]:
    """The Python files of a room, which is a folder or a single module."""
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: ast.Module) -> set[str]:
    """The rooms that a file imports, wherever in it the import stands."""
    names = [alias.name for node in ast.walk(module) if isinstance(node, ast.Import) for alias in node.names]
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("harness.")}


def named(module: ast.Module) -> set[str]:
    """The rooms whose objects a file names in strings such as ``harness.methods.none:NONE``."""
    words = (node.value for node in ast.walk(module) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {match[1] for match in map(NAMED_OBJECT.fullmatch, words) if match}


@cache
def links(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """The rooms that a file imports, and those that it names; each file is read once."""
    module = tree(path)
    return frozenset(imported(module)), frozenset(named(module))


def edges(rooms: Sequence[str]) -> tuple[Counter[tuple[str, str]], set[tuple[str, str]]]:
    """Of each pair of rooms the files of the first that import the second; and the pairs that are only named."""
    counted: Counter[tuple[str, str]] = Counter()
    lazily: set[tuple[str, str]] = set()
    for room in rooms:
        for others, words in map(links, files(room)):
            counted.update((room, other) for other in others if other in rooms and other != room)
            lazily |= {(room, other) for other in words if other in rooms and other != room}
    return counted, lazily - counted.keys()


def reduced(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The pairs that no longer way through the others implies."""

    def reaches(start: str, goal: str, without: tuple[str, str]) -> bool:
        after = [second for first, second in pairs if first == start and (first, second) != without]
        return goal in after or any(reaches(room, goal, without) for room in after)

    return {pair for pair in pairs if not reaches(*pair, pair)}


def drawing() -> str:
    """The rooms by layer and the imports between them, as SVG."""
    house = layers()
    counted, lazily = edges([room for layer in house for room in layer])
    arrows = {pair: counted[pair] for pair in reduced(set(counted))}
    return layered("The rooms of the house, and which imports which", house, arrows, sorted(lazily))


def sentence(node: ast.AST) -> str:
    """The first sentence of a docstring, on one line, in Markdown."""
    text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
    first = re.split(r"(?<=\.)\s|\n\n", text or "")[0]
    return " ".join(first.split()).rstrip(".").replace("``", "`").replace("|", "\\|")


def rooms_table() -> str:
    house = layers()
    rooms = [room for layer in house for room in layer]
    counted, _ = edges(rooms)
    lines = ["| layer | room | what may stand there | files | imports, by files |", "| --- | --- | --- | --- | --- |"]
    for number, layer in enumerate(house, 1):
        for room in layer:
            own = files(room)
            link = f"[{room}](../{own[0].parent.relative_to(ROOT) if len(own) > 1 else own[0].relative_to(ROOT)})"
            others = ", ".join(f"{other} {counted[room, other]}" for other in rooms if counted[room, other])
            what = sentence(tree(PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else own[0]))
            lines.append(f"| {number} | {link} | {what} | {len(own)} | {others or 'nothing'} |")
    return "\n".join(lines)


def definitions(path: Path) -> dict[str, ast.AST]:
    """The public classes and functions of a file, and their public methods as ``Class.method``."""

    def within(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
        for each in node.body:
            if isinstance(each, ast.ClassDef | ast.FunctionDef) and not each.name.startswith("_"):
                yield prefix + each.name, each
                if isinstance(each, ast.ClassDef):
                    yield from within(each, f"{each.name}.")

    return dict(within(tree(path)))


def found(path: str, name: str) -> ast.AST:
    """Raises LookupError where the code no longer defines it: this script must follow."""
    known = definitions(PACKAGE / path) if (PACKAGE / path).is_file() else {}
    if name not in known:
        raise LookupError(f"harness/{path} defines no {name}: correct docs/make_architecture.py")
    return known[name]


def homes() -> str:
    parts = []
    for home in HOMES:
        parts.append(f"### {home.idea}\n\n{home.meaning}\n")
        for path, chosen in home.definitions.items():
            if not (PACKAGE / path).is_file():
                raise LookupError(f"there is no harness/{path}: correct docs/make_architecture.py")
            names = chosen or [name for name in definitions(PACKAGE / path) if "." not in name]
            parts.append(f"[harness/{path}](../harness/{path}):\n")
            for name in names:
                what = sentence(found(path, name))
                parts.append(f"- `{name}`" + (f": {what}" if what else ""))
            parts.append("")
    return "\n".join(parts).rstrip()


def walk() -> str:
    lines = []
    for number, (path, name, what) in enumerate(WALK, 1):
        found(path, name)
        lines.append(f"{number}. [`{name}`](../harness/{path}) in `{path}`: {what}.")
    return "\n".join(lines)


def render() -> str:
    """The whole document."""
    costs = EXTENSIONS.format(rows="\n".join(f"| {' | '.join(row)} |" for row in COSTS))
    parts = [INTRO, HOUSE, DRAWN, rooms_table(), HOMES_INTRO, homes(), WALK_INTRO, walk(), costs]
    return linked("\n\n".join(parts) + "\n", PAGE)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    DRAWING.write_text(drawing(), encoding="utf-8")
