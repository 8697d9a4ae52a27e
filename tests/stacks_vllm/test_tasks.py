"""Tasks on vLLM: log-likelihoods and texts as lm-eval's HFLM gives them on transformers, in the same interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.stack

NAT = 1e-3


@pytest.fixture(scope="module")
def answers(run_in_stack: Callable[..., Any], tiny_llama: Path) -> dict[str, Any]:
    found: dict[str, Any] = run_in_stack(Path(__file__).with_name("answers.py"), tiny_llama)
    return found


def nats(scores: list[tuple[float, bool]]) -> list[float]:
    return [nat for nat, _ in scores]


def choices(scores: list[tuple[float, bool]]) -> list[int]:
    """Which of an item's three continuations is the likeliest, as a task counts it."""
    return [max(range(3), key=nats(scores[item : item + 3]).__getitem__) for item in range(0, len(scores), 3)]


def test_log_likelihoods_are_hflms(answers: dict[str, Any]) -> None:
    assert answers["layout"] == "ragged"
    theirs, ours = answers["theirs"], answers["ours"]
    assert nats(ours) == pytest.approx(nats(theirs), rel=0, abs=NAT)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}
    assert choices(ours) == choices(theirs)
    assert len(set(choices(ours))) > 1


def test_a_text_alone_has_the_log_likelihood_it_has_among_others(answers: dict[str, Any]) -> None:
    assert nats(answers["ours"]) == pytest.approx(nats(answers["alone"]), rel=0, abs=1e-4)
    assert 600 < answers["effort"]["tokens"] / answers["effort"]["forwards"] <= 900  # of the 900 that a group may have


def test_long_texts_are_scored_in_windows_of_the_models_whole_context(answers: dict[str, Any]) -> None:
    context, tokens = answers["lengths"]
    assert tokens > context == 1024
    theirs, ours = answers["rolling"]
    assert ours == pytest.approx(theirs, rel=1e-6, abs=NAT)
    assert answers["full"][0] == answers["full"][1] < 0


def test_greedy_texts_are_hflms(answers: dict[str, Any]) -> None:
    theirs, ours = answers["greedy"]
    assert ours == theirs
    assert len(set(ours)) > len(ours) / 3
    assert answers["writing"]["forwards"] == 4  # one for each kind of settings: vLLM schedules the prompts itself
    assert answers["writing"]["head_rows"] > len(ours)


def test_settings_that_vllm_has_not_are_refused_by_name(answers: dict[str, Any]) -> None:
    beams, contrastive, hot = answers["refused"]
    assert "num_beams: 2" in beams
    assert "penalty_alpha: 0.6" in contrastive
    assert "temperature must be in [0, 2]" in hot


def test_sampled_texts_repeat_with_their_seed_in_any_batch(answers: dict[str, Any]) -> None:
    one, again, alone, other = answers["sampled"]
    assert one == again == alone != other
    assert len(set(one)) > 1


def test_a_stop_that_only_vllm_sees_does_not_end_a_text(answers: dict[str, Any]) -> None:
    plain, expected, found = answers["continued"]
    assert found == expected
    assert 1 < len(found) <= len(plain)
