"""Prompts with tools: in a plain format, and from that through the chat template of a model that takes tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

HEAD = (
    "You have the following tools, each on a line as JSON. Answer the request with one call of the tool that fits, as "
    'one JSON object and nothing else: {"name": <name of the tool>, "arguments": <object with its arguments>}\n'
)
REQUEST, CALL = "\nRequest: ", "\nCall:"


def plain(tools: Sequence[dict[str, Any]], request: str) -> str:
    """The documented plain format: what to do, the tools one a line, the request, and where the call begins."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return f"{HEAD}{lines}{REQUEST}{request}{CALL}"


def parts(prompt: str) -> tuple[list[dict[str, Any]], str] | None:
    """The tools and the request of a prompt in the plain format; None for any other text."""
    if not (prompt.startswith(HEAD) and prompt.endswith(CALL)):
        return None
    lines, _, request = prompt[len(HEAD) : -len(CALL)].rpartition(REQUEST)
    return [{"type": "function", "function": json.loads(line)} for line in lines.split("\n")], request


def templated(tokenizer: Any, prompt: str) -> str | None:
    """A prompt in the plain format as a chat by the model's own template, with its tools where the template takes them.

    None if the text is not in the plain format. The plain format itself if there is no template; as the user's message
    if the template leaves tools out.
    """
    found = parts(prompt)
    if found is None:
        return None
    if getattr(tokenizer, "chat_template", None) is None:
        return prompt
    tools, request = found
    settings: dict[str, Any] = {"tokenize": False, "add_generation_prompt": True}
    chat = str(tokenizer.apply_chat_template([{"role": "user", "content": request}], tools=tools, **settings))
    if all(tool["function"]["name"] in chat for tool in tools):
        return chat
    return str(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], **settings))
