"""Generated texts: what the baseline wrote after some prompts, as token ids, so that every engine scores the same ones.

A window is a prompt and its answer, and only the answer is scored. If the answers are drawn at temperature 1, the mean
over answers of an answer's summed KL(baseline ‖ variant) estimates the divergence of the two distributions of answers,
by the chain rule of relative entropy (Cover and Thomas, Elements of Information Theory, section 2.5).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from harness.core.foreign import parse_json, read_file
from harness.core.metric import Windows
from harness.core.workload import GENERATED, PerplexityWorkload
from harness.errors import DamagedError, ResultsError, UnsupportedError
from harness.text.sources import rows
from harness.text.windows import tokens_sha256

VERSION = 1
"""Increased whenever the way a text is written changes."""
FILE = "generated.json"
MAX_BYTES = 2**28
"""The largest file that is read."""


def prompts(workload: PerplexityWorkload, tokenizer: Any) -> list[list[int]]:
    """The tokens of the prompts, in order.

    Raises UnsupportedError if there is none, if one leaves no room for an answer, or if there is no chat template.
    """
    assert workload.generation is not None
    chat = workload.generation.chat_template
    if chat and getattr(tokenizer, "chat_template", None) is None:
        raise UnsupportedError("a generated text wants the chat template, and the model's tokenizer has none")
    written = list(islice((row.strip() for row in rows(workload.text) if row.strip()), workload.windows))
    if not written:
        raise UnsupportedError(f"text {workload.text.id!r} holds no prompt")
    texts = [_as_chat(prompt, tokenizer) for prompt in written] if chat else written
    found: list[list[int]] = tokenizer(texts, add_special_tokens=not chat, verbose=False)["input_ids"]
    for prompt, tokens in zip(written, found, strict=True):
        if not 0 < len(tokens) < workload.context:
            raise UnsupportedError(
                f"prompt {prompt[:40]!r} has {len(tokens)} tokens, and a window of {workload.context} must hold at "
                "least one, and one of the answer: increase 'tokens'"
            )
    return found


def windows(
    workload: PerplexityWorkload,
    asked: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    ends: Collection[int],
) -> Windows:
    """Prompts with their answers as windows. ``ends`` are the tokens with which the model ends a text."""
    assert workload.generation is not None
    tokens = [[*prompt, *answer] for prompt, answer in zip(asked, answers, strict=True)]
    prompted = "\n".join(rows(workload.text)).encode()
    return Windows(
        tokens,
        [len(prompt) for prompt in asked],
        [str(index) for index in range(len(tokens))],
        {
            "protocol": GENERATED,
            "context": workload.context,
            **asdict(workload.generation),
            "windows": len(tokens),
            "ended": sum(answer[-1] in ends for answer in answers),
            "tokens_scored": sum(map(len, answers)),
            "text": workload.text.id,
            "text_sha256": hashlib.sha256(prompted).hexdigest(),
            "tokens_sha256": tokens_sha256(tokens),
        },
    )


def save(written: Windows, folder: Path) -> None:
    """Writes plain JSON, so that an environment without this one's libraries reads the same ids."""
    content = {"tokens": written.tokens, "firsts": written.firsts, "protocol": dict(written.protocol)}
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


def read(folder: Path) -> Windows:
    """Reads what ``save`` wrote. Raises DamagedError if it cannot be read, or its ids do not match their hash."""
    try:
        content = parse_json(read_file(folder / FILE, MAX_BYTES, ResultsError), FILE, ResultsError, MAX_BYTES)
        found = Windows(
            content["tokens"],
            content["firsts"],
            [str(index) for index in range(len(content["tokens"]))],
            content["protocol"],
        )
        whole = tokens_sha256(found.tokens) == found.protocol["tokens_sha256"]
    except (ResultsError, KeyError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise DamagedError(f"{folder}: damaged; delete it and run the recipe again")
    return found


def _as_chat(prompt: str, tokenizer: Any) -> str:
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
