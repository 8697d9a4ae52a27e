"""A digest of all that reports depend on but the records."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.metadata import version
from pathlib import Path

from harness.plugins import plugin_figures
from harness.storage.summaries import code

CODE = ("api", "errors.py", "host", "planning", "recipe", "report", "text")
"""What bundles, sites and whole answers come from beside the rooms of ``harness.storage.summaries.CODE``."""
LIBRARIES = ("PyYAML", "jinja2", "pandas", "plotly", "pyarrow")


@cache
def report_code() -> str:
    """The code, templates and libraries that make the files of a bundle, sites, and whatever is kept as an answer."""
    found = hashlib.sha256(" ".join([code(), str(plugin_figures()), *map(version, LIBRARIES)]).encode())
    root = Path(__file__).parents[1]
    files = (path for name in CODE for path in ((root / name).rglob("*") if (root / name).is_dir() else [root / name]))
    for path in sorted(path for path in files if path.is_file() and path.suffix != ".pyc"):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()
