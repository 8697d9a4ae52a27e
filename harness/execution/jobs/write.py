"""Writes a text with the baseline, which its variants are then scored on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core.capability import Generates
from harness.core.job import WriteText
from harness.core.workload import PerplexityWorkload
from harness.errors import UnsupportedError
from harness.execution.context import Context
from harness.models.headers import end_tokens
from harness.text import generated

WHOLE_DISTRIBUTION = {"top_k": 0, "top_p": 1.0}
"""In place of the checkpoint's own settings: answers are drawn from all that the model predicts, as it predicts it."""


def run(job: WriteText, context: Context, out: Path) -> None:
    """Has the baseline answer each prompt, up to the window's length or its own end, and saves the tokens.

    Raises UnsupportedError if there is no tokenizer, or if a prompt leaves no room for an answer.
    """
    import torch

    generation = job.perplexity.generation
    assert generation is not None
    model = context.load(Generates)
    if model.tokenizer is None:
        raise UnsupportedError("a generated text needs a tokenizer, and the model's checkpoint holds none")
    own = model.tokenizer.eos_token_id
    ends = end_tokens(context.source()) | ({int(own)} if own is not None else set())
    with context.phase("text"):
        prompts = generated.prompts(job.perplexity, model.tokenizer)
    answers: list[list[int]] = []
    with context.phase("write"), torch.inference_mode():
        for low in range(0, len(prompts), job.perplexity.written_at_once):
            torch.manual_seed(generation.seed + low)
            answers += _answers(model, prompts[low : low + job.perplexity.written_at_once], job.perplexity, ends)
    generated.save(generated.windows(job.perplexity, prompts, answers, ends), out)


def _answers(
    model: Generates, prompts: Sequence[Sequence[int]], workload: PerplexityWorkload, ends: set[int]
) -> Iterator[list[int]]:
    """The answers to prompts that are continued together, each up to its first end token or the window's length."""
    import torch

    assert workload.generation is not None
    width = max(map(len, prompts))
    filler = min(ends, default=0)
    tokens = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    stopping = torch.tensor(sorted(ends), dtype=torch.int64)
    temperature = workload.generation.temperature
    drawn: dict[str, Any] = {"temperature": temperature, **WHOLE_DISTRIBUTION} if temperature > 0 else {}

    def stop(written: torch.Tensor) -> torch.Tensor:
        return torch.isin(written[:, -1], stopping.to(written.device))

    longest = workload.context - min(map(len, prompts))
    settings: dict[str, Any] = {"max_new_tokens": longest, "pad_token_id": filler, "repetition_penalty": 1.0}
    written, _, _ = model.generate(tokens, mask, None, stop, do_sample=temperature > 0, **settings, **drawn)
    for prompt, row in zip(prompts, written.tolist(), strict=True):
        answer = row[: workload.context - len(prompt)]
        end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
        yield answer[: end + 1]
