"""Configurations that transformers completes in a process of its own, as planning has them, with its limits."""

from __future__ import annotations

import pytest

from harness.models.resolve import MAX_ADDED_BYTES, _asked  # other tests are given answers of their own process

LAYER_BYTES = 8
"""What one more layer takes in a list of their types, before any is built."""


@pytest.mark.heavy
@pytest.mark.thorough
def test_one_that_would_fill_the_memory_is_an_error_and_the_next_is_answered() -> None:
    layers = MAX_ADDED_BYTES // LAYER_BYTES + 1
    few = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 256}
    huge, small = _asked(
        [
            {"model_type": "glm4_moe_lite", "num_hidden_layers": layers},
            {"model_type": "llama", "num_hidden_layers": 2, **few},
        ]
    )
    assert huge.keys() == {"error"}
    assert huge["error"].endswith("does not read its configuration: MemoryError")
    assert small["text"]["num_hidden_layers"] == 2
    assert small["shapes"]["model.embed_tokens.weight"] == [256, 64]
    assert len(small["caches"]) == 2
