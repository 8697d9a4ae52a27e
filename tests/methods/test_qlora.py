"""QLoRA: what training wins back, what dequantizing does not, and what each result stores."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from kernel_families import families

from harness.core.capability import Logits
from harness.core.method import CalibrationSet
from harness.models.headers import read_config
from harness.plugins import method

pytestmark = pytest.mark.heavy

RANK = 4
TRAINING = {"rank": RANK, "steps": 16, "learning_rate": 1e-3}
SCOPE = 28


def loss(model: Logits, rows: CalibrationSet) -> float:
    """Mean loss of the next token over the rows, nats."""
    tokens = torch.tensor(rows.tokens)
    with torch.inference_mode():
        logits = model.logits(tokens)[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


def linear_bytes(model: Logits) -> int:
    return sum(entry.value_bytes + entry.scale_bytes for entry in model.weight_ledger() if entry.role == "linear")


def test_an_adapter_lowers_the_loss_on_its_text_below_that_of_nf4_alone(
    make: Callable[..., Any], calibration: CalibrationSet
) -> None:
    nf4 = make("bnb-nf4")
    adapter = make("qlora", **TRAINING)
    assert adapter.reload_difference < 1e-3
    assert 0 < adapter.kl < 0.5
    assert loss(adapter.model, calibration) < loss(nf4.model, calibration) - 0.01
    frozen = "packed" if has_avx512bf16() else "dequantize"
    assert families(adapter.model) == {frozen: SCOPE, "plain": 2 * SCOPE}
    assert adapter.facts["training_rows"] == 16 * 4
    assert adapter.facts["training_loss_last"] > 0

    quantized = [entry for entry in adapter.model.weight_ledger() if entry.quantized]
    assert len(quantized) == SCOPE
    assert sum(entry.parameters for entry in quantized) == sum(
        entry.parameters for entry in nf4.model.weight_ledger() if entry.quantized
    )
    added = sum(
        entry.parameters for entry in adapter.model.weight_ledger() if ".lora_" in entry.name and entry.role == "linear"
    )
    assert linear_bytes(adapter.model) == linear_bytes(nf4.model) + 4 * added
    assert json.loads((adapter.folder / "adapter" / "adapter_config.json").read_text())["r"] == RANK


def test_merging_keeps_what_the_adapter_learned_in_plain_matrices(
    make: Callable[..., Any], calibration: CalibrationSet
) -> None:
    nf4 = make("bnb-nf4")
    merged = make("qlora", result="merged", **TRAINING)
    assert merged.reload_difference < 1e-3
    assert loss(merged.model, calibration) < loss(nf4.model, calibration) - 0.01
    assert "quantization_config" not in read_config(merged.folder)
    assert merged.linear_bits == 32  # what the model's dtype takes here
    assert families(merged.model) == {"plain": SCOPE}
    assert not any(entry.quantized for entry in merged.model.weight_ledger())


@pytest.mark.thorough
def test_dequantizing_alone_restores_nothing(make: Callable[..., Any]) -> None:
    nf4 = make("bnb-nf4", double_quant=True)
    dequantized = make("qlora", result="dequantized", double_quant=True)
    assert dequantized.reload_difference < 1e-3
    assert dequantized.kl == pytest.approx(nf4.kl, rel=0.02)
    assert dequantized.linear_bits == 32


def test_an_untouched_module_gets_neither_codes_nor_an_adapter(make: Callable[..., Any]) -> None:
    kept = "model.layers.1.mlp.down_proj"
    made = make("qlora", untouched=("lm_head", kept), **(TRAINING | {"steps": 2}))
    names = {entry.name: entry for entry in made.model.weight_ledger()}
    assert not names[f"{kept}.weight"].quantized
    assert not any(name.startswith(kept) and "lora" in name for name in names)
    assert made.reload_difference < 1e-3


def test_bits_of_a_weight() -> None:
    chosen = method("qlora")
    bits = [
        chosen.bits_per_weight(chosen.params.model_validate(given), 16, 1024)
        for given in ({"rank": 16}, {"rank": 16, "double_quant": True}, {"result": "merged"})
    ]
    assert bits == pytest.approx([4.5, 4 + (8 + 32 / 256) / 64, 16])
    adapter = 4 * 16 * (512 + 1024)
    assert chosen.beside(chosen.params(), 16, (512, 1024)).memory == adapter + 4 * 16, "and the values of NF4"
    assert not chosen.calibrated(chosen.params.model_validate({"result": "dequantized"}))
