"""What the site has beyond the files of this folder: pages made from the code, the schema of recipes, a real report.

The files of the repository's root (README, changelog, …) become pages too. A link to a file that is no page, such as a
source file, leads to ``repo_url`` in mkdocs.yml, or is only text where none is set.
"""

from __future__ import annotations

import json
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import make_commands
import make_python
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import harness
from harness.recipe import Recipe, file_schema

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security-policy.md",
}
MADE = {"reference/commands.md": make_commands.render, "reference/python.md": make_python.render}
EXAMPLE = ROOT / "results" / "example"
PACKED = {path.name.removesuffix(".tar.xz"): path for path in sorted((DOCS / "gallery").glob("*.tar.xz"))}
"""The records of other sweeps of the gallery by recipe; ``docs/gallery.md`` says how they are packed."""
SHOWN = {
    "reports/example/report.md": "gallery/report.html",
    "reports/example/report.csv": "gallery/report.csv",
    **{f"docs/gallery/{path.name}": f"gallery/{name}/report.html" for name, path in PACKED.items()},
}
"""What a link to a committed report, or to packed records, leads to: the page that the site draws from the records."""
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Headings are named in links as GitHub names them; a folder in the menu stands for its pages."""
    config.mdx_configs["toc"]["slugify"] = _slug
    config.nav = [_with_pages(entry) for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, render in MADE.items():
        files.append(File.generated(config, page, content=render()))
    schema = json.dumps(file_schema(Recipe.model_json_schema()), indent=1)
    files.append(File.generated(config, "reference/recipe.schema.json", content=schema))
    with tempfile.TemporaryDirectory() as folder:
        for place, records in _gallery(Path(folder)):
            for path in harness.write_report(records, Path(folder) / "report", ["html", "csv"]):
                files.append(File.generated(config, f"{place}/{path.name}", content=path.read_bytes()))
    return files


def _gallery(folder: Path) -> Iterator[tuple[str, Path]]:
    """Where each report of the gallery stands in the site, and the records that it is drawn from."""
    yield "gallery", EXAMPLE
    for name, archive in PACKED.items():
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        yield f"gallery/{name}", folder / name


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links led to pages of the site; code stays as it is."""
    here = page.file.src_uri
    origin = {made: source for source, made in ROOT_PAGES.items()}.get(here, f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        image, text, target, section = match[1], match[2], match[3], match[4] or ""
        if not target or re.match(r"[a-z][a-z0-9+.-]*:", target):
            return match[0]
        path = normpath(join(dirname(origin), target))
        goal = {**ROOT_PAGES, **SHOWN}.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if path == "docs/measurements":
            goal = "measurements/README.md"
        if goal is not None and (found := files.get_file_from_path(goal)) and found.inclusion.is_included():
            return f"{image}[{text}]({relpath(goal, dirname(here) or '.')}{section})"
        if not (ROOT / path).exists():
            return match[0]  # mkdocs names it, and the build fails
        return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path})" if config.repo_url else text

    parts, end = [], 0
    for code in _FENCE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _LINK.sub(link, markdown[end:])])


def _with_pages(entry: dict[str, object]) -> dict[str, object]:
    ((title, goal),) = entry.items()
    if not (isinstance(goal, str) and goal.endswith("/")):
        return entry
    pages = sorted((DOCS / goal).glob("*.md"), key=lambda path: (path.name != "README.md", path.name))
    return {title: [path.relative_to(DOCS).as_posix() for path in pages]}


def _slug(text: str, separator: str) -> str:
    return re.sub(r"[^\w -]", "", text.lower()).replace(" ", separator)
