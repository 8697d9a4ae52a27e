"""AMD Quark on the tiny model: reloads, what is stored, what is left alone, and that all rows are seen."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from kernel_families import families
from pydantic import ValidationError

from harness import plugins as registry
from harness.execution.local import local_site
from harness.methods.quark.quark import MODEL_TYPES, NO_TABLE, QUARK, QuarkParams
from harness.models import stored
from harness.models.headers import read_directory

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("eager")]

KEPT = "model.layers.1.mlp.down_proj"
INT4 = {"group_size": 32}


@pytest.mark.parametrize(
    ("given", "least_kl", "most_kl"),
    [
        ({"scheme": "int4", **INT4}, 0.01, 0.06),
        pytest.param({"scheme": "uint4", **INT4}, 0.01, 0.05, marks=pytest.mark.thorough),
        pytest.param({"scheme": "uint4", "algorithm": "gptq", **INT4}, 1e-3, 0.02, marks=pytest.mark.thorough),
        pytest.param({"scheme": "uint4", "algorithm": "awq", **INT4}, 1e-3, 0.05, marks=pytest.mark.thorough),
        ({"scheme": "fp8"}, 1e-3, 0.02),
        pytest.param({"scheme": "mxfp4_weight_only"}, 0.01, 0.05, marks=pytest.mark.thorough),
        pytest.param({"scheme": "mxfp4"}, 0.05, 0.3, marks=pytest.mark.thorough),
    ],
)
def test_a_reload_is_what_was_in_memory(make, tiny, given: dict[str, object], least_kl: float, most_kl: float) -> None:
    made = make("quark", untouched=("lm_head", KEPT), **given)
    assert made.reload_difference < 1e-6
    assert least_kl < made.kl < most_kl
    assert made.model.kernels() == {"QParamsLinear": 27, "Linear": 1}
    assert families(made.model) == {"dequantize": 27, "plain": 1}
    expected = made.method.bits_per_weight(made.params, 32.0, 64)
    quantized = [entry for entry in made.model.weight_ledger() if entry.quantized]
    layers = {layer.name: layer for layer in stored.layers(read_directory(tiny).shapes, made.folder)}
    layers.pop(KEPT)
    assert {entry.name.removesuffix(".weight") for entry in quantized} == set(layers)
    bits = [8 * (entry.value_bytes + entry.scale_bytes) / entry.parameters for entry in quantized]
    assert bits == pytest.approx([expected] * 27, rel=0.02)
    bits = [8 * (layer.value_bytes + layer.scale_bytes) / layer.parameters for layer in layers.values()]
    assert bits == pytest.approx([expected] * 27, rel=0.02)
    assert made.linear_bits == pytest.approx(expected + (32 - expected) * 64 * 192 / (4 * 49152), rel=0.02)


@pytest.mark.slow
def test_what_its_compiled_rounding_stores_is_the_same(make) -> None:
    """As users have it: compiling takes some 20 s where no kernel is cached, so the other tests leave it out."""
    eager = make("quark", scheme="int4", **INT4)
    torch.compiler.set_stance("default")
    compiled = make("quark", scheme="int4", **INT4)
    assert compiled.reload_difference < 1e-6
    assert compiled.kl == pytest.approx(eager.kl, rel=1e-3)


def test_it_calibrates_on_every_row(make, monkeypatch, calibration) -> None:
    from transformers import LlamaForCausalLM

    seen: list[torch.Tensor] = []
    forward = LlamaForCausalLM.forward

    def record(self, input_ids=None, **given):
        seen.append(input_ids)
        return forward(self, input_ids=input_ids, **given)

    monkeypatch.setattr(LlamaForCausalLM, "forward", record)
    make("quark", scheme="fp8")
    wide = [batch for batch in seen if batch.shape[1] == calibration.length]
    assert torch.cat(wide)[:16].tolist() == [list(row) for row in calibration.tokens]


def test_an_algorithm_is_for_integers() -> None:
    with pytest.raises(ValidationError, match="gptq chooses the codes of int4"):
        QuarkParams(scheme="fp8", algorithm="gptq")


@pytest.mark.parametrize("algorithm", ["awq", "gptq"])
def test_a_model_without_a_table_of_its_layers_is_refused_while_planning(algorithm: Literal["awq", "gptq"]) -> None:
    if lacking := registry.missing(QUARK, local_site()):
        pytest.skip(lacking)
    from quark.torch.quantization.config.algo_configs import get_algo_config

    known = {kind for kind in MODEL_TYPES if get_algo_config(algorithm, kind) is not None}
    assert QUARK.needs(QuarkParams(algorithm=algorithm)).model_types == known == MODEL_TYPES - NO_TABLE[algorithm]
    assert QUARK.needs(QuarkParams()).model_types == MODEL_TYPES
