"""GPTQ, AWQ and GGUF by gptqmodel: what is saved is what was quantized, at the size that is said."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from kernel_families import families
from thorough import all_thorough_but

from harness import plugins as registry
from harness.core.engine import LoadRequest
from harness.core.method import QuantizeJob
from harness.engines.transformers.engine import TRANSFORMERS
from harness.execution.local import ENVIRONMENT, local_site
from harness.methods.gptqmodel import awq, driver
from harness.models.headers import read_directory

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("eager", "frozen_heap")]

PROBE = torch.arange(2, 34).unsqueeze(0)

UP = "model.layers.1.mlp.up_proj"
SHAPES = [(64, 64)] * 2 + [(32, 64)] * 2 + [(192, 64)] * 2 + [(64, 192)]
"""(rows, columns) of the tiny model's linear layers."""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be left in the folder where a method runs."""
    folder = tmp_path.parent / f"{tmp_path.name}-cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield
    assert list(folder.iterdir()) == []


def expected_bits(made) -> float:
    bits = sum(r * c * made.method.bits_per_weight(made.params, 32.0, c) for r, c in SHAPES)
    bits += sum(8 * made.method.beside(made.params, 32.0, shape).disk for shape in SHAPES)
    return bits / sum(r * c for r, c in SHAPES)


def saved_bits(folder: Path) -> float:
    """Bits of a decoder weight as the checkpoint stores it, by its header."""
    with (folder / "model.safetensors").open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    spans = [e["data_offsets"] for n, e in header.items() if "_proj." in n]
    return 8 * sum(end - start for start, end in spans) / (4 * sum(r * c for r, c in SHAPES))


def tables_bits(made) -> float:
    """What a GPTQ layer holds beside what is saved: a table of int32 shifts."""
    entries = {8: 4, 4: 8, 3: 36, 2: 16}[made.params.bits] if made.method.name == "gptq" else 0
    return 32 * entries * len(SHAPES) / sum(r * c for r, c in SHAPES)


def check(made) -> None:
    """The reload is what was quantized, all of it, at the size that was said."""
    assert made.reload_difference < 1e-3
    expected = expected_bits(made)
    assert saved_bits(made.folder) == pytest.approx(expected, rel=0.02)
    assert made.linear_bits == pytest.approx(saved_bits(made.folder) + tables_bits(made), rel=1e-3)
    linears = [entry for entry in made.model.weight_ledger() if entry.role == "linear"]
    assert sum(entry.parameters for entry in linears) == 4 * sum(r * c for r, c in SHAPES)
    assert all(entry.quantized and entry.name.endswith("_proj.weight") for entry in linears)
    assert len(linears) == 28


GPTQ = [
    ({"bits": 4, "group_size": 32}, "packed", 3e-3, 0.03),
    ({"bits": 8, "group_size": 64, "damp": 0.01}, "dequantize", 1e-6, 1e-3),
    ({"bits": 4, "group_size": 32, "desc_act": True, "symmetric": False}, "packed", 2e-3, 0.02),
    ({"bits": 4, "group_size": "channel", "symmetric": False}, "dequantize", 3e-3, 0.06),
    ({"bits": 3, "group_size": 32}, "dequantize", 0.03, 0.3),
    ({"bits": 2, "group_size": 32, "symmetric": False}, "dequantize", 0.05, 1),
]


@pytest.mark.parametrize(("params", "family", "least", "most"), all_thorough_but(GPTQ[:1], GPTQ))
def test_gptq(make, params, family: str, least: float, most: float) -> None:
    made = make("gptq", **params)
    check(made)
    assert families(made.model) == {family: 28}
    assert least < made.kl < most


def test_awq(make) -> None:
    made = make("awq", group_size=32)
    check(made)
    assert made.model.kernels() == {"TorchAtenAwqLinear": 28}
    assert 1e-3 < made.kl < 0.05


@pytest.mark.parametrize(("device", "backend"), [("cuda", "AUTO"), ("cpu", "AWQ_TORCH")])
def test_gptqmodel_chooses_the_kernel_of_awq_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path, device: str, backend: str
) -> None:
    from gptqmodel import BACKEND

    backends: list[BACKEND] = []

    def quantize(job: Any, config: Any, *, backend: BACKEND, **others: Any) -> Any:
        backends.append(backend)
        return SimpleNamespace(quant_log=[])

    monkeypatch.setattr(driver, "quantize", quantize)
    for name in ("calibration", "dynamic", "amend_config", "as_loaded"):
        monkeypatch.setattr(driver, name, lambda *_, **__: None)
    job: Any = SimpleNamespace(
        **{"params": awq.AwqParams(), "source": tiny, "out": tmp_path, "dtype": "float16", "device": device},
        untouched=(),
        note=lambda *_: None,
        rounded=lambda _: None,
    )
    awq.quantize(job)
    assert backends == [BACKEND[backend]]


@pytest.mark.parametrize(
    ("layout", "most"),
    all_thorough_but([("q4_0", 0.05)], [("q8_0", 3e-4), ("q6_k", 2e-3), ("q4_k", 0.02), ("q4_0", 0.05)]),
)
def test_gguf(make, layout: str, most: float) -> None:
    made = make("gptqmodel-gguf", format=layout)
    check(made)
    assert made.model.kernels() == {"GGUFTorchLinear": 28}
    assert most / 20 < made.kl < most


@pytest.mark.thorough
def test_transformers_reads_gguf_as_noise(make) -> None:
    """A silent corruption: it warns of missing weights, fills them with random numbers and returns a model."""
    made = make("gptqmodel-gguf", format="q8_0", loader="transformers")
    assert made.reload_difference > 0.1
    assert made.kl > 1
    assert made.model.kernels() == {"Linear": 28}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "params"),
    [("gptq", {"group_size": 32}), ("awq", {"group_size": 32, "symmetric": True}), ("gptqmodel-gguf", {})],
)
def test_untouched_modules_stay_as_they_are(make, tiny: Path, name: str, params) -> None:
    from safetensors import safe_open

    made = make(name, untouched=("lm_head", UP, "model.layers.0.self_attn.o_proj"), **params)
    assert made.reload_difference < 1e-3
    plain = [e.name for e in made.model.weight_ledger() if e.role == "linear" and not e.quantized]
    assert plain == ["model.layers.0.self_attn.o_proj.weight", f"{UP}.weight"]
    with (
        safe_open(tiny / "model.safetensors", "pt") as source,
        safe_open(made.folder / "model.safetensors", "pt") as saved,
    ):
        before, after = (file.get_tensor("model.layers.0.self_attn.o_proj.weight") for file in (source, saved))
        assert torch.allclose(before, after.to(before.dtype), atol=1e-3)  # AWQ rounds to float16


def test_single_modules_may_have_settings_of_their_own(tiny: Path, tmp_path: Path, calibration) -> None:
    gptq = registry.method("gptq")
    if lacking := registry.missing(gptq, local_site()):
        pytest.skip(lacking)
    gptq.enable()
    job = QuantizeJob(
        gptq.params(group_size=32),
        tiny,
        tmp_path,
        "cpu",
        "float32",
        0,
        lambda: None,
        calibration,
        scope=tuple(name for name in linear_names(tiny)),
        untouched=("lm_head",),
        overrides={UP: {"bits": 8, "group_size": "channel"}},
    )
    quantized = gptq.quantize(job)
    model = TRANSFORMERS.load(LoadRequest(tmp_path, "float32", "cpu", read=gptq.read), TRANSFORMERS.params())
    (entry,) = [entry for entry in model.weight_ledger() if entry.name == f"{UP}.weight"]
    assert entry.value_bytes == entry.parameters == 192 * 64
    assert families(model) == {"packed": 27, "dequantize": 1}
    with torch.inference_mode():
        before, after = quantized(input_ids=PROBE).logits, model.logits(PROBE)
    assert (before - after).abs().max() < 1e-3 * before.abs().max()


def linear_names(folder: Path) -> list[str]:
    return [name.removesuffix(".weight") for name in read_directory(folder).shapes if "_proj" in name]


def test_every_row_of_calibration_is_used_in_its_order(make, calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gptqmodel")
    from gptqmodel.models import base

    seen = []
    plain = base.prepare_calibration_dataset

    def spy(*arguments, **options):
        seen.extend(plain(*arguments, **options))
        return seen

    monkeypatch.setattr(base, "prepare_calibration_dataset", spy)
    make("gptq", bits=4, group_size=32)
    assert [batch["input_ids"].tolist() for batch in seen] == [[list(row)] for row in calibration.tokens]
    assert all(batch["attention_mask"].bool().all() for batch in seen)


def test_a_worker_downloads_no_sources_of_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU gptqmodel looks for CUTLASS before it takes a kernel that needs it; without it, it takes another."""
    pytest.importorskip("gptqmodel")
    from gptqmodel.utils import machete

    downloads: list[object] = []
    monkeypatch.setenv("GPTQMODEL_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setattr(machete, "_download_cutlass_archive", lambda *source: downloads.append(source))
    monkeypatch.setenv("GPTQMODEL_OFFLINE", ENVIRONMENT["GPTQMODEL_OFFLINE"])
    with pytest.raises(RuntimeError, match="GPTQMODEL_OFFLINE"):
        machete._ensure_cutlass_source()
    assert not downloads
