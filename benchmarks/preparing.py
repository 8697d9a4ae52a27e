"""What a run spends on cutting its text or building its requests, beside reading the same tokens from a JSON file.

``python benchmarks/preparing.py TOKENIZER TEXT QUESTIONS``: a folder with a tokenizer, a text file, and ARC's questions
as JSON lines. Prints CPU seconds, once each, of what a cache of tokens would save and of what it would still cost: it
must know the tokenizer and the text by their content, read the tokens, and check their seal.
docs/measurements/preparing-cpu.md records it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer

from harness.core.workload import PerplexityWorkload, TaskWorkload, TextRef
from harness.storage.checksums import file_sha256
from harness.storage.folder_seal import has_valid_seal, with_seal
from harness.tasks.catalog import catalog
from harness.tasks.definitions import load
from harness.text.windows import cut

DEMO = Path(__file__).parents[1] / "harness" / "text" / "data" / "demo.txt"
PROTOCOLS = ("gptq", "sliding", "llama_cpp")
CONTEXT = 512
QUESTIONS, SHOTS = 500, 5
T = TypeVar("T")


def timed(name: str, action: Callable[[], T]) -> T:
    began = time.process_time()
    found = action()
    print(f"{name:58} {time.process_time() - began:7.3f} s", flush=True)
    return found


def kept(tokens: Any) -> None:
    """Writes and reads the tokens as a sealed JSON object."""
    text = json.dumps(with_seal({"tokens": json.dumps(tokens)}))
    timed(f"    the same from {len(text) / 1e6:.1f} MB of sealed JSON", lambda: unsealed(text))


def unsealed(text: str) -> Any:
    raw = json.loads(text)
    assert has_valid_seal(raw)
    return json.loads(raw["tokens"])


def texts(tokenizer: Any, path: Path) -> None:
    text = TextRef(path.name, str(path), sha256="0" * 64)
    for protocol in PROTOCOLS:
        workload = PerplexityWorkload(text, protocol, CONTEXT, None)
        windows = timed(f"cut {path.name}, {protocol}", lambda workload=workload: cut(workload, tokenizer))  # type: ignore[misc]
        kept(windows.tokens)


def task(tokenizer: Any, questions: Path, shots: int) -> None:
    workload = TaskWorkload(
        "arc_easy",
        str(catalog().paths["arc_easy"]),
        data=TextRef("arc_easy", str(questions)),
        fewshot=shots,
        limit=QUESTIONS,
    )
    loaded = timed(f"arc_easy: load {QUESTIONS} questions", lambda: load(workload))
    [asked] = loaded["tasks"].values()
    timed(f"arc_easy, {shots}-shot: build the requests", lambda: asked.build_all_requests(limit=QUESTIONS))
    pairs = [instance.args for instance in asked.instances]
    distinct = list(dict.fromkeys(each for context, rest in pairs for each in (context, context + rest)))
    rows = timed(f"arc_easy, {shots}-shot: {len(distinct)} texts to tokens", lambda: tokenizer(distinct)["input_ids"])
    kept(rows)


def main(folder: str, text: str, questions: str) -> None:
    logging.disable(logging.WARNING)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer("begin")
    timed("the tokenizer's file, hashed", lambda: file_sha256(Path(folder, "tokenizer.json")))
    texts(tokenizer, DEMO)
    texts(tokenizer, Path(text))
    for shots in (0, SHOTS):
        task(tokenizer, Path(questions), shots)


if __name__ == "__main__":
    main(*sys.argv[1:])
