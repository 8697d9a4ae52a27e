"""Where each page of the documentation is, for what links to pages by their names: the code and the generators."""

from __future__ import annotations

import os
import re
from pathlib import Path

DOCS = Path(__file__).parent
SECTIONS = ("tutorial", "how-to", "reference", "explanation")
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def place(name: str) -> Path:
    """The page of that file name, such as ``speed.md``. Raises LookupError unless there is exactly one."""
    found = [path for section in SECTIONS if (path := DOCS / section / name).is_file()]
    if len(found) != 1:
        raise LookupError(f"{len(found)} pages of docs are named {name}")
    return found[0]


def linked(text: str, page: Path) -> str:
    """Markdown for a page, from one whose links are a page's name (``speed.md#suspect``) or a path from ``docs``."""

    def link(match: re.Match[str]) -> str:
        target, section = match[1], match[2] or ""
        path = DOCS / target if "/" in target else place(target)
        return f"]({Path(os.path.relpath(path, page.parent)).as_posix()}{section})"

    return _LINK.sub(link, text)
