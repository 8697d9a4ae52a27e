"""The audit of a mixture's experts: a planted dead expert, planted scales, and routers against plain transformers."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import run_spec
from safetensors.torch import load_file, save_file
from small_llama import small_llama
from small_mixture import ACTIVE, DEAD, EXPERTS, LAYERS, save_small_mixture, small_mixture

from harness.core.identity import Residency
from harness.core.method import CalibrationSet
from harness.core.metric import Windows
from harness.core.model import MethodRef, ModelRef
from harness.core.protocols import STARVED_TOKENS
from harness.core.record import Measurement
from harness.engines.transformers.engine import TransformersModel
from harness.errors import InvalidRunError
from harness.execution import reference as references
from harness.execution.checks.experts import audit_experts, record_rounded
from harness.execution.checks.routers import comparing_routers
from harness.execution.checks.scales import verify_scales
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.metrics.perplexity import Likelihood
from harness.metrics.routing import RouterAgreement
from harness.models.scales import check_stored
from harness.models.streaming.parts import Parts
from harness.storage.cache import Cache
from harness.text.calibration import digest

pytestmark = pytest.mark.heavy

NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
RTN = MethodRef("rtn", 1, {}, "rtn", "rtn")
PROTOCOL = {"tokens_sha256": "0", "context": 24, "windows": 3}
WINDOWS = Windows(
    [[(7 * row + 3 * place) % 512 for place in range(length)] for row, length in enumerate((24, 24, 17))],
    [1, 9, 1],
    ["a", "b", "b"],
    PROTOCOL,
)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    return save_small_mixture(tmp_path_factory.mktemp("mixture"), tiny)


def context(folder: Path, model: Path, residency: Residency = "resident") -> Context:
    ref = ModelRef("mixture", "mixture", "0", "directory", str(model), "float32")
    spec = run_spec("quantize", "audit", ref, RTN, NONE)
    job = replace(spec.job, conditions=replace(spec.job.conditions, residency=residency))
    return Context(replace(spec, job=job), Cache(folder), lambda phase: None)


def calibration(rows: int = 12, length: int = 32, padding: int = 8) -> CalibrationSet:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(2, 512, (rows, length), generator=generator).tolist()
    lengths = [length - padding * (row % 2) for row in range(rows)]
    return CalibrationSet(tokens, lengths, digest(tokens, lengths))


@pytest.mark.parametrize("residency", ["resident", "streamed"])
def test_the_planted_dead_expert_is_found_and_every_count_is_that_of_the_model_s_own_router(
    mixture: Path, tmp_path: Path, residency: Residency
) -> None:
    given, found = calibration(), context(tmp_path, mixture, residency)
    audit_experts(found, mixture, given)
    (tokens,) = found.measurements
    counts = dict(zip(tokens.item_ids, tokens.values, strict=True))

    model, expected = small_mixture(), dict.fromkeys(counts, 0.0)
    for row, length in zip(given.tokens, given.lengths, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row[:length]]), output_router_logits=True).router_logits
        for layer, each in enumerate(logits):
            for expert in each.topk(ACTIVE).indices.flatten().tolist():
                expected[f"layers.{layer}.mlp: {expert}"] += 1
    assert counts == expected
    assert sum(counts.values()) == LAYERS * ACTIVE * sum(given.lengths), "padding is not counted"
    dead = f"{DEAD[0]}: {DEAD[1]}"
    assert [name for name, count in counts.items() if count == 0] == [dead]

    (label,) = found.labels
    starved = sum(0 < count < STARVED_TOKENS for count in counts.values())
    one = 3 * 64 * 64 / sum(parameter.numel() for parameter in model.parameters())
    assert label.arguments["dead"] == 1
    assert label.arguments["starved"] == starved
    assert label.arguments["share"] == pytest.approx((1 + starved) * one)
    assert label.arguments["names"][0] == dead
    assert dead in label.sentence
    (fact,) = found.facts
    assert (fact.arguments["experts"], fact.arguments["least"]) == (LAYERS * EXPERTS, 0)


def test_what_a_library_only_rounded_is_named_with_its_share_of_the_weights(mixture: Path, tmp_path: Path) -> None:
    found = context(tmp_path, mixture)
    record_rounded(found, [])
    assert (found.labels, found.measurements) == ([], [])
    experts = [f"model.layers.1.mlp.experts.{number}.up_proj" for number in range(EXPERTS)]
    record_rounded(found, [*reversed(experts), "model.layers.1.mlp.gate", "model.layers.0.self_attn.q_proj"])
    (label,), (rounded,) = found.labels, found.measurements
    assert rounded.item_ids == ("model.layers.0.self_attn.q_proj", *experts), "the router is out of scope"
    assert set(rounded.values) == {64.0 * 64}
    whole = sum(parameter.numel() for parameter in small_mixture().parameters())
    assert label.arguments["modules"] == len(experts) + 1
    assert label.arguments["of"] == LAYERS * (4 + 3 * EXPERTS)
    assert label.arguments["share"] == pytest.approx((len(experts) + 1) * 64 * 64 / whole)
    assert label.sentence.startswith("9 of 56 matrices were only rounded to nearest (")
    assert label.sentence.endswith("and 1 more")


def test_the_methods_of_a_model_share_the_counts_and_a_damaged_file_is_counted_again(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, first = calibration(), context(tmp_path, mixture)
    audit_experts(first, mixture, given)
    with monkeypatch.context() as patch:
        patch.setattr("harness.execution.checks.experts.load_source", lambda *given: pytest.fail("counted again"))
        second = context(tmp_path, mixture)
        audit_experts(second, mixture, given)
    assert second.measurements == first.measurements
    assert second.labels == first.labels
    (kept,) = (tmp_path / "expert-tokens").iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "tokens": {"layers.0.mlp": [1] * EXPERTS}}))
    third = context(tmp_path, mixture)
    audit_experts(third, mixture, given)
    assert third.measurements == first.measurements


def test_a_model_that_does_not_fit_is_counted_in_parts(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = context(tmp_path / "whole", mixture)
    audit_experts(whole, mixture, calibration())
    monkeypatch.setattr("harness.execution.checks.experts.load_source", lambda *given: pytest.fail("loads it whole"))
    closed = []
    close = Parts.close
    monkeypatch.setattr(Parts, "close", lambda self: (close(self), closed.append(self)))
    found = context(tmp_path / "parts", mixture, "streamed")
    audit_experts(found, mixture, calibration())
    assert [fact.code for fact in found.facts] == ["experts_seen"]
    assert found.measurements == whole.measurements
    assert len(closed) == 1, "the checkpoint's files do not stay open while the method quantizes"


def test_what_cannot_be_counted_is_a_fact_and_a_dense_model_leaves_nothing(
    mixture: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = context(tmp_path, tiny)
    audit_experts(dense, tiny, calibration())
    assert (dense.measurements, dense.labels, dense.facts) == ([], [], [])
    monkeypatch.setattr("harness.execution.context.free_bytes", lambda *given: 10)
    found = context(tmp_path, mixture)
    audit_experts(found, mixture, calibration())
    (fact,) = found.facts
    assert fact.code == "experts_not_counted"
    assert "are free" in fact.value
    assert (found.measurements, found.labels) == ([], [])


def agreement(base: Any, own: Any, folder: Path) -> dict[str, Measurement]:
    reference = TransformersModel(base, None)
    reference.probe_head()
    folder.mkdir(exist_ok=True)
    model = TransformersModel(own, None)
    model.probe_head()
    with torch.inference_mode():
        references.write(reference, WINDOWS, folder, reference)
        kept = references.Reference(folder, "cpu")
        found = RouterAgreement(WINDOWS, kept.routed)
        with model.watching_routers(found.see):
            observe(model, WINDOWS, [Likelihood(WINDOWS)], kept)
    return {each.metric: each for each in found.finish()}


def disturbed() -> Any:
    model = small_mixture()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def test_agreement_is_what_plain_transformers_gives_window_by_window(tmp_path: Path) -> None:
    base, own = small_mixture(), disturbed()
    found = agreement(copy.deepcopy(base), copy.deepcopy(own), tmp_path)
    expected: dict[str, tuple[float, float, int]] = {}
    for window, (tokens, first) in enumerate(zip(WINDOWS.tokens, WINDOWS.firsts, strict=True)):
        ids = torch.tensor([tokens[:-1]])
        with torch.inference_mode():
            theirs, mine = (m(input_ids=ids, output_router_logits=True).router_logits for m in (base, own))
        for layer in range(LAYERS):
            p, q = theirs[layer][first - 1 :].double().softmax(-1), mine[layer][first - 1 :].double().softmax(-1)
            overlap = [
                len(set(a) & set(b)) / ACTIVE
                for a, b in zip(p.topk(ACTIVE).indices.tolist(), q.topk(ACTIVE).indices.tolist(), strict=True)
            ]
            kl = (p * (p / q).log()).sum(-1).mean()
            expected[f"{window}:layers.{layer}.mlp"] = sum(overlap) / len(overlap), float(kl), len(overlap)
    overlap, kl = found["router_overlap"], found["router_kl"]
    assert set(overlap.item_ids) == set(expected)
    assert kl.item_ids == overlap.item_ids
    for item, share, nats, weight in zip(overlap.item_ids, overlap.values, kl.values, kl.weights, strict=True):
        assert (share, nats, weight) == pytest.approx(expected[item], rel=1e-5)
    assert 0.3 < overlap.mean < 0.99, "the disturbance moves some tokens to other experts"
    assert kl.mean > 1e-4
    assert [dict(zip(kl.item_ids, kl.cluster_ids, strict=True))[f"{n}:layers.0.mlp"] for n in range(3)] == [
        "a",
        "b",
        "b",
    ]


def test_the_baseline_agrees_with_itself_exactly(tmp_path: Path) -> None:
    found = agreement(small_mixture(), small_mixture(), tmp_path)
    assert set(found["router_overlap"].values) == {1.0}
    assert set(found["router_kl"].values) == {0.0}


def test_a_window_that_is_read_in_parts_gives_the_same(tmp_path: Path) -> None:
    """A cache of fewer bits reads a text in chunks; what matters is the order of the tokens."""
    whole = agreement(small_mixture(), disturbed(), tmp_path)
    kept = references.Reference(tmp_path, "cpu")
    in_parts = RouterAgreement(WINDOWS, kept.routed)
    model = TransformersModel(disturbed(), None)

    def see(block: str, routed: Any) -> None:
        for at in range(0, len(routed.chosen), 5):
            in_parts.see(block, type(routed)(routed.scores[at : at + 5], routed.chosen[at : at + 5]))

    with torch.inference_mode(), model.watching_routers(see):
        for tokens in WINDOWS.tokens:
            model.logits(torch.tensor([tokens[:-1]]))
    for measurement in in_parts.finish():
        theirs = whole[measurement.metric]
        found = dict(zip(measurement.item_ids, measurement.values, strict=True))
        assert found == pytest.approx(dict(zip(theirs.item_ids, theirs.values, strict=True)), abs=1e-6)


def test_a_dense_reference_is_as_it_was(tmp_path: Path) -> None:
    model = TransformersModel(small_llama(), None)
    model.probe_head()
    windows = Windows([[token % 64 for token in row] for row in WINDOWS.tokens], [1] * 3, ["a"] * 3, PROTOCOL)
    with torch.inference_mode():
        references.write(model, windows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"window-{index:05d}.safetensors" for index in range(3)),
        *("head.safetensors", "reference.json"),
    }
    assert not references.Reference(tmp_path, "cpu").router_blocks


def test_a_reference_without_routers_and_one_of_other_layers_are_a_fact(mixture: Path, tmp_path: Path) -> None:
    model = TransformersModel(small_mixture(), None)
    model.probe_head()
    for number, changes in enumerate(({"routers": None}, {"routers": model})):
        folder = tmp_path / str(number)
        folder.mkdir()
        with torch.inference_mode():
            references.write(model, WINDOWS, folder, **changes)
    other = TransformersModel(small_mixture(), None)
    other._router_blocks = ("layers.0.mlp",)
    for number, (shown, reason) in enumerate(((model, "holds nothing"), (other, "not those of the baseline"))):
        found = context(tmp_path, mixture)
        with comparing_routers(found, shown, WINDOWS, references.Reference(tmp_path / str(number), "cpu")):
            pass
        (fact,) = found.facts
        assert reason in fact.value
        assert found.measurements == []


NAME = "model.layers.0.mlp.experts.3.down_proj"


def stored(folder: Path, value: float, everywhere: bool = False) -> Path:
    scale = torch.full((4, 4), value) if everywhere else torch.ones(4, 4)
    scale[2, 1] = value
    save_file(
        {f"{NAME}.packed": torch.ones(64, dtype=torch.uint8), f"{NAME}.scale": scale}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_planted_scale_that_is_not_finite_makes_the_run_invalid(mixture: Path, tmp_path: Path, value: float) -> None:
    found = context(tmp_path, mixture)
    with pytest.raises(InvalidRunError, match=rf"1 of 16 in {NAME}.scale are NaN or infinite"):
        verify_scales(found, partial(check_stored, stored(tmp_path, value)))


def test_a_planted_zero_scale_is_labelled_and_a_tensor_of_zeros_is_invalid(mixture: Path, tmp_path: Path) -> None:
    found = context(tmp_path, mixture)
    verify_scales(found, partial(check_stored, stored(tmp_path, 0.0)))
    (label,) = found.labels
    assert label.arguments == {"scales": 1, "count": 1, "tensors": (f"{NAME}.scale",)}
    with pytest.raises(InvalidRunError, match=r"all 16 in .*down_proj.scale are zero"):
        verify_scales(found, partial(check_stored, stored(tmp_path, 0.0, everywhere=True)))


def test_sound_scales_are_a_fact(mixture: Path, tmp_path: Path) -> None:
    found = context(tmp_path, mixture)
    verify_scales(found, partial(check_stored, stored(tmp_path, 0.5)))
    assert [(fact.code, dict(fact.arguments)) for fact in found.facts] == [("scales", {"scales": 16, "tensors": 1})]
    assert found.labels == []
    assert load_file(tmp_path / "model.safetensors")[f"{NAME}.scale"].isfinite().all()
