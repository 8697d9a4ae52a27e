"""What a record says of the arithmetic that ran, beside what the variant's format asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import run_spec
from safetensors.torch import save_file

from harness import plugins as registry
from harness.core.capability import Arithmetic, StoredTensor
from harness.core.label import Label
from harness.core.model import MethodRef, ModelRef
from harness.errors import InvalidRunError
from harness.execution.checks import reload as probe
from harness.execution.checks.variant import compare_with_saved, record_arithmetic
from harness.execution.context import Context
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

NAMES = [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(2) for part in ("gate", "up", "down")]
LEDGER = [StoredTensor(f"{name}.weight", "linear", "codes", 64, 32, 4, quantized=True) for name in NAMES]
WIDE = Arithmetic("bfloat16", "bfloat16")


class Explained:
    """A model of whose layers nothing but the arithmetic is known."""

    def __init__(self, arithmetic: Mapping[str, Arithmetic]) -> None:
        self._arithmetic = arithmetic

    def arithmetic(self) -> Mapping[str, Arithmetic]:
        return self._arithmetic


def context(tmp_path: Path, name: str, dtype: str = "bfloat16", engine: str = "transformers", **given: Any) -> Context:
    chosen = registry.method(name)
    params = chosen.params.model_validate(given)
    ref = MethodRef(name, chosen.version, params.model_dump(), name, chosen.stage)
    model = ModelRef("tiny", "tiny", "0", "directory", str(tmp_path), dtype)
    return Context(run_spec("quality", model=model, method=ref, engine=engine), Cache(tmp_path), str)


def labels(checked: Context, *ran: Arithmetic, ledger: list[StoredTensor] = LEDGER) -> list[Label]:
    """Of a model whose layers ran like this, in turn; its head, which no method quantizes, ran in bfloat16."""
    arithmetic = {name: ran[index % len(ran)] for index, name in enumerate(NAMES)} | {"lm_head": WIDE}
    model: Any = Explained(arithmetic)
    record_arithmetic(checked, model, ledger)
    return checked.labels


INT8, FLOAT8 = Arithmetic("int8", "int8"), Arithmetic("float8_e4m3fn", "float8_e4m3fn")


@pytest.mark.parametrize(
    ("method", "params", "ran"),
    [
        ("rtn", {"group_size": 32}, WIDE),
        ("llmc-rtn", {}, WIDE),
        ("llmc-int8", {}, INT8),
        ("llmc-fp8", {}, FLOAT8),
        ("llmc-fp8", {"scheme": "block"}, FLOAT8),
        ("llmc-w4a8", {}, INT8),
        ("none", {}, WIDE),
    ],
)
def test_arithmetic_that_the_format_asks_for_is_a_fact_and_no_label(tmp_path, method, params, ran) -> None:
    checked = context(tmp_path, method, **params)
    assert labels(checked, ran) == []
    (fact,) = checked.facts
    assert fact.arguments == {f"{ran.activations} inputs, {ran.products} products": 6}


def test_int8_inputs_in_place_of_16_bits_are_labelled(tmp_path: Path) -> None:
    """W4A8 in place of W4A16; a layer that stayed unquantized has no format that asks for anything."""
    expected = Label("activations_rounded", {"layers": 6, "to": "int8", "declared": "bfloat16"})
    assert labels(context(tmp_path, "llmc-gptq"), INT8) == [expected]
    half = [entry for entry in LEDGER if ".0." in entry.name]
    (label,) = labels(context(tmp_path, "llmc-gptq"), INT8, ledger=half)
    assert label.arguments["layers"] == 3


def test_inputs_that_stay_wide_where_the_format_rounds_them_are_labelled(tmp_path: Path) -> None:
    ran = labels(context(tmp_path, "llmc-fp8", scheme="block"), WIDE)
    assert ran == [Label("activations_kept", {"layers": 6, "to": "bfloat16", "declared": "float8_e4m3fn"})]


def test_layers_that_multiply_in_float32_are_labelled_in_a_model_of_16_bits_only(tmp_path: Path) -> None:
    widened = Arithmetic("float16", "float32")
    ran = labels(context(tmp_path, "none", dtype="float16"), widened, Arithmetic("float16", "float16"))
    assert ran == [Label("computed_in_float32", {"layers": 3, "dtype": "float16"})]
    assert labels(context(tmp_path, "none", dtype="float32"), Arithmetic("float32", "float32")) == []


def test_a_method_that_declares_no_format_is_not_compared_with_one(tmp_path: Path) -> None:
    assert registry.method("bnb-int8").stored(registry.method("bnb-int8").params()).number is None  # type: ignore[union-attr]
    assert labels(context(tmp_path, "bnb-int8"), INT8) == []


@pytest.mark.parametrize(("engine", "declared"), [("vllm", "float8_e4m3fn"), ("vllm", "bfloat16")])
def test_a_published_checkpoint_is_compared_with_its_own_config(tmp_path: Path, engine: str, declared: str) -> None:
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True} if declared != "bfloat16" else None
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    folder = ModelRef("c", "c", "1", "directory", str(tmp_path), "bfloat16", native_quantization="compressed-tensors")
    ref = MethodRef("checkpoint", 1, {"id": str(tmp_path)}, "checkpoint", "published", published=folder)
    model = ModelRef("tiny", "tiny", "0", "directory", str(tmp_path), "bfloat16")
    checked = Context(run_spec("quality", model=model, method=ref, engine=engine), Cache(tmp_path), str)
    (label,) = labels(checked, INT8)
    assert label == Label("activations_rounded", {"layers": 6, "to": "int8", "declared": declared})


def other_logits(tmp_path: Path, nats: float) -> tuple[torch.Tensor, float]:
    """Logits (1, 8, 64) near the saved ones, and their mean KL from these, which is about ``nats``."""
    draw = torch.Generator().manual_seed(0)
    saved = torch.randn(1, 8, 64, generator=draw)
    save_file({"tokens": torch.arange(8)[None], "logits": saved}, tmp_path / probe.FILE)
    other = saved + (2 * nats) ** 0.5 * torch.randn(saved.shape, generator=draw)  # KL ≈ variance / 2
    before, now = (each.double().log_softmax(-1) for each in (saved, other))
    return other, float((before.exp() * (before - now)).sum(-1).mean())


@pytest.mark.parametrize(
    ("engine", "nats", "label"),
    [
        ("transformers", 1e-5, "reload_differs"),
        ("transformers", 0.02, None),
        ("vllm", 1e-5, "reload_differs"),
        ("vllm", 0.02, "engine_differs"),
        ("vllm", 1.0, None),
    ],
)
def test_another_engine_may_differ_more_from_what_was_saved_but_not_by_another_model(
    tmp_path: Path, engine: str, nats: float, label: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, kl = other_logits(tmp_path, nats)
    assert nats / 2 < kl < 2 * nats
    checked = context(tmp_path, "llmc-int8", engine=engine)
    monkeypatch.setattr(Cache, "needed", lambda self, spec, kind: tmp_path)
    model: Any = type("Scored", (), {"own_cache_logits": lambda self, tokens: other})()
    if label is None:
        with pytest.raises(InvalidRunError, match="differs from the model that was saved"):
            compare_with_saved(checked, model)
        return
    compare_with_saved(checked, model)
    (found,) = checked.labels
    assert (found.code, found.arguments["kl"]) == (label, pytest.approx(kl))
    assert checked.facts[0].arguments["kl"] == pytest.approx(kl)
