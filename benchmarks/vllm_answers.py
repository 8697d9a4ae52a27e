"""Whether vLLM answers as transformers does: ``PYTHON benchmarks/vllm_answers.py MODEL DATA [QUESTIONS]``.

PYTHON is the interpreter of the stack ``vllm``, MODEL a folder with a checkpoint, run in float32 by both; DATA is a
folder with the tasks' JSON lines files. Each task's questions are asked through the same LM interface. Prints a
Markdown table: per task the largest difference of a log-likelihood, and how many choices, greedy flags or texts differ.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from tasks_speed import Case, requests_of

from harness.core.capability import Factored
from harness.core.engine import LoadRequest
from harness.engines.transformers.engine import load as load_transformers
from harness.engines.vllm.engine import imports, load
from harness.tasks.lm import HarnessLM

FILES = {
    "hellaswag": "hellaswag/validation_1000.jsonl",
    "arc_easy": "arc_easy/test.jsonl",
    "piqa": "piqa/validation.jsonl",
}
GENERATED = 20
"""Questions of gsm8k, after two examples each, with at most 96 new tokens."""


def main(model: str, data: str, questions: str = "60") -> None:
    logging.disable(logging.WARNING)
    cases = [Case(name, file, int(questions)) for name, file in FILES.items()]
    cases.append(Case("gsm8k", "gsm8k/test.jsonl", GENERATED, fewshot=2, new_tokens=96))
    asked = {case.task: requests_of(case, Path(data)) for case in cases}
    request = LoadRequest(Path(model), "float32", "cpu")
    imports()
    expected = _answers(load_transformers(request), asked)
    answers = _answers(load(request), asked)
    print("| task | questions | largest difference (nat) | choices that differ | greedy flags or texts that differ |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for task, requests in asked.items():
        print(_row(task, requests, expected[task], answers[task]))


def _answers(model: Factored, asked: dict[str, list[Instance]]) -> dict[str, list[Any]]:
    model.probe_head()
    found = {}
    for task, requests in asked.items():
        lm = HarnessLM(model)
        found[task] = list(getattr(lm, requests[0].request_type)(requests))
    model.close()
    return found


def _row(task: str, requests: Sequence[Instance], expected: Sequence[Any], answers: Sequence[Any]) -> str:
    questions = [list(group) for _, group in groupby(range(len(requests)), key=lambda index: requests[index].doc_id)]
    if requests[0].request_type == "generate_until":
        differing = sum(mine != theirs for mine, theirs in zip(answers, expected, strict=True))
        return f"| {task} | {len(questions)} | – | – | {differing} |"
    largest = max(abs(mine[0] - theirs[0]) for mine, theirs in zip(answers, expected, strict=True))
    flags = sum(mine[1] != theirs[1] for mine, theirs in zip(answers, expected, strict=True))
    moved = sum(_choice(answers, group) != _choice(expected, group) for group in questions)
    return f"| {task} | {len(questions)} | {largest:.2g} | {moved} | {flags} |"


def _choice(answers: Sequence[Any], group: Sequence[int]) -> int:
    return max(group, key=lambda index: answers[index][0])


if __name__ == "__main__":
    main(*sys.argv[1:])
