"""The site's reference of the commands, from the command line itself: ``python docs/make_commands.py`` prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import typer.main

from harness.cli.app import app

INTRO = """\
# Commands

Made from the command line itself: `qharness COMMAND --help` says the same. Errors end with one message and an
[exit code](results.md#exit-codes)."""


def render() -> str:
    """The whole page."""
    return "\n\n".join([INTRO, *_sections(typer.main.get_command(app), "qharness", 2)]) + "\n"


def _sections(command: object, path: str, level: int) -> Iterator[str]:
    for name, each in sorted(command.commands.items()):
        whole = f"{path} {name}"
        yield f"{'#' * level} {whole}"
        if hasattr(each, "commands"):
            yield each.help
            yield from _sections(each, whole, level + 1)
        else:
            yield from _command(each, whole)


def _command(command: object, path: str) -> Iterator[str]:
    context = command.make_context(path, [], resilient_parsing=True)
    yield f"```text\n{' '.join([path, *command.collect_usage_pieces(context)])}\n```"
    yield " ".join(command.help.split())
    rows = [record for each in command.get_params(context) if (record := each.get_help_record(context))]
    lines = [f"| `{name.replace('|', chr(92) + '|')}` | {_cell(text)} |" for name, text in rows if name != "--help"]
    if lines:
        yield "\n".join(["| argument or option | meaning |", "| --- | --- |", *lines])


def _cell(text: str) -> str:
    return re.sub(r"([|*_\[\]<>])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    print(render(), end="")
