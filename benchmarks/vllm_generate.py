"""Generation by lm-eval's HFLM on transformers and by the harness on vLLM: the same gsm8k questions, in one process.

``OMP_NUM_THREADS=CORES PYTHON benchmarks/vllm_generate.py MODEL DATA [QUESTIONS [NEW_TOKENS [SHOTS]]]``, with the
interpreter of the stack ``vllm``, on a machine that does nothing else. MODEL is a folder with a checkpoint, run in
float32; DATA is a folder with ``gsm8k/test.jsonl``. HFLM runs at several batch sizes, vLLM takes its turn among them,
and all of that is repeated. The best time of each counts. Prints a Markdown table, which
docs/measurements/vllm-cpu.md records.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tasks_speed import Case, requests_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.core.engine import LoadRequest
from harness.engines.vllm.engine import load
from harness.tasks.lm import HarnessLM

BATCH_SIZES = (1, 4, 8, 16, 32)
BEFORE_VLLM = (4, 32)
"""The batch sizes of HFLM after which vLLM runs."""
REPEATS = 2


@dataclass
class Runs:
    """The seconds of each run, and the texts of the last."""

    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def add(self, answer: Callable[[], list[str]]) -> None:
        start = time.perf_counter()
        self.texts = answer()
        self.seconds.append(time.perf_counter() - start)

    @property
    def best(self) -> float:
        return min(self.seconds)


def main(model: str, data: str, questions: str = "32", new_tokens: str = "256", shots: str = "2") -> None:
    logging.disable(logging.WARNING)  # HFLM warns about every model passed to it
    case = Case("gsm8k", "gsm8k/test.jsonl", int(questions), fewshot=int(shots), new_tokens=int(new_tokens))
    requests = requests_of(case, Path(data))
    start = time.perf_counter()
    serving = load(LoadRequest(Path(model), "float32", "cpu"))
    serving.probe_head()
    started_s = time.perf_counter() - start
    raw = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = {size: Runs() for size in BATCH_SIZES}
    ours = Runs()
    for _ in range(REPEATS):
        for size, runs in theirs.items():
            judge = HFLM(pretrained=raw, tokenizer=tokenizer, batch_size=size)
            runs.add(partial(judge.generate_until, requests, disable_tqdm=True))
            print(f"HFLM, batch {size}: {runs.seconds[-1]:.1f} s", file=sys.stderr, flush=True)
            if size in BEFORE_VLLM:
                ours.add(partial(HarnessLM(serving).generate_until, requests))
                print(f"vLLM: {ours.seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "lm-eval", "vllm-cpu")))
    print(f"{torch.get_num_threads()} threads; vLLM was loaded in {started_s:.1f} s")
    _table(tokenizer, requests, theirs, ours)


def _table(tokenizer: AutoTokenizer, requests: list[Instance], theirs: dict[int, Runs], ours: Runs) -> None:
    read = sum(len(tokenizer(request.args[0])["input_ids"]) for request in requests)
    kept = sum(len(tokenizer(text)["input_ids"]) for text in ours.texts)
    best = min(theirs, key=lambda size: theirs[size].best)
    print(f"{len(requests)} questions, {read:,} tokens read, {kept:,} tokens of answers kept\n")
    print("| | s | answers, tok/s | other texts than HFLM's, batch 1 |\n| --- | ---: | ---: | ---: |")
    for name, runs in (*((f"HFLM, batch {size}", runs) for size, runs in theirs.items()), ("vLLM", ours)):
        changed = sum(one != other for one, other in zip(runs.texts, theirs[1].texts, strict=True))
        print(f"| {name} | {runs.best:.1f} | {kept / runs.best:.1f} | {changed} |")
    print(f"\nvLLM is **{theirs[best].best / ours.best:.2f} ×** as fast as HFLM at batch {best}, its best")


if __name__ == "__main__":
    main(*sys.argv[1:])
