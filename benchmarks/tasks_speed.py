"""CPU seconds of the harness's LM and of lm-eval's HFLM: ``python benchmarks/tasks_speed.py MODEL DATA [TASK …]``.

MODEL is a folder with a checkpoint, run in float32. DATA is a folder with the questions as JSON lines (hellaswag,
arc_easy, piqa, winogrande, lambada_openai, wikitext2, gsm8k). HFLM runs at several batch sizes, and its best one
counts. Prints a Markdown table, which docs/measurements/tasks-speed-cpu.md records.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.core.workload import TaskWorkload, TextRef
from harness.engines.transformers.engine import TransformersModel
from harness.tasks.catalog import catalog
from harness.tasks.definitions import load
from harness.tasks.lm import HarnessLM

BATCH_SIZES = (1, 2, 4, 8, 16)
REPEATS = 2
"""Runs of the harness; HFLM runs once per batch size."""


@dataclass(frozen=True)
class Case:
    """A task, its settings and the number of questions."""

    task: str
    file: str
    items: int
    fewshot: int = 0
    sampler: Any = None
    new_tokens: int | None = None

    @property
    def label(self) -> str:
        shots = f", {self.fewshot}-shot" if self.fewshot else ""
        return self.task + shots + (", the same examples for all" if self.sampler == "first_n" else "")


CASES = (
    Case("hellaswag", "hellaswag/validation_1000.jsonl", 24),
    Case("arc_easy", "arc_easy/test.jsonl", 40),
    Case("piqa", "piqa/validation.jsonl", 40),
    Case("winogrande", "winogrande/validation.jsonl", 40),
    Case("arc_easy", "arc_easy/test.jsonl", 3, fewshot=25),
    Case("arc_easy", "arc_easy/test.jsonl", 8, fewshot=10, sampler="first_n"),
    Case("lambada_openai", "lambada_openai/test.jsonl", 30),
    Case("wikitext", "wikitext2/wiki.test.raw", 2),
    Case("gsm8k", "gsm8k/test.jsonl", 10, fewshot=2, new_tokens=80),
)


@dataclass
class Run:
    """The cost and the results of one run."""

    cpu_s: float
    tokens: int
    head_rows: int
    found: list[Any]
    batch_size: int = 0


class Counter:
    """Counts the tokens through a model's decoder and through its head, whoever calls them."""

    def __init__(self, model: Any) -> None:
        self.tokens = self.head_rows = 0
        self._decoder, self._head = model.get_decoder(), model.get_output_embeddings()
        matrices = sum(weight.numel() for weight in self._decoder.parameters() if weight.dim() == 2)
        self.decoder_parameters = matrices - model.get_input_embeddings().weight.numel()
        self.head_parameters = self._head.weight.numel()

    def operations(self, run: Run) -> float:
        """Operations of the products with weights: all but a few percent of the work at these lengths."""
        return float(2 * (run.tokens * self.decoder_parameters + run.head_rows * self.head_parameters))

    def run(self, answer: Callable[[], list[Any]]) -> Run:
        with self._counting():
            start = time.process_time()
            found = answer()
            return Run(time.process_time() - start, self.tokens, self.head_rows, found)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        self.tokens = self.head_rows = 0

        def decoded(_: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
            self.tokens += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()

        def headed(_: Any, args: Sequence[Any]) -> None:
            self.head_rows += args[0].shape[:-1].numel()

        hooks = (
            self._decoder.register_forward_pre_hook(decoded, with_kwargs=True),
            self._head.register_forward_pre_hook(headed),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def main(model: str, data: str, *names: str) -> None:
    logging.disable(logging.WARNING)  # HFLM warns about every model passed to it
    raw = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    wrapped = TransformersModel(raw, tokenizer)
    wrapped.probe_head()
    counter = Counter(raw)
    print(f"{torch.get_num_threads()} threads, layout {HarnessLM(wrapped).layout}, budget {HarnessLM(wrapped).budget}")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers", "lm-eval")))
    print(
        "| task | questions | HFLM: batch size | tokens | head rows | CPU s | ours: tokens | head rows | CPU s"
        " | fewer operations | less CPU time | largest difference, nat | changed |"
    )
    print("| --- |" + " ---: |" * 12)
    for case in CASES:
        if not names or case.task in names:
            print(_line(case, requests_of(case, Path(data)), raw, wrapped, counter), flush=True)


def _line(case: Case, requests: list[Instance], raw: Any, wrapped: TransformersModel, counter: Counter) -> str:
    kind = requests[0].request_type
    method = "loglikelihood" if kind == "multiple_choice" else kind
    ours = [counter.run(lambda: getattr(HarnessLM(wrapped), method)(requests)) for _ in range(REPEATS)]
    theirs = []
    for size in BATCH_SIZES:
        judge = HFLM(pretrained=raw, tokenizer=wrapped.tokenizer, batch_size=size)
        theirs.append(counter.run(partial(getattr(judge, method), requests, disable_tqdm=True)))
        theirs[-1].batch_size = size
    print(f"{case.label}: ours {_times(ours)}; HFLM {_times(theirs)}", file=sys.stderr, flush=True)
    mine, best = (min(runs, key=lambda run: run.cpu_s) for runs in (ours, theirs))
    difference, changed = _compared(requests, mine.found, best.found)
    return (
        f"| {case.label} | {len({request.doc_id for request in requests})} | {best.batch_size} | {best.tokens:,}"
        f" | {best.head_rows:,} | {best.cpu_s:.1f} | {mine.tokens:,} | {mine.head_rows:,} | {mine.cpu_s:.1f}"
        f" | {counter.operations(best) / counter.operations(mine):.2f} × | **{best.cpu_s / mine.cpu_s:.2f} ×**"
        f" | {difference} | {changed} |"
    )


def _times(runs: Sequence[Run]) -> str:
    return ", ".join(f"{run.cpu_s:.1f}" for run in runs)


def _compared(requests: Sequence[Instance], ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[str, int]:
    """The largest difference of log-likelihoods, and the number of items with another most likely choice or text."""
    if isinstance(ours[0], str):
        return "—", sum(one != other for one, other in zip(ours, theirs, strict=True))
    first, second = ([each if isinstance(each, float) else each[0] for each in found] for found in (ours, theirs))
    difference = max(abs(one - other) for one, other in zip(first, second, strict=True))
    items: dict[int | None, list[int]] = {}
    for index, request in enumerate(requests):
        items.setdefault(request.doc_id, []).append(index)
    changed = sum(max(item, key=first.__getitem__) != max(item, key=second.__getitem__) for item in items.values())
    if isinstance(ours[0], tuple):
        changed += sum(one[1] != other[1] for one, other in zip(ours, theirs, strict=True))
    return f"{difference:.0e}", changed


def requests_of(case: Case, data: Path) -> list[Instance]:
    """Requests of the first questions. Examples are other questions, because lm-eval excludes the question itself."""
    with tempfile.TemporaryDirectory() as folder:
        lines = (data / case.file).read_text(encoding="utf-8").splitlines(keepends=True)
        if case.task == "wikitext":
            lines = [json.dumps({"page": page}) + "\n" for page in _pages(lines)]
        questions, examples = Path(folder, "questions.jsonl"), Path(folder, "examples.jsonl")
        questions.write_text("".join(lines[: case.items]), encoding="utf-8")
        examples.write_text("".join(lines[case.items :]), encoding="utf-8")
        workload = TaskWorkload(
            case.task,
            str(catalog().paths[case.task]),
            fewshot=case.fewshot,
            sampler=case.sampler,
            data=TextRef(case.task, path=str(questions)),
            fewshot_data=TextRef(case.task, path=str(examples)),
        )
        (task,) = load(workload)["tasks"].values()
        task.build_all_requests(rank=0, world_size=1)
    for request in task.instances:
        if case.new_tokens:
            request.arguments = (request.args[0], {**request.args[1], "max_gen_toks": case.new_tokens})
    return list(task.instances)


def _pages(lines: Sequence[str]) -> Iterator[str]:
    """The pages of WikiText: each begins at a title between single equals signs."""
    page: list[str] = []
    for line in lines:
        if line.startswith(" = ") and not line.startswith(" = = "):
            if "".join(page).strip():
                yield "".join(page)
            page = []
        page.append(line)
    yield "".join(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
