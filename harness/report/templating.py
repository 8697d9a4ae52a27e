"""The package's templates, and files that are embedded in pages unchanged."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from harness.report import escape


def template(name: str) -> Template:
    """A template that escapes every text it prints, for HTML and XML alike."""
    return _environment().get_template(name)


def source(name: str) -> Markup:
    """A file of the package that is embedded in a page unchanged."""
    return Markup((files("harness.report") / "templates" / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        finalize=escape.page,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
