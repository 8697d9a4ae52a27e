"""What the client of a load saw, request by request: the events of an answer as servers send them, and their count."""

from __future__ import annotations

import sys
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import pytest
from run_specs import changed, run_spec

from harness.execution.load import MAX_REASON, _answered
from harness.execution.worker import _installed_beside
from harness.libraries.load_generator import INTERPRETER
from harness.text.load import PlannedRequest

LIMIT = 4


def test_the_environment_of_the_generator_is_recorded_where_the_server_runs_in_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(INTERPRETER, sys.executable)
    served = run_spec("serve", engine="llamacpp")
    (found,) = _installed_beside(changed(served, stack="llamacpp")).items()
    assert found[0] == "vllm"
    assert found[1]["pytest"] == version("pytest")
    assert _installed_beside(changed(served, stack="vllm")) == {}, "its own environment"
    assert _installed_beside(run_spec("quality")) == {}


def seen(*answers: tuple[list[float], int | None]) -> dict[str, Any]:
    """As vLLM's benchmark returns them: when each event of an answer came (s), and the tokens that its usage names.

    It says 1 of an answer without a count, and 0 of a request without an answer.
    """
    return {
        "start_times": [100.0 + index for index in range(len(answers))],
        "ttfts": [events[0] if events else 0.0 for events, _ in answers],
        "latencies": [events[-1] if events else 0.0 for events, _ in answers],
        "itls": [[later - earlier for earlier, later in pairwise(events)] for events, _ in answers],
        "input_lens": [32] * len(answers),
        "output_lens": [(count or 1) if events else 0 for events, count in answers],
        "errors": ["" if events else "Service Unavailable" for events, _ in answers],
    }


FOUR, FIVE = [0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8, 0.8]


@pytest.mark.parametrize(
    ("answers", "tokens", "gaps"),
    [
        ([(FOUR, 4)], [4], [3]),  # vLLM: an event for each token
        ([(FIVE, 4)], [4], [3]),  # llama-server: and one without a token
        ([(FIVE, 4), ([0.5, 0.5], 1)], [4, 1], [3, 0]),  # one of its answers has one token alone
        ([([0.5, 0.7], 4)], [4], [1]),  # two tokens in each event
        ([(FOUR, None), ([0.5, 0.6], None)], [4, 2], [3, 1]),  # a server that counts none
        ([(FIVE, None)], [4], [3]),  # and ends with an event without a token
        ([(FOUR, 4), ([], None)], [4, 0], [3, 0]),
        ([([], None), ([0.5], None)], [0, 1], [0, 0]),
    ],
)
def test_tokens_are_those_of_the_server(
    answers: list[tuple[list[float], int | None]], tokens: list[int], gaps: list[int]
) -> None:
    planned = [PlannedRequest(f"r{index}", "", LIMIT, None) for index in range(len(answers))]
    found = _answered(planned, seen(*answers), None)
    assert [each.output_tokens for each in found] == tokens
    assert [len(each.gaps_s) for each in found] == gaps
    assert [each.sent_s for each in found] == pytest.approx(range(len(answers)))
    assert [bool(each.error) for each in found] == [not events for events, _ in answers]


def test_a_reason_has_no_part_of_the_servers_key() -> None:
    """A server may repeat it, also where its reason is cut off."""
    key = "sk-0123456789"
    told = {**seen(([], None)), "errors": [f"Traceback\nrefused: {'x' * (MAX_REASON - 15)} {key}"]}
    (found,) = _answered([PlannedRequest("r0", "", LIMIT, None)], told, key)
    assert found.error.startswith("refused: xxx")
    assert "sk-" not in found.error
