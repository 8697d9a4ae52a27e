"""Puts load on a server: by a program of vLLM's in its own environment and process, so that it delays neither side."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.core.capability import Endpoint
from harness.core.column import ArrayColumn, numbers
from harness.errors import RunError
from harness.libraries import load_generator
from harness.libraries.openai_api import key_of, without_key
from harness.stats.serving import Answered
from harness.text.load import PlannedRequest

LEAVING_S = 10.0
MAX_REASON = 200
"""Characters of why a request has no answer."""


@dataclass(frozen=True)
class LoadGenerator:
    """A running generator; ``version`` is that of the program."""

    version: str
    questions: IO[str]
    answers: IO[str]

    def drive(
        self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
    ) -> list[Answered]:
        """Sends the requests when they are due, or ``concurrent`` at a time, and waits for all answers.

        Answers end at the model's own end token if ``natural``, else they have all their tokens. Raises RunError if the
        generator ends.
        """
        load = {
            "url": endpoint.url,
            "model": endpoint.model,
            "requests": [[each.prompt, each.new_tokens, each.at_s] for each in requests],
            "concurrent": concurrent,
            "natural": natural,
        }
        try:
            print(json.dumps(load), file=self.questions, flush=True)
            line = self.answers.readline()
        except OSError:
            line = ""
        if not line:
            raise RunError("the load generator ended before its requests were answered; see the log")
        return _answered(requests, json.loads(line), key_of(endpoint))


def _answered(requests: Sequence[PlannedRequest], found: Mapping[str, Any], key: str | None) -> list[Answered]:
    """What the client saw, without the server's ``key``. Its clock begins with the request that it sent first."""
    began = min(found["start_times"])
    tokens = _tokens(requests, found["output_lens"], found["itls"])
    return [
        Answered(
            name=request.name,
            sent_s=found["start_times"][index] - began,
            planned_s=request.at_s,
            ttft_s=found["ttfts"][index],
            e2e_s=found["latencies"][index],
            prompt_tokens=found["input_lens"][index],
            output_tokens=tokens[index],
            gaps_s=_gaps(found["itls"][index], tokens[index]),
            error="" if found["output_lens"][index] else _reason(without_key(found["errors"][index], key)),
        )
        for index, request in enumerate(requests)
    ]


def _gaps(between: Sequence[float], tokens: int) -> ArrayColumn[float]:
    """The times between the events of an answer of so many tokens; a last event may have none."""
    gaps = between[: max(tokens - 1, 0)]
    return numbers(gaps, len(gaps))


def _tokens(
    requests: Sequence[PlannedRequest], counts: Sequence[int], gaps: Sequence[Sequence[float]]
) -> Sequence[int]:
    """The tokens of each answer, as the server counted them.

    Of a server that counts none, the client says 1 of every answer: then each event is a token, up to the request's
    limit. Where the server counts, events say less: a last one may have no token, or one may have several.
    """
    if any(count > 1 for count in counts):
        return counts
    return [
        min(len(own) + 1, request.new_tokens) if count else 0
        for request, count, own in zip(requests, counts, gaps, strict=True)
    ]


def _reason(error: str) -> str:
    """What is said of a request without an answer: the last line of a traceback, or the server's reason."""
    lines = error.strip().splitlines()
    return lines[-1][:MAX_REASON] if lines else "no answer"


@contextmanager
def load_generator_of(python: Path, endpoint: Endpoint) -> Iterator[LoadGenerator]:
    """A generator, ready to send; ``python`` is the interpreter of its stack.

    Raises RunError if it does not start, or if the variable that holds the server's key is not set.
    """
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "VLLM_NO_USAGE_STATS": "1", "NETRC": os.devnull}
    key = key_of(endpoint)
    if key is not None:
        variables["OPENAI_API_KEY"] = key
    command = [str(python), str(Path(load_generator.__file__))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        ready, _, version = process.stdout.readline().strip().partition(" ")
        if ready != load_generator.READY:
            raise RunError("the load generator did not start; see the log")
        yield LoadGenerator(version, process.stdin, process.stdout)
    finally:
        process.stdin.close()
        try:
            process.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
