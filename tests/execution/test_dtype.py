"""In which dtype a variant really computes, beside the one that its row says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from quantize_alone import alone, quantize_alone
from run_specs import run_spec

from harness import plugins as registry
from harness.core.capability import Logits, Product, ShowsDtype, StoredTensor
from harness.core.label import Label
from harness.core.model import MethodRef, ModelRef
from harness.execution.checks.dtype import label_dtype
from harness.execution.context import Context
from harness.host.machine import installed_version
from harness.models import auto_round
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

NAMES = [f"model.layers.{layer}.mlp.down_proj" for layer in range(3)]
PLAIN = "model.layers.3.mlp.down_proj"
LEDGER = [StoredTensor(f"{name}.weight", "linear", "codes", 64, 32, 4, quantized=True) for name in NAMES]


class Shown:
    """A model of which nothing but dtypes is known; its last layer is not quantized."""

    def __init__(self, states: str | None, product: str | None) -> None:
        self.states_dtype, self._product = states, product

    def weight_ledger(self) -> list[StoredTensor]:
        return [*LEDGER, StoredTensor(f"{PLAIN}.weight", "linear", "Parameter", 64, 256, 0, quantized=False)]

    def products(self, rows: int) -> Mapping[str, Product]:
        return {name: Product("packed", self._product) for name in [*NAMES, PLAIN]}


def context(folder: Path, dtype: str, name: str = "gptq", **given: Any) -> Context:
    chosen = registry.method(name)
    params = chosen.params.model_validate(given)
    ref = MethodRef(name, chosen.version, params.model_dump(), name, chosen.stage)
    model = ModelRef("tiny", "tiny", "0", "directory", str(folder), dtype)
    return Context(run_spec("quality", model=model, method=ref), Cache(folder), str)


CHANGED = Label("dtype_changed", {"ran": "float16", "asked": "float32"})
ROUNDED = Label("activations_rounded", {"layers": 3, "to": "bfloat16", "declared": "float32"})


@pytest.mark.parametrize(
    ("asked", "states", "product", "expected"),
    [
        ("float32", "float32", None, []),
        ("bfloat16", "bfloat16", "bfloat16", []),
        ("float32", "float32", "int8", []),  # what the method rounds to is its own affair
        ("float32", "float32", "bfloat16", [ROUNDED]),
        ("float32", "float16", None, [CHANGED]),
        ("float32", "float16", "float16", [CHANGED]),
        ("bfloat16", "float32", None, []),  # some architectures keep their states in float32
        ("float32", None, None, []),
        ("auto", "bfloat16", "bfloat16", []),
    ],
)
def test_a_dtype_that_is_less_than_the_row_says_is_labelled(
    tmp_path: Path, asked: str, states: str | None, product: str | None, expected: list[Label]
) -> None:
    checked, model = context(tmp_path, asked), Shown(states, product)
    label_dtype(checked, model)  # type: ignore[arg-type]
    assert checked.labels == expected


def test_a_dtype_that_the_methods_parameters_name_was_asked_for(tmp_path: Path) -> None:
    checked = context(tmp_path, "float32", "bnb-nf4", compute_dtype="bfloat16")
    label_dtype(checked, Shown("float32", "bfloat16"))  # type: ignore[arg-type]
    assert checked.labels == []


@pytest.mark.thorough
def test_a_published_auto_round_checkpoint_runs_in_float32_or_says_that_it_does_not(tiny: Path, tmp_path: Path) -> None:
    """The second as the library itself would load it, which is what its kernels for GPUs still have it do."""
    if installed_version("auto-round") is None:
        pytest.skip("auto-round is not installed")
    folder = tmp_path / "published"
    quantize_alone("autoround", {"group_size": 32, "iterations": 1}, tiny, folder, "float32")
    alone(load_published, tiny, folder, tmp_path)


def load_published(source: Path, folder: Path, cache: Path) -> None:
    """Loads the checkpoint as a run does, first without what the harness changes in its library."""
    import torch
    from safetensors.torch import load_file

    torch.compiler.set_stance("force_eager")
    model = ModelRef("tiny", "tiny", "0", "directory", str(source), "float32")
    published = ModelRef("c", "c", "1", "directory", str(folder), "float32", native_quantization="auto-round")
    ref = MethodRef("checkpoint", 1, {"id": str(folder)}, "checkpoint", "published", published=published)
    spec = run_spec("quality", model=model, method=ref)
    saved = load_file(folder / "logits")["logits"]
    differences = {}
    for dtype, labels in (("float16", [CHANGED]), ("float32", [])):
        context = Context(spec, Cache(cache), str)
        with pytest.MonkeyPatch.context() as patch:
            if dtype == "float16":
                patch.setattr(auto_round, "keep_dtype", lambda: None)
            loaded = context.load(Logits)
        assert isinstance(loaded, ShowsDtype)
        label_dtype(context, loaded)
        assert (loaded.states_dtype, context.labels) == (dtype, labels)
        with torch.inference_mode():
            logits = loaded.logits(torch.arange(2, 34)[None])
        assert str(logits.dtype) == f"torch.{dtype}"
        differences[dtype] = float((logits[0].float() - saved).abs().max() / saved.abs().max())
    assert differences["float32"] < 1e-5 < differences["float16"], differences
