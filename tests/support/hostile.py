"""Hostile strings, and records in which every free string is one of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from pydantic import TypeAdapter

from harness.core.record import RunRecord
from harness.storage.json_codec import encode

CORPUS = {
    "script": "<script>alert(1)</script>",
    "script's end": "x</script><script>alert(2)</script><!-- ",
    "attribute": '"\' onmouseover=alert(3) x="',
    "HTML image": '"><img src="http://evil.example/a.png" onerror=alert(4)>',
    "HTML ends": "</style></pre></summary></details></td></table><svg onload=alert(5)><a href=javascript:alert(6)>y",
    "Markdown image": "![x](http://evil.example/b.png) ![y][z]",
    "Markdown link": "[x](javascript:alert(7)) <http://evil.example/c> [z]: http://evil.example/d",
    "autolinks": "http://evil.example/e www.evil.example mail@evil.example mailto:a@evil.example FTP://evil.example",
    "mentions": "@torvalds @org/team fixes #1 GH-2 owner/name#3",
    "cells": "a|b\\|c `|` ``` \n| x | y | z |\n|---|---|---|\n| 1 | 2 | 3 |",
    "heading": "# heading\n\n## another\n===\n",
    "item": "- item\n\n* item\n\n1. item\n\n    code\n\n> quote",
    "ordered": "1. item",
    "line": "---\nlicense: mit\n---\n",
    "fence": "```\n~~~\n<b>x</b>",
    "emphasis": "**x** _y_ ~~z~~ `w` $q$ $$r$$ [^1] :smile:",
    "formula": "=cmd|'/c calc'!A1",
    "plus": "+1+cmd|'/c calc'!A1",
    "minus": "-2+3+cmd|'/c calc'!A1",
    "sum": "@SUM(1+1)",
    "tab": "\t=1+1",
    "carriage return": "\r=1+1",
    "semicolon": "x;=1+1\t=2+2",
    "wide": "＝1+1",
    "terminal": "\x1b[2J\x1b[31mred\x1b]0;title\x07\x1b]8;;http://evil.example\x07 \x9b2J \x00\x08\x7f",
    "direction": "\u202egnp.exe\u2066\u200f\u061c",
    "surrogate": "\ud800 \udfff \ufffe",
    "markup": "[/b] [red]x[/red] [link=http://evil.example]y[/link] [[ ] [/",
    "line ends": "x\r\nqharness: all gates hold\u2028\u2029\x85\x0b\x0cy",
    "workflow": "::error::x\n::set-output name=x::y",
    "old workflow": "##[error]x\n ::add-mask::y",
    "TeX": "$\\href{javascript:alert(8)}{x}$ $`x`$",
    "plotly": '<a href="http://evil.example/f">x</a><br><b>y</b> %{x} &lt;i&gt;z&lt;/i&gt; &#60;u>',
    "XML": "]]> \x0b &entity; <!DOCTYPE x> <![CDATA[y]]>",
    "YAML": "!!python/object/apply:os.system ['x'] # y\n&a *a : {b: c}",
    "template": "{{ 7*7 }} {% raw %} {# x #}",
    "path": "../../../etc/passwd",
    "parent": "..",
    "root": "//x//",
    "long": "L" * 20_000,
}

_RECORD: TypeAdapter[RunRecord] = TypeAdapter(RunRecord)
FREE = frozenset(
    {
        *("recipe", "session", "hardware", "engine", "lock", "label", "id", "path", "native_quantization", "currency"),
        *("unit", "message", "log_tail", "type", "scope", "text", "task", "score", "filter", "joiner", "cpu"),
        *("python", "qharness", "torch", "transformers", "value", "name"),
    }
)
"""The keys of a record under which any text may stand; under the others only words of a list may."""
OPEN = frozenset({"hardware", "software", "protocol"})
"""The objects whose keys are free too; none may be missing, so one is added."""


def pick(words: Sequence[str], key: str) -> str:
    """The word for the strings under one key of a record."""
    return words[crc32(key.encode()) % len(words)]


def spoiled(records: Sequence[RunRecord], *words: str) -> list[RunRecord]:
    """Every free string of the records begins with one of the words, which its key determines.

    Equal strings under a key stay equal, and different ones stay different.
    """
    # Not decode(): it refuses lone surrogates, which a record in memory may have from a plugin or a library.
    return [_RECORD.validate_python(_spoiled(json.loads(encode(record)), words)) for record in records]


def _spoiled(value: Any, words: Sequence[str], key: str = "") -> Any:
    word = pick(words, key)
    if isinstance(value, dict):
        found = {name: _spoiled(each, words, name) for name, each in value.items()}
        return {**found, word[:500]: word} if key in OPEN else found
    if isinstance(value, list):
        return [_spoiled(each, words, key) for each in value]
    return f"{word}{value}" if isinstance(value, str) and key in FREE else value
