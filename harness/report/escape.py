"""Foreign text made safe for each output format: one function per format, each by that format's own rule.

Records, recipes, checkpoints and plugins are made by strangers, and every string in them may be hostile. Whatever puts
such a string into an output calls the function of that format, also for text that is composed of several strings.
Ordinary text leaves unchanged, except for the escapes that its format removes again when it is read.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterable

LONGEST_TEXT = 10_000
"""The characters of a string that a page, a Markdown file, a model card or JUnit shows; the rest becomes "…"."""
LONGEST_LINE = 2_000
"""The characters of a line or a cell on a terminal."""
MOST_LINES = 200
"""The lines of a message on a terminal."""
LONGEST_FILE_NAME = 120
"""The characters of a name of a file or a folder, before its suffix."""
LONGEST_IN_PLOT = 300
"""The characters of a name in a plot."""
LONGEST_IN_SHEET = 32_767
"""The characters that a spreadsheet's cell holds."""
LONGEST_MLFLOW_NAME, LONGEST_MLFLOW_VALUE = 250, 5_000
"""MLflow's own limits are 250 characters for a name, and somewhat more than this for a tag or a parameter."""

_UNSEEN = "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff"
_DECEIVING = re.compile(f"[{_UNSEEN}]")
"""Control characters other than tab and line ends, marks that reorder the text after them (Unicode Technical Report 36,
section 2.4), lone surrogates, which UTF-8 cannot encode, and non-characters. Marks and joiners that languages and emoji
need (U+061C, U+200C to U+200F) stay."""
_OBEYED = re.compile(f"[{_UNSEEN}\t\n\r\u2028\u2029]")
"""What a terminal may obey, or shows on another line."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_BREAK = "&#8203;"
"""A space without width: it ends a word, and nobody sees it."""


def bounded(text: str, most: int = LONGEST_TEXT) -> str:
    """The beginning of a long text, with "…" for what is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def tail(log: str) -> str:
    """The end of a log, which says what went wrong, with "…" for what is left out."""
    return log if len(log) <= LONGEST_TEXT else f"…{log[1 - LONGEST_TEXT :]}"


def visible(text: str) -> str:
    """Text without characters that are not seen but change what is; each is replaced by U+FFFD."""
    return text if text.isprintable() else _DECEIVING.sub("\ufffd", text)


def encodable(text: str) -> str:
    """Text for a format that stores any text (Parquet): only lone surrogates, which UTF-8 cannot encode, change."""
    return _SURROGATE.sub("\ufffd", text)


def page(value: object) -> object:
    """What a template of the HTML page prints (``finalize`` of jinja2, which then escapes it).

    Markup of the package itself passes unchanged.
    """
    return visible(bounded(value)) if type(value) is str else value


def script_json(text: str) -> str:
    """JSON that can neither end its script element nor open a comment in it.

    The rule: HTML standard, "Restrictions for contents of script elements". U+2028 and U+2029 are legal in JSON, but
    were not in JavaScript before 2019.
    """
    return re.sub("[&<>\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def plot(text: str) -> str:
    """Text in a plot: plotly interprets a subset of HTML in it and, where MathJax is loaded, TeX between dollar signs.

    The rule: plotly.js, ``svg_text_utils.js`` (``convertToTspans``), which decodes entities after it looked for either.
    """
    return html.escape(visible(bounded(_one_line(text), LONGEST_IN_PLOT))).replace("$", "&#36;")


_MARKED = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))")
_FIRST = re.compile(r"^(?:(#+|[-+=]+)(?=\s|$)|(\d{1,9})([.)])(?=\s|$)|(::))")
"""What makes a heading, an item of a list, a line or an underline of a heading; and what GitHub's runner obeys."""
_ADDRESS = re.compile(r"(https?|ftp|mailto|xmpp)(:)|(www)(\.)", re.IGNORECASE)
_MENTION = re.compile(r"(?<![A-Za-z0-9])@(?=[A-Za-z0-9])|@(?=[\w-]+\.[\w-])|#(?=\d)|\bGH-(?=\d)", re.IGNORECASE)


_NUMBER_IN_CELL = r"[-+−]?\d{1,20}(?:\.\d{1,20})?(?:e[-−]?\d{1,3})?"
_FIGURE = re.compile(
    rf"—|{_NUMBER_IN_CELL}(?: \[{_NUMBER_IN_CELL}, {_NUMBER_IN_CELL}\])?(?: [a-z]{{1,20}}){{0,4}}", re.ASCII
)
"""Most cells of a table: a number, its interval and a word or two. Only the brackets are Markdown's."""


def markdown(text: str) -> str:
    """One line of plain text in Markdown, also as a cell of a table or at the beginning of a paragraph.

    The rule: GitHub Flavored Markdown, sections 2.4 "Backslash escapes", 4.10 "Tables" and 6.9 "Autolinks (extension)",
    and GitHub's mathematics between dollar signs. GitHub looks for mentions of people and issues after Markdown, so no
    escape stops them: a space without width does.
    """
    if _FIGURE.fullmatch(text):
        return text.replace("[", r"\[").replace("]", r"\]")
    escaped = _MARKED.sub(r"\\\1", html.escape(visible(bounded(_one_line(text))), quote=False))
    escaped = _FIRST.sub(_escape_first, escaped)
    return _unmention(_ADDRESS.sub(r"\1\3\\\2\4", escaped))


def markdown_html(text: str) -> str:
    """One line of plain text in an HTML element of a Markdown file, where Markdown's own characters mean nothing."""
    return _unmention(html.escape(visible(bounded(_one_line(text)))))


def markdown_log(log: str) -> str:
    """The lines of a log in a ``pre`` element of a Markdown file; GitHub looks for no mentions in one."""
    return html.escape(visible(tail(log)))


def markdown_code(command: str) -> str:
    """A line of a fenced block of code, which only a line that begins with the fence can end."""
    return visible(bounded(_one_line(command)))


def yaml(text: str) -> str:
    """A value of a model card's metadata. The library that writes YAML escapes every character; it is only bounded."""
    return bounded(text)


_FORMULA = re.compile("(^|;)(\\s*)(?=[=+\\-@＝＋－＠])")
_SEPARATED = re.compile("[\t\r\n\u2028\u2029]+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def csv_cell(value: str | float | bool | None) -> str | float | None:
    """A cell or a heading of a CSV file that no spreadsheet reads as a formula; numbers stay numbers.

    The rule: OWASP, "CSV Injection": an apostrophe before a cell that begins with a character of formulas, also where
    a spreadsheet separates cells by semicolons. Tabs and line ends become spaces, since some separate cells there too.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    one_line = _SEPARATED.sub(" ", bounded(visible(value), LONGEST_IN_SHEET))
    return bounded(disobeyed(_FORMULA.sub(r"\1\2'", one_line)), LONGEST_IN_SHEET)


def xml(text: str) -> str:
    """One line of text in XML. The rule: XML 1.0, production 2 ``Char``; the library that writes XML does the rest."""
    return disobeyed(visible(bounded(_one_line(text))))


def json_text(text: str) -> str:
    """JSON for a terminal or a file: characters that a terminal would obey or UTF-8 cannot encode become escapes.

    The rule: RFC 8259, section 7: ``\\u`` and four hexadecimal digits, which stand for the same character.
    """
    if not text.isprintable():
        text = "".join(each if each == "\n" or each.isprintable() else _json_escape(each) for each in text)
    return text.replace("##[", "#\\u0023[")


def terminal(text: str) -> str:
    """One line for a terminal, without anything that it or GitHub's runner would obey.

    The rule: ECMA-48 (control sequences begin with a character of C0 or C1); controls, line ends and marks that reorder
    text are shown as spaces. GitHub's runner obeys lines that begin with ``::`` and any that contain ``##[`` ("Workflow
    commands").
    """
    return disobeyed(bounded(text if text.isprintable() else _OBEYED.sub(" ", text), LONGEST_LINE))


def terminal_lines(text: str) -> str:
    """A message of several lines for a terminal."""
    lines = text.split("\n", MOST_LINES)
    return "\n".join([*map(terminal, lines[:MOST_LINES]), *(["…"] if len(lines) > MOST_LINES else [])])


def disobeyed(line: str) -> str:
    """A line that is no command to GitHub's runner."""
    if not may_command(line):
        return line
    if line.lstrip().startswith("::"):
        line = line.replace("::", ": :", 1)
    return line.replace("##[", "## [")


def may_command(text: str) -> bool:
    """Whether any of its lines may be a command to GitHub's runner; of most texts, none is."""
    return "::" in text or "##[" in text


_NOT_IN_MLFLOW = re.compile(r"[^\w\-./: ]")


def mlflow_name(text: str) -> str:
    """A name of a metric, a parameter or a tag. The rule: ``mlflow.utils.validation``: a name must be a proper path."""
    name = _NOT_IN_MLFLOW.sub("_", text)[:LONGEST_MLFLOW_NAME]
    if name != posixpath.normpath(name) or name.startswith(("/", "..")) or name == ".":
        name = name.replace("/", "_").replace("..", "__")
    return "_" if name in ("", ".") else name


def mlflow_value(text: str) -> str:
    """A value of a parameter or a tag, or a name of a run; within MLflow's limits of length."""
    return visible(bounded(text, LONGEST_MLFLOW_VALUE))


def file_name(words: str, used: set[str]) -> str:
    """A name of letters, digits, dots and dashes, with a number if it is among the ``used``, which it joins."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:LONGEST_FILE_NAME].rstrip("-.") or "unnamed"
    name, number = plain, 1
    while name in used:
        number += 1
        name = f"{plain}-{number}"
    used.add(name)
    return name


def unique(names: Iterable[str]) -> list[str]:
    """Names in which a repeated one gets a number, for formats in which two columns may not share one."""
    found: dict[str, None] = {}
    for name in names:
        number, own = 1, name
        while own in found:
            number += 1
            own = f"{name[: LONGEST_MLFLOW_NAME - 8]} {number}"
        found[own] = None
    return list(found)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _unmention(text: str) -> str:
    return _MENTION.sub(lambda match: f"{match[0]}{_BREAK}", text)


def _escape_first(match: re.Match[str]) -> str:
    marks, number, dot, command = match.groups()
    return f"{number}\\{dot}" if number else f"\\{marks or command}"


def _json_escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))
