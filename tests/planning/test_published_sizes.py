"""Checkpoints that were published quantized are planned with the size of what a machine has of them in memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.api.plan import plan
from harness.core.site import Machine
from harness.errors import SourceError
from harness.execution.local import LocalSite
from harness.models.bitsandbytes import stored_widths
from harness.models.compressed import dense_shapes
from harness.planning.plan import PlannedRun
from harness.planning.residency import WEIGHTS_SHARE
from harness.recipe import load_recipe

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
CPU = Machine("cpu", "a test machine", memory_bytes=2**40)
GPU = Machine("cuda", "a test GPU", capability=(9, 0), memory_bytes=2**40)
OLD_GPU = Machine("cuda", "an old GPU", capability=(7, 0), memory_bytes=2**40)
BITS = {"U8": 8, "F8_E4M3": 8, "I32": 32, "BF16": 16, "F32": 32, "I64": 64}
QUALITY = {"perplexity": {"text": "demo", "context": 32, "windows": 2}, "divergence": {}}
COMMON = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 512},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128},
    **{"dtype": "bfloat16"},
}
OUTSIDE: Tensors = {"model.embed_tokens.weight": ("BF16", (512, 64)), "lm_head.weight": ("BF16", (512, 64))}
LAYER = "model.layers.0"
MXFP4: Tensors = {
    **OUTSIDE,
    f"{LAYER}.self_attn.q_proj.weight": ("BF16", (64, 64)),
    f"{LAYER}.mlp.experts.gate_up_proj_blocks": ("U8", (4, 192, 2, 16)),
    f"{LAYER}.mlp.experts.gate_up_proj_scales": ("U8", (4, 192, 2)),
    f"{LAYER}.mlp.experts.down_proj_blocks": ("U8", (4, 64, 3, 16)),
    f"{LAYER}.mlp.experts.down_proj_scales": ("U8", (4, 64, 3)),
}
FP8: Tensors = {
    **OUTSIDE,
    f"{LAYER}.self_attn.q_proj.weight": ("F8_E4M3", (64, 64)),
    f"{LAYER}.self_attn.q_proj.weight_scale_inv": ("F32", (1, 1)),
    f"{LAYER}.mlp.up_proj.weight": ("F8_E4M3", (96, 64)),
    f"{LAYER}.mlp.up_proj.weight_scale_inv": ("F32", (1, 1)),
}
W4A16: Tensors = {
    **OUTSIDE,
    f"{LAYER}.self_attn.q_proj.weight_packed": ("I32", (64, 8)),
    f"{LAYER}.self_attn.q_proj.weight_scale": ("BF16", (64, 2)),
    f"{LAYER}.self_attn.q_proj.weight_shape": ("I64", (2,)),
    f"{LAYER}.mlp.up_proj.weight_packed": ("I32", (96, 8)),
    f"{LAYER}.mlp.up_proj.weight_scale": ("BF16", (96, 2)),
    f"{LAYER}.mlp.up_proj.weight_shape": ("I64", (2,)),
}
"""Packed integers have their shapes beside them: see ``STATED``."""


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


STATED = {
    f"{LAYER}.self_attn.q_proj.weight_shape": numbers(64, 64),
    f"{LAYER}.mlp.up_proj.weight_shape": numbers(96, 64),
}
MIXED: Tensors = {
    **W4A16,
    f"{LAYER}.mlp.up_proj.weight_packed": ("I32", (96, 16)),
    f"{LAYER}.mlp.down_proj.weight_packed": ("I32", (64, 9)),
    f"{LAYER}.mlp.down_proj.weight_scale": ("BF16", (64, 1)),
    f"{LAYER}.mlp.down_proj.weight_shape": ("I64", (2,)),
    f"{LAYER}.self_attn.k_proj.weight_packed": ("U8", (64, 32)),
    f"{LAYER}.self_attn.k_proj.weight_scale": ("F8_E4M3", (64, 4)),
    f"{LAYER}.self_attn.k_proj.weight_global_scale": ("F32", (1,)),
    f"{LAYER}.self_attn.v_proj.weight": ("F8_E4M3", (64, 64)),
    f"{LAYER}.self_attn.v_proj.weight_scale": ("BF16", (64, 1)),
    f"{LAYER}.self_attn.v_proj.input_scale": ("BF16", (1,)),
}
"""Integers of 4, 8 and 3 bits, 4-bit floats and 8-bit floats."""
DENSE = {
    **{name: shape for name, (_, shape) in OUTSIDE.items()},
    **{f"{LAYER}.self_attn.{name}_proj.weight": (64, 64) for name in "qkv"},
    **{f"{LAYER}.mlp.up_proj.weight": (96, 64), f"{LAYER}.mlp.down_proj.weight": (64, 96)},
}
"""The shapes of the model that it was made of."""
PUBLISHED: Mapping[str, tuple[dict[str, Any], Tensors, int]] = {
    "mxfp4": (
        {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2},
        MXFP4,
        2 * 512 * 64 + 64 * 64 + 4 * 3 * 64 * 96,
    ),
    "fp8": ({"model_type": "qwen3"}, FP8, 2 * 512 * 64 + 64 * 64 + 96 * 64),
    "compressed-tensors": ({"model_type": "llama"}, W4A16, 2 * 512 * 64 + 64 * 64 + 96 * 64),
}
"""By quant_method: a configuration, its tensors, and the parameters of the dense model."""
QUANTIZED: Mapping[str, dict[str, Any]] = {
    "mxfp4": {},
    "fp8": {"activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "compressed-tensors": {
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}},
    },
}


def save(folder: Path, config: Mapping[str, Any], tensors: Tensors, stated: Mapping[str, bytes] | None = None) -> Path:
    """A checkpoint of zeros, but for what it states of its shapes; planning reads no weights."""
    folder.mkdir()
    header: dict[str, Any] = {}
    content, end = b"", 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        content += (stated or {}).get(name, bytes(end - begin))
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + content)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Any:
    def make(method: str) -> tuple[Path, int, int]:
        """A checkpoint, the bytes of its weights' file, and the parameters of the dense model."""
        config, tensors, parameters = PUBLISHED[method]
        own = {"quantization_config": {"quant_method": method, **QUANTIZED[method]}}
        folder = save(tmp_path / method, COMMON | config | own, tensors, STATED)
        return folder, (folder / "model.safetensors").stat().st_size, parameters

    return make


@pytest.fixture
def planned(sweeps: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def planned(machine: Machine, kernels: bool, **content: Any) -> tuple[PlannedRun, ...]:
        own = {"kernels": "0.16.1", "triton": "3.5.0"} if kernels else {"kernels": None}
        version = LocalSite.version
        monkeypatch.setattr(
            LocalSite,
            "version",
            lambda site, package, *stack: own[package] if package in own else version(site, package, *stack) or "1.0",
        )
        return plan(load_recipe(sweeps.recipe({"methods": ["none"], "measure": QUALITY, **content})), machine)

    return planned


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
@pytest.mark.parametrize(
    ("machine", "kernels", "dense"),
    [(CPU, True, True), (GPU, True, False), (GPU, False, True), (OLD_GPU, True, True)],
    ids=["cpu", "gpu", "gpu without kernels", "old gpu"],
)
def test_a_native_baseline_is_as_large_as_its_codes_where_kernels_multiply_them_and_as_the_dense_model_elsewhere(
    method: str, machine: Machine, kernels: bool, dense: bool, published: Any, planned: Any
) -> None:
    folder, stored_bytes, parameters = published(method)
    runs = planned(machine, kernels, models=[str(folder)])
    loading = [run for run in runs if run.spec.kind in ("reference", "quality")]
    assert len(loading) == 2
    assert {run.weight_bytes for run in loading} == {2 * parameters if dense else stored_bytes}
    assert all(run.size is not None and run.size.parameters == parameters for run in loading)
    peaks = {run.spec.kind: run.peak_bytes or 0 for run in loading}
    assert peaks["quality"] > loading[0].weight_bytes
    wide = 4 * parameters - (0 if machine is CPU else 2 * parameters)  # of the copy in float32 for a noise floor
    assert peaks["reference"] - peaks["quality"] == (wide if dense else 0)


def test_a_native_baseline_that_fits_a_gpu_as_codes_alone_is_measured_there(published: Any, planned: Any) -> None:
    """The weights take 2 bytes each in the dense model, and the GPU has room for its codes and not for that."""
    folder, stored_bytes, parameters = published("mxfp4")
    small = Machine("cuda", "a small GPU", capability=(9, 0), memory_bytes=(stored_bytes + 2 * parameters) // 2)
    for kernels in (True, False):
        refused = [str(run.unsupported) for run in planned(small, kernels, models=[str(folder)]) if run.unsupported]
        assert bool(refused) != kernels
        assert all("its weights take" in reason for reason in refused)


def test_a_native_baseline_that_a_cpu_makes_dense_is_streamed_where_only_its_codes_would_fit(
    published: Any, planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.planning.peaks.LEAST_BYTES", 0)
    folder, stored_bytes, parameters = published("mxfp4")
    limit = int(0.9 * 2 * parameters / WEIGHTS_SHARE)
    assert stored_bytes < WEIGHTS_SHARE * limit < 2 * parameters
    runs = planned(CPU, False, models=[str(folder)], limits={"memory": limit})
    assert {run.spec.job.conditions.residency for run in runs if run.spec.kind != "machine"} == {"streamed"}
    assert not any(run.unsupported for run in runs)


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_checkpoint_that_is_made_dense_while_loading_is_as_large_as_the_model(
    machine: Machine, published: Any, planned: Any, tmp_path: Path
) -> None:
    """Beside its model as a variant, and as a baseline of its own."""
    folder, stored_bytes, parameters = published("compressed-tensors")
    plain = {name.replace("_packed", ""): ("BF16", shape) for name, (_, shape) in W4A16.items()}
    plain = {name: each for name, each in plain.items() if not name.endswith(("_scale", "_shape"))}
    plain |= {f"{LAYER}.self_attn.q_proj.weight": ("BF16", (64, 64)), f"{LAYER}.mlp.up_proj.weight": ("BF16", (96, 64))}
    source = save(tmp_path / "source", COMMON | {"model_type": "llama"}, plain)
    variants = planned(machine, False, models=[str(source)], methods=["none", {"checkpoint": {"id": str(folder)}}])
    (own,) = (run for run in variants if run.spec.kind == "quality" and run.spec.method.name == "checkpoint")
    assert own.weight_bytes == 2 * parameters > stored_bytes
    alone = planned(machine, False, models=[str(folder)])
    assert {run.weight_bytes for run in alone if run.spec.kind in ("reference", "quality")} == {2 * parameters}


@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_a_baseline_whose_layers_have_several_widths_is_as_large_as_the_dense_model(
    machine: Machine, planned: Any, tmp_path: Path
) -> None:
    """One number for the width would not do: the groups of its configuration differ."""
    groups = {f"group_{bits}": {"weights": {"num_bits": bits, "strategy": "channel"}} for bits in (3, 4, 8)}
    own = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    quantized = QUANTIZED["compressed-tensors"] | own
    config = COMMON | {"model_type": "llama", "quantization_config": quantized}
    stated = STATED | {f"{LAYER}.mlp.down_proj.weight_shape": numbers(64, 96)}
    folder = save(tmp_path / "mixed", config, MIXED, stated)
    assert dense_shapes(folder) == DENSE
    runs = planned(machine, False, models=[str(folder)])
    loading = [run for run in runs if run.spec.kind in ("reference", "quality")]
    assert {run.weight_bytes for run in loading} == {2 * sum(map(math.prod, DENSE.values()))}


@pytest.mark.parametrize(
    "stated",
    [(0, 0), (64, 0), (64, -8), (64, 7), (64, 8 * 32 + 1), (63, 64), (2**62, 64)],
)
def test_a_shape_that_the_codes_cannot_have_is_not_believed(stated: tuple[int, int], tmp_path: Path) -> None:
    packed: Tensors = {"a.weight_packed": ("I32", (64, 8)), "a.weight_shape": ("I64", (2,))}
    assert dense_shapes(save(tmp_path / "m", {}, packed, {"a.weight_shape": numbers(*stated)})) == {"a.weight": (64, 8)}


@pytest.mark.parametrize("beside", [{}, {"a.weight_shape": ("I64", (4,))}, {"a.weight_shape": ("F32", (2,))}])
def test_without_a_shape_it_is_that_of_the_codes(beside: Tensors, tmp_path: Path) -> None:
    packed: Tensors = {"a.weight_packed": ("I32", (64, 8)), "b.weight_packed": ("I32", (8,)), **beside}
    assert dense_shapes(save(tmp_path / "m", {}, packed)) == {"a.weight": (64, 8), "b.weight": (8,)}


def four_bits(name: str, shape: tuple[int, int], state: object) -> tuple[Tensors, dict[str, bytes]]:
    """A matrix as bitsandbytes saves it: its codes in one column, and beside them JSON with its shape."""
    content = json.dumps(state).encode()
    codes, state_name = f"{name}.weight", f"{name}.weight.quant_state.bitsandbytes__nf4"
    tensors = {
        codes: ("U8", (math.prod(shape) // 2, 1)),
        f"{codes}.absmax": ("F32", (math.prod(shape) // 64,)),
        state_name: ("U8", (len(content),)),
    }
    return tensors, {state_name: content}


BNB = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_blocks_that_reach_over_rows_are_refused_on_a_cpu_in_a_checkpoint_too(
    narrow: bool, machine: Machine, planned: Any, tmp_path: Path
) -> None:
    """As they are where the harness quantizes. Of the matrices that are stored in 4 bits alone."""
    up, down = f"{LAYER}.mlp.up_proj", f"{LAYER}.mlp.down_proj"
    tensors, stated = four_bits(up, (96, 64), {"blocksize": 64, "shape": [96, 64]})
    others: Tensors = {f"{down}.weight": ("BF16", (64, 96))}
    if narrow:
        others, more = four_bits(down, (64, 96), {"blocksize": 64, "shape": [64, 96]})
        stated |= more
    config = COMMON | {"model_type": "llama"}
    folder = save(tmp_path / "bnb", config | BNB, {**OUTSIDE, **tensors, **others}, stated)
    plain: Tensors = {**OUTSIDE, f"{up}.weight": ("BF16", (96, 64)), f"{down}.weight": ("BF16", (64, 96))}
    source = save(tmp_path / "source", config, plain)
    expected = "64 does not divide the input widths 96, as a CPU needs" if narrow and machine is CPU else None
    alone = planned(machine, False, models=[str(folder)])
    assert {run.unsupported for run in alone if run.spec.kind == "quality"} == {expected}
    beside = planned(machine, False, models=[str(source)], methods=["none", {"checkpoint": {"id": str(folder)}}])
    reasons = {run.spec.method.name: run.unsupported for run in beside if run.spec.kind == "quality"}
    assert reasons == {"none": None, "checkpoint": expected}


@pytest.mark.parametrize("state", [[], {}, {"shape": None}, {"shape": []}, {"shape": ["64"]}, {"shape": [True]}, 64])
def test_a_state_without_a_shape_says_nothing(state: object, tmp_path: Path) -> None:
    tensors, stated = four_bits("a", (64, 96), state)
    assert stored_widths(save(tmp_path / "m", {}, tensors, stated)) == set()


def test_a_state_that_is_no_json_is_refused(tmp_path: Path) -> None:
    tensors, _ = four_bits("a", (64, 96), {})
    with pytest.raises(SourceError, match=r"a\.weight\.quant_state\.bitsandbytes__nf4: not valid JSON"):
        stored_widths(save(tmp_path / "m", {}, tensors))
