"""Noise floors: what only the batch or the dtype changes, and where there is no such floor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_specs import run_spec
from transformers import AutoModelForCausalLM

from harness.core.capability import Logits, StoredTensor
from harness.core.metric import LOGITS_BYTES, Windows
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement
from harness.core.workload import PerplexityWorkload
from harness.execution import reference as references
from harness.execution.checks import noise
from harness.execution.context import Context
from harness.execution.room import free_bytes
from harness.recipe import Text
from harness.storage.cache import Cache
from harness.text.sources import resolve
from harness.text.windows import cut

pytestmark = pytest.mark.heavy

CONTEXT = 160
NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")


@pytest.fixture
def context(tiny: Path, tmp_path: Path) -> Context:
    model = ModelRef("tiny", "tiny", "0", "directory", str(tiny), "float32")
    return Context(run_spec("reference", "noise", model, NONE, NONE), Cache(tmp_path), str)


@pytest.fixture
def model(context: Context) -> Logits:
    return context.load(Logits)


@pytest.fixture
def windows(model: Logits) -> Windows:
    return cut(PerplexityWorkload(resolve(Text(name="demo"), Path()), "gptq", CONTEXT, 4), model.tokenizer)


@pytest.fixture
def kept(model: Logits, windows: Windows, tmp_path: Path) -> references.Reference:
    with torch.inference_mode():
        references.write(model, windows, tmp_path)
    return references.Reference(tmp_path, "cpu")


def only(context: Context, name: str) -> Measurement:
    (found,) = [each for each in context.measurements if each.metric in ("kl_noise_floor", "kl_batch_noise")]
    assert found.metric == name
    return found


def mean(measurement: Measurement) -> float:
    return sum(measurement.values) / len(measurement.values)


def test_another_batch_size_changes_rounding_alone(context: Context, model, windows, kept) -> None:
    noise.other_batch(context, model, windows, kept)
    floor = only(context, "kl_noise_floor")
    assert mean(floor) < 1e-7
    expected = {"changed": "batch size", "batch_size": 2, "windows": 4, "tokens_scored": 4 * noise.STRETCH_TOKENS}
    assert expected.items() <= dict(floor.protocol).items()
    assert len(floor.values) == 4 * noise.STRETCH_TOKENS


def test_windows_of_unlike_lengths_still_make_a_batch(context: Context, model, windows, kept, monkeypatch) -> None:
    first, second, *_ = windows.tokens
    sizes = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens: sizes.append(tuple(tokens.shape)) or hidden(tokens))
    noise.other_batch(context, model, replace(windows, tokens=[first, second[:50]], firsts=[1, 120]), kept)
    assert sizes == [(2, 49)]  # the last token is predicted, never read
    assert only(context, "kl_noise_floor").item_ids == (*(f"0:{place}" for place in range(1, 50)), "1:49")


def why(context: Context) -> str:
    """What the run says of a floor that it has not."""
    (fact,) = context.facts
    assert fact.code == "dtype_noise_not_measured"
    return fact.value


def test_another_dtype_is_the_distance_of_the_two_models(context: Context, model, windows, kept, tiny: Path) -> None:
    """Against transformers alone, in float64 from the logits on."""
    noise.other_dtype(context, model.weight_ledger(), windows, kept)
    floor = only(context, "kl_noise_floor")
    assert {"changed": "dtype", "dtype": "bfloat16", "windows": 4}.items() <= dict(floor.protocol).items()
    expected = []
    models = [AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for tokens in windows.tokens:
        short = torch.tensor([tokens[: noise.STRETCH_TOKENS]])  # as many as the harness reads: kernels depend on it
        p, q = (model(short).logits[0].double() for model in models)
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        expected += (p.exp() * (p - q)).sum(-1).tolist()
    assert floor.values == pytest.approx(expected, rel=0.05, abs=1e-6)
    assert 1e-6 < mean(floor) < 1e-2
    assert context.facts == []


def test_a_baseline_of_16_bits_is_held_against_float32(context: Context, model, windows, tmp_path: Path) -> None:
    half = context.load_as("bfloat16", Logits)
    with torch.inference_mode():
        references.write(half, windows, tmp_path)
    noise.other_dtype(context, half.weight_ledger(), windows, references.Reference(tmp_path, "cpu"))
    assert only(context, "kl_noise_floor").protocol["dtype"] == "float32"


def test_where_the_baseline_has_but_one_dtype_a_fact_says_so(context: Context, windows, kept) -> None:
    packed = StoredTensor("model.layers.0.mlp.up_proj.weight", "linear", "uint8", 8, 4, 1, quantized=True)
    noise.other_dtype(context, [packed], windows, kept)
    assert "stored quantized" in why(context)
    assert not context.measurements


def test_where_it_would_not_fit_a_fact_says_so(context: Context, model, windows, kept, monkeypatch) -> None:
    """As in a container whose host has more; a kernel that ends the run would take the reference with it."""
    ledger = model.weight_ledger()
    copy = 2 * sum(entry.parameters for entry in ledger if not entry.tied)
    monkeypatch.setattr("harness.host.machine.memory_left", lambda: [copy + 2 * LOGITS_BYTES - 1])
    noise.other_dtype(context, ledger, windows, kept)
    assert "it takes 0.3 GB, and 0.3 GB are free" in why(context)
    assert not context.measurements


def test_a_run_has_what_is_left_of_the_machine_its_container_and_its_limit(monkeypatch) -> None:
    whole = free_bytes("cpu")
    assert free_bytes("cpu", limit_bytes=500) == 500
    monkeypatch.setattr("harness.host.machine.memory_left", lambda: [1000])
    assert free_bytes("cpu") == free_bytes("cpu", limit_bytes=2000) == 1000 < whole


def test_what_a_library_raises_costs_the_floor_alone(context: Context, model, windows, kept, monkeypatch) -> None:
    def fail(dtype: str, needed: type[Logits]) -> Logits:
        raise RuntimeError("no kernel for it\nand a traceback")

    monkeypatch.setattr(context, "load_as", fail)
    noise.other_dtype(context, model.weight_ledger(), windows, kept)
    assert why(context) == "not measured in bfloat16: no kernel for it"


def test_a_variants_own_floor_is_taken_on_short_stretches(context: Context, model, windows) -> None:
    noise.own_batch(context, model, replace(windows, firsts=[150] * 4))
    found = only(context, "kl_batch_noise")
    assert found.protocol["tokens_scored"] == len(found.values) == 2 * noise.STRETCH_TOKENS
    assert mean(found) < 1e-7


def test_a_variant_that_depends_on_the_batch_is_seen(context: Context, model, windows, monkeypatch) -> None:
    """As one whose scale is that of the largest activation of the whole batch."""
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens: hidden(tokens) * (1 + 0.1 * (len(tokens) - 1)))
    noise.own_batch(context, model, windows)
    assert mean(only(context, "kl_batch_noise")) > 1e-4


def test_one_window_makes_no_batch(context: Context, model, windows, kept) -> None:
    alone = replace(windows, tokens=windows.tokens[:1], firsts=[1], documents=["0"])
    noise.other_batch(context, model, alone, kept)
    noise.own_batch(context, model, alone)
    assert not context.measurements
