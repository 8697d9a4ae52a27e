"""What really runs in vLLM, of every checkpoint that it reads on a CPU: kernels, arithmetic, bytes.

What runs depends on the processor: AMX rounds inputs of 4-bit weights to int8 and multiplies float8 blocks in bfloat16;
without it both are other kernels or none. These were seen on a processor with AVX-512 and its bfloat16 instructions,
without AMX. On any other the expectations are only vLLM's source: the tests are skipped unless QHARNESS_ANY_CPU is set.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from in_memory import quantized
from safetensors.numpy import load_file, save_file

from harness import plugins as registry
from harness.core.capability import Product, StoredTensor
from harness.core.engine import LoadRequest
from harness.core.method import CalibrationSet, QuantizeJob
from harness.engines.transformers import engine as transformers
from harness.execution.checks import reload as probe
from harness.execution.checks.variant import OTHER_ENGINE_KL
from harness.host.processor import instruction_sets
from harness.models import headers
from harness.models.scope import in_decoder
from harness.numerics.traffic import Running, decode_step

pytestmark = pytest.mark.stack

PROGRAM = Path(__file__).with_name("what_runs.py")
HEAD = "lm_head.weight"
SAMPLES, LENGTH, GROUP = 8, 64, 32
CHECKPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "W8A8": ("llmc-int8", {}),
    "GPTQ": ("llmc-gptq", {"group_size": GROUP}),
    "AWQ": ("llmc-awq", {"group_size": GROUP, "grid": 3}),
    "symmetric": ("llmc-rtn", {"group_size": GROUP}),
    "W4A8": ("llmc-w4a8", {"group_size": GROUP}),
    "FP8": ("llmc-fp8", {}),
    "FP8 block": ("llmc-fp8", {"scheme": "block"}),
    "FP8 static": ("llmc-fp8", {"scheme": "static"}),
    "W8A16": ("llmc-rtn", {"bits": 8, "group_size": GROUP}),
    "gptqmodel": ("gptq", {"group_size": GROUP}),
}
INT8 = ("int8", "int8")
LAYERS, PRODUCTS = 14, 8  # of two blocks, and of these what vLLM merges: qkv, o, gate and up, down


@pytest.fixture(scope="session")
def checkpoints(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Llama quantized by the harness's own methods, each with the probe logits of the model in memory."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    text = (Path(registry.__file__).parent / "text" / "data" / "demo_calibration.txt").read_text(encoding="utf-8")
    ids = tokenizer(text[:20000], verbose=False)["input_ids"]
    rows = [ids[index * LENGTH : (index + 1) * LENGTH] for index in range(SAMPLES)]
    calibration = CalibrationSet(rows, [LENGTH] * SAMPLES, hashlib.sha256(json.dumps(rows).encode()).hexdigest())
    shapes = headers.read_directory(tiny_llama).shapes
    scope = tuple(name.removesuffix(".weight") for name, shape in shapes.items() if in_decoder(name, len(shape)))
    words = probe.tokens(tiny_llama, tokenizer.vocab_size)
    made = {"none": tiny_llama}
    for name, (method, given) in CHECKPOINTS.items():
        chosen = registry.method(method)
        params = chosen.params.model_validate(given)
        if chosen.enable is not None:
            chosen.enable()
        folder = tmp_path_factory.mktemp("checkpoint")
        job: QuantizeJob[Any] = QuantizeJob(
            params,
            tiny_llama,
            folder,
            "cpu",
            "bfloat16",
            0,
            lambda: AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval(),
            calibration if chosen.calibrated(params) else None,
            scope=scope,
            untouched=("lm_head",),
        )
        probed = quantized(chosen, job, lambda model: probe.evaluate(model, words))
        tokenizer.save_pretrained(folder)
        probe.save(probed, folder)
        made[name] = folder
    return made


@pytest.fixture(scope="session")
def tied_llamas(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny Llama with its embedding as its head: without a tensor for the head, and with a copy of it."""
    stored = load_file(tiny_llama / "model.safetensors")
    stored[HEAD] = stored["model.embed_tokens.weight"].copy()
    made = {}
    for name in ("tied", "tied and stored"):
        folder = made[name] = tmp_path_factory.mktemp("tied") / "model"
        shutil.copytree(tiny_llama, folder)
        kept = {key: array for key, array in stored.items() if name == "tied and stored" or key != HEAD}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), encoding="utf-8")
    return made


@pytest.fixture(scope="session")
def found(
    processor: frozenset[str],
    checkpoints: dict[str, Path],
    tied_llamas: dict[str, Path],
    run_in_stack: Callable[..., Any],
) -> dict[str, Any]:
    """What ran, by case. vLLM is started once, and loads the models one after the other."""
    none = checkpoints["none"]
    cases: list[tuple[str, Path, str, str, dict[str, str], dict[str, str]]] = [
        *((f"none {dtype}", none, dtype, "model", {}, {}) for dtype in ("bfloat16", "float16", "float32")),
        *((name, checkpoints[name], "bfloat16", "model", {}, {}) for name in CHECKPOINTS),
        ("GPTQ, 16 bits", checkpoints["GPTQ"], "bfloat16", "model", {}, {"VLLM_CPU_INT4_W4A8": "0"}),
        ("GPTQ float16", checkpoints["GPTQ"], "float16", "model", {}, {}),
        ("fp8 cache", none, "bfloat16", "fp8", {}, {}),
        *((name, folder, "bfloat16", "model", {}, {}) for name, folder in tied_llamas.items()),
        *(
            (scheme, none, "bfloat16", "model", {"quantization": scheme}, {})
            for scheme in ("fp8_per_channel", "fp8_per_block", "int8_per_channel_weight_only")
        ),
    ]
    return run_in_stack(PROGRAM, json.dumps(cases, default=str))  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def processor() -> frozenset[str]:
    able = frozenset(instruction_sets())
    if ("avx512_bf16" not in able or "amx_tile" in able) and not os.environ.get("QHARNESS_ANY_CPU"):
        pytest.skip(
            "vLLM's kernels were seen on processors with AVX-512 and bfloat16, without AMX: this is another one"
        )
    return able


def runs(found: dict[str, Any], case: str) -> tuple[dict[str, int], dict[str, int], tuple[str, str], dict[str, int]]:
    """Kernels, families, the decoder's arithmetic, which must be one for all, and how often which operation ran."""
    ran = found[case]
    assert "refused" not in ran, ran
    kinds = {tuple(each) for name, each in ran["arithmetic"].items() if name != "lm_head"}
    assert len(kinds) == 1
    return ran["kernels"], ran["families"], kinds.pop(), ran["operations"]


def ledger(found: dict[str, Any], case: str) -> dict[str, StoredTensor]:
    return {name: StoredTensor(name, *entry) for name, *entry in found[case]["ledger"]}


def native(processor: frozenset[str], dtype: str) -> bool:
    kinds = {"bfloat16": {"avx512_bf16", "amx_bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}
    return dtype == "float32" or bool(processor & kinds[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_an_unquantized_model_is_dense_and_widens_what_the_processor_cannot_multiply(found, processor, dtype) -> None:
    kernels, families, arithmetic, operations = runs(found, f"none {dtype}")
    assert families == {"plain": LAYERS}
    assert arithmetic == (dtype, dtype if native(processor, dtype) else "float32")
    operation = {"oneDNN": "_C::onednn_mm", "sgl-kernel": "_C::weight_packed_linear", "torch": "aten::linear"}
    ((name, count),) = kernels.items()
    assert (name.partition(" on ")[0], count) == ("UnquantizedLinearMethod", LAYERS)
    assert operations[operation[name.partition(" on ")[2]]] >= PRODUCTS
    assert found[f"none {dtype}"]["arithmetic"]["lm_head"] == [*arithmetic]


def test_w8a8_multiplies_int8(found) -> None:
    kernels, families, arithmetic, operations = runs(found, "W8A8")
    assert kernels == {"CompressedTensorsW8A8Int8 on CPUInt8ScaledMMLinearKernel": LAYERS}
    assert (families, arithmetic) == ({"packed": LAYERS}, INT8)
    scaled = operations.get("_C::onednn_scaled_mm", 0) + operations.get("_C::int8_scaled_mm_with_quant", 0)
    assert scaled == PRODUCTS


@pytest.mark.parametrize("case", ["GPTQ", "AWQ", "symmetric", "gptqmodel", "GPTQ, 16 bits", "GPTQ float16"])
def test_four_bit_weights_meet_int8_inputs_with_amx_unless_that_is_turned_off(found, processor, case: str) -> None:
    kernels, families, arithmetic, operations = runs(found, case)
    dtype = "float16" if case.endswith("float16") else "bfloat16"
    tiles = "amx_tile" in processor and dtype == "bfloat16"
    rounded = tiles and "16 bits" not in case
    assert families == {"packed": LAYERS}
    assert arithmetic == (INT8 if rounded else (dtype, "bfloat16" if tiles else "float32"))
    method = "AutoGPTQLinearMethod" if case == "gptqmodel" else "CompressedTensorsWNA16"
    hint = "" if rounded else " (amx)" if tiles else " (vec)"
    assert kernels == {f"{method} on CPUWNA16LinearKernel{hint}": LAYERS}
    assert operations["_C::int4_scaled_mm_cpu" if rounded else "_C::cpu_gemm_wna16"] == PRODUCTS


def test_w4a8_multiplies_int8(found) -> None:
    _, families, arithmetic, operations = runs(found, "W4A8")
    assert (families, arithmetic) == ({"packed": LAYERS}, INT8)
    assert operations["aten::_dyn_quant_matmul_4bit"] == PRODUCTS


@pytest.mark.parametrize("case", ["FP8", "fp8_per_channel"])
def test_float8_with_a_scale_per_channel_is_torchs_product(found, processor, case: str) -> None:
    kernels, families, arithmetic, operations = runs(found, case)
    method = "CompressedTensorsW8A8Fp8" if case == "FP8" else "Fp8PtpcOnlineLinearMethod"
    assert kernels == {f"{method} on ChannelWiseTorchFP8ScaledMMLinearKernel": LAYERS}
    assert operations["aten::_scaled_mm"] == PRODUCTS
    tiles = "amx_int8" in processor
    assert families == {"packed" if tiles else "dequantize": LAYERS}
    assert arithmetic == ("float8_e4m3fn", "float8_e4m3fn" if tiles else "float32")


@pytest.mark.parametrize("case", ["FP8 block", "fp8_per_block"])
def test_float8_blocks_keep_their_inputs_with_amx_and_are_refused_without(found, processor, case: str) -> None:
    if case == "FP8 block":  # rows of the tiny model's keys
        assert "64 is not divisible by weight quantization block_n = 128" in found[case]["refused"]
        return
    if "amx_tile" not in processor:
        assert "requires AMX tile support" in found[case]["refused"]
        return
    _, families, arithmetic, operations = runs(found, case)
    assert (families, arithmetic) == ({"packed": LAYERS}, ("bfloat16", "bfloat16"))
    assert operations["_C::fp8_scaled_mm_cpu"] == PRODUCTS


@pytest.mark.parametrize("case", ["FP8 static", "W8A16"])
def test_what_vllm_has_no_kernel_for_is_refused_with_its_reason(found, case: str) -> None:
    assert found[case]["refused"].startswith("vLLM does not load it: ")


def test_an_online_scheme_that_quantizes_nothing_shows_no_quantized_layer(found) -> None:
    """The coverage of such a run is 0, and the run invalid."""
    nothing, none = found["int8_per_channel_weight_only"], found["none bfloat16"]
    assert not any(quantized for *_, quantized, _ in nothing["ledger"])
    assert (nothing["kernels"], nothing["operations"]) == (none["kernels"], none["operations"])
    assert (nothing["ledger"], nothing["running_bytes"]) == (none["ledger"], none["running_bytes"])


def test_a_cache_of_fewer_bits_changes_no_layer(found) -> None:
    assert found["fp8 cache"]["kernels"] == found["none bfloat16"]["kernels"]
    assert "fp8" in found["fp8 cache"]["cache"]


@pytest.mark.parametrize("case", ["none bfloat16", "none float32", *CHECKPOINTS, "fp8_per_channel"])
def test_the_ledger_counts_every_parameter_of_the_checkpoint_once(found, tiny_llama: Path, case: str) -> None:
    """Beside the unquantized checkpoint's header: names, elements, which are quantized, and bits of each weight."""
    if "refused" in found[case]:
        pytest.skip(found[case]["refused"])
    shapes = headers.read_directory(tiny_llama).shapes
    entries = ledger(found, case)
    assert {name: entry.parameters for name, entry in entries.items()} == {
        name: math.prod(each) for name, each in shapes.items()
    }
    linears = {name for name, shape in shapes.items() if in_decoder(name, len(shape))}
    assert {name for name, each in entries.items() if each.quantized} == (set() if case.startswith("none") else linears)
    roles = Counter(entry.role for entry in entries.values())
    assert roles == {"linear": LAYERS, "embedding": 1, "head": 1, "other": 5}
    dense = 4 if case == "none float32" else 2
    for name, entry in entries.items():
        bits = 8 if case in ("W8A8", "W4A8", "FP8", "fp8_per_channel") else 4
        expected = entry.parameters * bits // 8 if entry.quantized else entry.parameters * dense
        assert entry.value_bytes == expected, name
        assert 0 < entry.scale_bytes < entry.value_bytes / 2 if entry.quantized else entry.scale_bytes == 0, name
        assert not entry.tied


@pytest.mark.parametrize("case", ["tied", "tied and stored"])
def test_a_tied_head_is_counted_as_in_transformers(found, processor, tied_llamas: dict[str, Path], case: str) -> None:
    """It takes no bytes of its own, and a step multiplies with it as with any other matrix."""
    entries, read = ledger(found, case), transformers.load(LoadRequest(tied_llamas[case], "bfloat16", "cpu"))
    assert entries == {each.name: each for each in read.weight_ledger() if not each.name.endswith("inv_freq")}
    assert entries[HEAD].tied
    assert (entries[HEAD].role, entries[HEAD].value_bytes) == ("head", 0)
    embedding = entries["model.embed_tokens.weight"]
    assert entries[HEAD].parameters == embedding.parameters == embedding.value_bytes // 2
    dtypes = {name: each for name, (_, each) in found[case]["arithmetic"].items()}
    assert dtypes["lm_head"] == ("bfloat16" if native(processor, "bfloat16") else "float32")
    running = Running([*entries.values()], read.vocabulary, found[case]["running_bytes"])
    products = {name: Product("dense", each) for name, each in dtypes.items()}
    step = decode_step(running, products, batch=3, prompt=8, new=4)
    multiplied = sum(each.parameters for each in entries.values() if each.role in ("linear", "head"))
    assert step.operations == {dtypes["lm_head"]: 2 * 3 * multiplied}
    assert step.read_bytes == sum(each.value_bytes for each in entries.values())


def test_running_bytes_are_those_in_memory(found, tiny_llama: Path) -> None:
    """All stored bytes, the embedding's second copy in a kernel's layout, and the rotary embedding's table."""
    for case, size in (("none bfloat16", 2), ("none float32", 4)):
        entries = ledger(found, case).values()
        stored = sum(entry.value_bytes + entry.scale_bytes for entry in entries)
        extra = found[case]["running_bytes"] - stored
        copies = [entry.parameters * size for entry in entries if entry.role in ("embedding", "head")]
        table = 1024 * 64 * size
        assert extra >= sum(copies) + table
        assert extra < sum(copies) + 3 * table
    assert found["GPTQ"]["running_bytes"] < found["W8A8"]["running_bytes"] < found["none bfloat16"]["running_bytes"]


def test_an_artifact_differs_from_the_model_that_was_saved_by_no_more_than_kernels_explain(found) -> None:
    divergences = {case: found[case]["difference"]["kl"] for case in CHECKPOINTS if "refused" not in found[case]}
    assert len(divergences) >= 6
    assert max(divergences.values()) < OTHER_ENGINE_KL / 3, divergences
