"""What a task's settings and a checkpoint's generation config mean for vLLM: what they mean for transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from harness.engines.vllm.model import ALWAYS, MISSING, SAMPLING, ends, sampling
from harness.errors import UnsupportedError

pytestmark = pytest.mark.heavy

HARMLESS = """
_commit_hash _from_model_config transformers_version
assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind is_assistant
max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule prompt_lookup_num_tokens speculation_type
target_lookbehind use_mtp
cache_config cache_implementation compile_config continuous_batching_config disable_compile low_memory max_cache_len
prefill_chunk_size use_cache
output_attentions output_hidden_states output_logits output_scores return_dict_in_generate
early_stopping length_penalty
remove_invalid_values renormalize_logits
bos_token_id decoder_start_token_id pad_token_id
max_length max_new_tokens
do_sample eos_token_id
"""
"""Settings that do not change a text here. By line: where a config is from; guesses that the model checks; how it is
computed; what is returned beside it; what needs beams; what needs logits that are not numbers, or scales none; tokens
beside the text; its length, which the task sets; what is read by itself."""
GREEDY = {"repetition_penalty": 1.0, "temperature": 0.0}


def test_what_is_left_open_is_what_transformers_takes() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    for name, value in {**SAMPLING, **ALWAYS, **MISSING}.items():
        assert defaults.get(name, value) == value, name
    assert {*SAMPLING, *ALWAYS, *MISSING} <= vars(GenerationConfig()).keys()


def test_every_setting_of_transformers_is_known() -> None:
    """A checkpoint's own setting that nobody decided on would be dropped silently."""
    decided = [*SAMPLING, *ALWAYS, *MISSING, *HARMLESS.split()]
    assert sorted(decided) == sorted(vars(GenerationConfig()))


@pytest.mark.parametrize(
    ("own", "settings", "expected"),
    [
        ({}, {"do_sample": False}, GREEDY),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, {"do_sample": False}, GREEDY),
        ({"repetition_penalty": 1.1}, {"do_sample": False}, {**GREEDY, "repetition_penalty": 1.1}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.3}, {**GREEDY, "repetition_penalty": 1.3}),
        ({"num_beams": 4}, {"do_sample": False, "num_beams": 1}, GREEDY),
        ({"eos_token_id": 2, "max_length": 20, "own_words": "x"}, {"do_sample": False, "top_p": None}, GREEDY),
        (
            {"top_p": 0.9, "temperature": 0.6},
            {"do_sample": True, "temperature": 0.8},
            {"repetition_penalty": 1.0, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.0},
        ),
    ],
)
def test_settings_take_precedence_over_the_checkpoints_config(
    own: dict[str, Any], settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert sampling(own, settings) == expected


@pytest.mark.parametrize(
    ("own", "settings", "named"),
    [
        ({"no_repeat_ngram_size": 3}, {"do_sample": False}, "no_repeat_ngram_size: 3"),
        ({}, {"num_beams": 2, "penalty_alpha": 0.6}, "num_beams: 2, penalty_alpha: 0.6"),
        (
            {"penalty_alpha": 0.6, "stop_strings": ["x"]},
            {"do_sample": False},
            "penalty_alpha: 0.6, stop_strings: .'x'.",
        ),
        ({"dola_layers": "high"}, {"top_h": 0.4}, "dola_layers: high, top_h: 0.4"),
    ],
)
def test_what_vllm_has_not_is_named(own: dict[str, Any], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=f"as transformers does with {named}$"):
        sampling(own, settings)


def test_every_end_token_of_the_config_ends_a_text() -> None:
    assert ends({}) == ends({"eos_token_id": None}) == []
    assert ends({"eos_token_id": 2}) == [2]
    assert ends({"eos_token_id": [2, 7]}) == [2, 7]
