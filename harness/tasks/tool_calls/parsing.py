"""Reads the tool calls in an answer, in the formats that models write.

Special tokens may be missing from the text, as in what lm-eval's tasks get. Known formats:

- plain JSON, an object or a list of them, also in a fence of code: ``{"name": …, "arguments": {…}}``
- Hermes and Qwen: ``<tool_call>{…}</tool_call>``; Qwen3-Coder: ``<function=NAME><parameter=P>V</parameter></function>``
- Llama 3: ``{"name": …, "parameters": {…}}``, after ``<|python_tag|>`` or not; and calls as in Python, ``[f(a=1)]``
- Mistral: ``[TOOL_CALLS][{…}]``, and ``[TOOL_CALLS]NAME[ARGS]{…}``
- gpt-oss (harmony): ``<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>``
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MOST_CHARACTERS = 20_000
"""Of an answer that are read."""
DEEPEST = 100
"""Brackets one after another that open a list of calls, at most: a model that loops writes many more."""
_HARMONY = re.compile(r"to=(?:functions\.)?([\w.-]+?)(?=[\s<{]|json)[^{]*?(?=\{)")
_NAMED = re.compile(r"(?:\[TOOL_CALLS\]\s*)?([A-Za-z_][\w.-]*)(?:\s*\[CALL_ID\]\S*?)?(?:\s*\[ARGS\])?\s*(?=\{)")
_XML_END = "</function>"
_XML = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\s]+)>(.*?)</parameter>", re.DOTALL)
_PYTHON = re.compile(r"^(?:<\|python_tag\|>)?\s*(\[?\s*[A-Za-z_][\w.]*\(.*\)\s*\]?)\s*$", re.DOTALL)
_MARKS = re.compile(r"</?tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]|```(?:json|tool_call)?|<\|[\w]+\|>")


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments."""

    name: str
    arguments: dict[str, Any]


def calls(answer: str) -> tuple[Call, ...]:
    """All calls in an answer without its thinking, in order; empty if there is none that can be read."""
    text = answer.strip()[:MOST_CHARACTERS]
    for read in (_harmony, _xml, _objects, _named, _python):
        found = tuple(read(text))
        if found:
            return found
    return ()


def _harmony(text: str) -> Iterator[Call]:
    for match in _HARMONY.finditer(text[: text.rfind("{") + 1]):  # from a name on all is read until there is one
        found = _json_at(text, match.end())
        if found is not None and isinstance(found[0], dict):
            yield Call(match[1], found[0])


def _xml(text: str) -> Iterator[Call]:
    for name, inside in _XML.findall(text[: text.rfind(_XML_END) + len(_XML_END)]):
        yield Call(name, {key: _value(value.strip()) for key, value in _XML_PARAMETER.findall(inside)})


def _objects(text: str) -> Iterator[Call]:
    """JSON objects that name a tool, alone, in lists, or between a format's marks."""
    place = 0
    while (start := min((at for at in (text.find(c, place) for c in "{[") if at >= 0), default=-1)) >= 0:
        found = _json_at(text, start)
        if found is None:
            if text[start] == "{" or text.startswith("[" * DEEPEST, start):
                return  # what is broken is not looked into for a smaller call
            place = start + 1
            continue
        value, place = found
        for each in value if isinstance(value, list) else [value]:
            call = _call(each)
            if call is not None:
                yield call


def _named(text: str) -> Iterator[Call]:
    """``NAME{…}``, with nothing else but a format's marks around."""
    place, bare = 0, _MARKS.sub("", text).strip() if "[TOOL_CALLS]" not in text else text
    while (match := _NAMED.match(bare, place)) is not None:
        found = _json_at(bare, match.end())
        if found is None or not isinstance(found[0], dict):
            return
        yield Call(match[1], found[0])
        place = found[1]


def _python(text: str) -> Iterator[Call]:
    """``f(a=1)`` or ``[f(a=1), g(b="x")]``, with literals alone."""
    match = _PYTHON.match(_MARKS.sub("", text).strip())
    if match is None:
        return
    try:
        body = ast.parse(match[1], mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return
    for node in body.elts if isinstance(body, ast.List) else [body]:
        if not isinstance(node, ast.Call) or node.args:
            return
        try:
            arguments = {str(each.arg): ast.literal_eval(each.value) for each in node.keywords}
            name = ast.unparse(node.func)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return
        yield Call(name.removesuffix(".call"), arguments)


def _call(value: Any) -> Call | None:
    """A call from a JSON object of any of the formats."""
    if not isinstance(value, dict):
        return None
    value = value.get("function") if isinstance(value.get("function"), dict) else value
    arguments = next((value[key] for key in ("arguments", "parameters", "args") if key in value), None)
    if isinstance(arguments, str):
        arguments = _value(arguments)
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        return None
    return Call(value["name"], arguments)


def _json_at(text: str, start: int) -> tuple[Any, int] | None:
    """The JSON value at a place and where it ends; None if there is none. What no JSON has, such as NaN, is none."""
    try:
        return json.JSONDecoder(parse_constant=_refuse).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _value(text: str) -> Any:
    """A value that is written as JSON, or else the text itself."""
    found = _json_at(text, 0)
    return found[0] if found is not None and found[1] == len(text) else text
