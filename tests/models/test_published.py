"""What a published checkpoint's quantization_config says of its codes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import plugins as registry
from harness.core.format import Codes
from harness.models.published import codes


def compressed(weights: dict[str, Any], inputs: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": ["lm_head"], **more}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": False}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "group_size": None, "dynamic": False}
NVFP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
BLOCK = {**FP8, "strategy": "block", "block_structure": [128, 128]}
TOKEN = {"strategy": "token", "dynamic": True}
WRITTEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llmc-rtn", {}, compressed(INT4)),
    ("llmc-awq", {"bits": 4}, compressed({**INT4, "symmetric": False})),
    ("llmc-gptq", {"act_order": True}, compressed({**INT4, "actorder": "static"})),
    ("llmc-rtn", {"bits": 8, "group_size": "channel"}, compressed(INT8)),
    ("llmc-int8", {}, compressed(INT8, {"num_bits": 8, "type": "int", **TOKEN})),
    ("llmc-fp8", {}, compressed(FP8, {"num_bits": 8, "type": "float", **TOKEN})),
    ("llmc-fp8", {"scheme": "weight_only"}, compressed(FP8)),
    (
        "llmc-fp8",
        {"scheme": "static"},
        compressed(
            {**FP8, "strategy": "tensor"}, {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
        ),
    ),
    (
        "llmc-fp8",
        {"scheme": "block"},
        compressed(BLOCK, {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True}),
    ),
    ("llmc-nvfp4", {"activations": False}, compressed(NVFP4)),
    ("llmc-nvfp4", {}, compressed(NVFP4, {**NVFP4, "dynamic": "local"})),
    (
        "gptq",
        {},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "dynamic": {"-:a": {}}},
    ),
    (
        "gptq",
        {"group_size": "channel", "desc_act": True, "symmetric": False},
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": False, "desc_act": True},
    ),
    ("awq", {}, {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    ("autoawq", {}, {"quant_method": "awq", "w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "gemm"}),
]
"""Methods, and what their libraries write with these parameters."""


@pytest.mark.parametrize(("name", "params", "config"), WRITTEN)
def test_a_published_checkpoint_has_the_codes_that_its_method_declares(
    name: str, params: dict[str, Any], config: dict[str, Any]
) -> None:
    method = registry.method(name)
    assert codes(config) == method.stored(method.params(**params))


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:a": {"bits": 8}}},
        {**compressed(INT4), "config_groups": {"a": compressed(INT4), "b": compressed(INT8)}},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 128]},
        compressed({**FP8, "strategy": "block", "block_structure": [64, 128]}),
        compressed({**FP8, "strategy": "block", "block_structure": [0, 0]}),
    ],
)
def test_only_the_method_is_known_where_layers_differ_or_nothing_is_said(config: dict[str, Any]) -> None:
    assert codes(config) == Codes(config["quant_method"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 300) | st.text(max_size=5) | st.sampled_from(["group", "block", "int"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config_groups",
                    "weights",
                    "input_activations",
                    "num_bits",
                    "type",
                    "strategy",
                    "block_structure",
                    "x",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
KEYS = ["config_groups", "bits", "w_bit", "group_size", "q_group_size", "dynamic", "sym", "weight_block_size"]


@given(
    method=st.sampled_from(["compressed-tensors", "gptq", "awq", "fp8"]),
    rest=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6),
)
def test_a_strangers_configuration_never_fails_to_be_read(method: str, rest: dict[str, Any]) -> None:
    assert codes({**rest, "quant_method": method}).quant_method == method
