"""Removes the spaces around WikiText's punctuation, as lm-eval's ``wikitext`` task does before it scores a page.

The rules, their order and their two oddities (the second rule and the pairing of quotes) are those of
lm_eval/tasks/wikitext/preprocess_wikitext.py, version 2.0 of the task. A different result would change the perplexity.
"""

from __future__ import annotations

import re

BEFORE = (("s '", "s'"),)
NUMBERED_QUOTE = re.compile("/' [0-9]/")
SPACED = (
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
PAIRS = tuple(
    (re.compile(rf"{opening}\s*([^{closing}]*?)\s*{closing}"), rf"{plain[0]}\1{plain[1]}")
    for opening, closing, plain in (
        (r"\(", r"\)", "()"),
        (r"\[", r"\]", "[]"),
        ("{", "}", "{}"),
        ('"', '"', '""'),
        ("'", "'", "''"),
    )
)
AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize(page: str) -> str:
    """A page of WikiText in the form that is scored."""
    for old, new in BEFORE:
        page = page.replace(old, new)
    page = NUMBERED_QUOTE.sub("/'[0-9]/", page)
    for old, new in SPACED:
        page = page.replace(old, new)
    for pattern, inner in PAIRS:
        page = pattern.sub(inner, page)
    for old, new in AFTER:
        page = page.replace(old, new)
    return page
