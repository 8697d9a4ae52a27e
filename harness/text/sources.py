"""Reads texts from the harness's own files, local files and hub data sets.

A text is a list of rows. A plain file is read as the hub serves WikiText: each line is a row
that keeps its newline, and a blank line is the empty string.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from types import MappingProxyType

from harness.core.foreign import locate, parse_json, quoted, read_file, shown
from harness.core.workload import TextRef
from harness.errors import SourceError, did_you_mean, first_line_of, reason_of
from harness.recipe import Text
from harness.storage.checksums import file_sha256

DATA = Path(__file__).parent / "data"
MAX_TEXT_BYTES = 2**32
"""Of a text file. A worker reads it whole."""
TEXTS: Mapping[str, str] = MappingProxyType(
    {
        "demo": "English prose in sixteen genres, written for this project (CC0); for evaluation",
        "demo_calibration": "other English prose, written for this project (CC0); for calibration",
        "demo_prompts": "32 beginnings of English texts, written for this project (CC0); prompts for a generated text",
    }
)


def resolve(text: Text, folder: Path) -> TextRef:
    """Locates and hashes the text that a recipe names. Raises SourceError if it does not exist."""
    if text.hub is not None:
        name = "/".join(part for part in (text.hub, text.config, text.split) if part)
        return TextRef(name, None, text.hub, text.config, text.split, text.revision, text.field)
    if text.name is not None:
        if text.name not in TEXTS:
            raise SourceError(
                f"unknown text {text.name!r}{did_you_mean(text.name, TEXTS)}; a file is named with its suffix"
            )
        path = DATA / f"{text.name}.txt"
    else:
        path = locate(str(text.file), folder, SourceError)
    if not path.is_file():
        raise SourceError(f"text file not found: {shown(path)}")
    size = path.stat().st_size
    if size == 0:
        raise SourceError(f"text file is empty: {shown(path)}")
    if size > MAX_TEXT_BYTES:
        raise SourceError(f"text file is larger than {MAX_TEXT_BYTES} bytes: {shown(path)}; name a part of it")
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise SourceError(f"{shown(path)}: cannot read the file ({reason_of(error)})") from None
    return TextRef(text.name or path.name, str(path), field=text.field, sha256=sha256)


def rows(text: TextRef) -> list[str]:
    """The rows of a text.

    Raises SourceError if a file's content does not match its suffix, or a data set cannot be read.
    """
    if text.path is None:
        return _hub_rows(text)
    content = _content(text).replace("\r\n", "\n").replace("\r", "\n")
    if not is_plain(text):
        return [_field(line, number, text) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    return [line if line.strip() else "" for line in StringIO(content)]


def whole(text: TextRef) -> str:
    """The text as one string: a plain file unchanged, other rows as the lines of such a file.

    An empty row becomes a line with one space, as in WikiText's own files. Raises the same errors as ``rows``.
    """
    if not is_plain(text):
        return "".join(row if row.endswith("\n") else f"{row or ' '}\n" for row in rows(text))
    return _content(text)


def is_plain(text: TextRef) -> bool:
    """Whether the text is a plain text file: neither JSON lines nor a hub data set."""
    return text.path is not None and not text.path.endswith((".jsonl", ".json"))


def _content(text: TextRef) -> str:
    """The content of a text's file. Raises SourceError if it cannot be read or is not UTF-8."""
    path = Path(str(text.path))
    try:
        return read_file(path, MAX_TEXT_BYTES, SourceError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{shown(path)}: not UTF-8 at byte {error.start}; convert the text") from None


def _field(line: str, number: int, text: TextRef) -> str:
    where = f"{shown(str(text.path))}:{number}"
    row = parse_json(line.encode(), where, SourceError)
    if not isinstance(row, dict) or text.field not in row:
        raise SourceError(f"{where}: no JSON object with a field {quoted(text.field)}")
    return str(row[text.field])


def _hub_rows(text: TextRef) -> list[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(text.hub, text.config, split=text.split, revision=text.revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise SourceError(f"{text.id}: cannot read the data set: {first_line_of(error)}") from error
    if text.field not in data.column_names:
        raise SourceError(f"{text.id}: no field {text.field!r}{did_you_mean(text.field, data.column_names)}")
    return [str(value) for value in data[text.field]]
