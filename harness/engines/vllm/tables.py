"""What vLLM refuses: its own tables, as plain Python, so that planning says so and not a run after minutes of work.

They are those of vLLM 0.32.0, which the stack for CPUs has, named where they stand, and each was tried there. Only what
is certain is refused: for GPUs the stack has another version, so what it reads there is left to loading, which gives
vLLM's own reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from harness.core.engine import PlannedLoad
from harness.core.format import Codes
from harness.core.identity import KvCache
from harness.core.model import Attention

if TYPE_CHECKING:
    from harness.engines.vllm.engine import VllmParams

HALF = ("bfloat16", "float16")
EVERY = (*HALF, "float32")
READ: Mapping[str, tuple[str, ...]] = {
    "auto-round": HALF,
    "awq": HALF,
    "compressed-tensors": EVERY,
    "fp8": HALF,
    "gptq": HALF,
    "modelopt": HALF,
    "mxfp4": ("bfloat16",),
    "online": HALF,
    "quark": HALF,
}
"""The quant_methods that vLLM reads of those that exist (``QUANTIZATION_METHODS`` in
model_executor/layers/quantization/__init__.py; torchao is not in the stack), and of each the dtypes of activations:
``get_supported_act_dtypes`` of its ``QuantizationConfig``."""
ONLINE_ON_CPU = ("fp8_per_channel", "fp8_per_block", "int8_per_channel_weight_only")
"""The schemes of ``_ONLINE_SHORTHANDS`` (config/quantization.py) that do not fail on a CPU; the last one leaves all but
experts as they are."""
AMX = "amx_tile"
"""What ``CPUFp8BlockScaledMMKernel.is_supported`` asks of the processor."""
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""``CPUAttentionBackend.get_supported_head_sizes`` (v1/attention/backends/cpu_attn.py)."""
GROUP_SIZES = (32, 64, 128)
"""Of GPTQ's codes: ``MARLIN_SUPPORTED_GROUP_SIZES`` (utils/marlin_utils.py), which vLLM verifies on a CPU too."""
TILE = 32
"""Inputs and outputs of ``CPUWNA16LinearKernel.can_implement`` (kernels/linear/mixed_precision/cpu.py)."""
FP8_BLOCK = 128
"""Columns of a block in ``CPUFp8BlockScaledMMKernel.can_implement`` (kernels/linear/scaled_mm/cpu.py)."""
CPU_CACHE_BYTES = 2**30
"""The key-value cache on a CPU unless ``kv_cache_memory`` says otherwise."""
CPU_CACHE_BLOCK = 128
"""Tokens of a cache block on a CPU: ``CpuPlatform.check_and_update_config``."""
ELEMENT_BYTES = {"float32": 4}
FUSED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}
"""Matrices that vLLM's models multiply as one: ``packed_modules_mapping``."""
LAST = ("v_proj", "up_proj")
"""The last part of each."""


def refuses(planned: PlannedLoad, params: VllmParams) -> str | None:
    """Why vLLM cannot load this here, in one sentence with what to do; None if it may."""
    reason = _parallel(planned, params) or _cache(planned, params)
    if reason or planned.machine.device != "cpu":
        return reason
    codes = planned.codes
    return _head(planned) or (None if codes is None else _method(planned, codes) or _on_cpu(planned, codes))


def _parallel(planned: PlannedLoad, params: VllmParams) -> str | None:
    """``ModelConfig.verify_with_parallel_config``; a GPU per part."""
    parts, machine = params.tensor_parallel, planned.machine
    if parts == 1:
        return None
    if machine.device == "cpu":
        return f"tensor_parallel {parts} needs as many GPUs, and this sweep runs on a CPU; leave it out"
    if parts > machine.gpus_per_run:
        return f"tensor_parallel {parts} needs as many GPUs, and {machine.gpus_per_run} may be used here; lower it"
    if planned.attention and planned.attention.heads % parts:
        return (
            f"tensor_parallel {parts} does not divide the {planned.attention.heads} attention heads; choose a divisor"
        )
    return None


def _head(planned: PlannedLoad) -> str | None:
    size = planned.attention.head_dim if planned.attention else None
    if size is None or size in HEAD_SIZES:
        return None
    known = ", ".join(map(str, HEAD_SIZES))
    return f"vLLM has no attention kernel for heads of {size} numbers on a CPU, only of {known}; use another engine"


def _cache(planned: PlannedLoad, params: VllmParams) -> str | None:
    """``check_enough_kv_cache_memory`` (v1/core/kv_cache_utils.py), and what a run's largest batch needs.

    vLLM must be able to keep one text of max_model_len, which is longer than the run's texts by the sampled token.
    """
    length, machine = params.max_model_len, planned.machine
    if length is not None and planned.tokens >= length:
        return (
            f"this run's texts have {planned.tokens} tokens, one more is sampled after them, and max_model_len is "
            f"{length}; raise it"
        )
    if planned.batch > params.max_num_seqs:
        return f"this run decodes batches of {planned.batch}, and max_num_seqs is {params.max_num_seqs}; raise it"
    size = pool_bytes(params, machine.device)
    if size is None:
        return None
    if machine.memory_bytes and size > machine.memory_bytes:
        return f"kv_cache_memory {_gib(size)} is more than this machine's {_gib(machine.memory_bytes)}; lower it"
    one = f"a max_model_len of {length}" if length else f"a text of {planned.tokens} tokens"
    for rows, tokens, what in (
        (planned.batch, planned.tokens, f"a batch of {planned.batch} × {planned.tokens} tokens"),
        (1, length or (planned.tokens and planned.tokens + 1), one),
    ):
        if planned.attention is None or rows * tokens == 0:
            continue
        needed = cache_bytes(planned.attention, rows, tokens, planned)
        if needed > size * params.tensor_parallel:
            return f"{what} needs {_gib(needed)} of key-value cache, and it has {_gib(size)}; raise kv_cache_memory"
    return None


def pool_bytes(params: VllmParams, device: str) -> int | None:
    """The bytes that each worker allocates for keys and values; None where vLLM decides by what a GPU has left."""
    return params.kv_cache_memory or (CPU_CACHE_BYTES if device == "cpu" else None)


def element_bytes(kv_cache: KvCache, dtype: str) -> int:
    """Bytes of a number in the key-value cache of a model of this dtype."""
    return 1 if kv_cache != "model" else ELEMENT_BYTES.get(dtype, 2)


def cache_bytes(attention: Attention, texts: int, tokens: int, planned: PlannedLoad) -> int:
    """The least that the keys and values of that many texts take, in whole blocks, and the block that vLLM keeps.

    Layers with a window keep no more than it. A block holds the layers of a group, which are no fewer than those that
    have the rarest window.
    """
    block = CPU_CACHE_BLOCK if planned.machine.device == "cpu" else 1
    element = element_bytes(planned.kv_cache, planned.dtype)
    kept = [layer for layer in attention.layers if layer.token]
    taken = sum(layer.token * math.ceil(min(tokens, layer.window or tokens) / block) for layer in kept)
    rarest = min(Counter(layer.window for layer in kept).values(), default=0)
    return (texts * taken + rarest * min((layer.token for layer in kept), default=0)) * block * element


def _method(planned: PlannedLoad, codes: Codes) -> str | None:
    """What vLLM's configuration classes refuse of a quantization method."""
    name, _ = _named(codes)
    if name not in READ:
        return f"vLLM reads no {name} checkpoint; measure it on an engine that does"
    dtypes = READ[name]
    if planned.dtype in EVERY and planned.dtype not in dtypes:
        what = "quantizes online" if name == "online" else f"runs {name} checkpoints"
        return f"vLLM {what} in {' or '.join(dtypes)}, not in {planned.dtype}; choose one of these as the model's dtype"
    reason = OWN[name](codes) if name in OWN else None
    return reason or (_blocks(planned.matrices, codes) if name != "online" else None)


def _named(codes: Codes) -> tuple[str, str]:
    """The quant_method, and the scheme of vLLM's own quantization while loading."""
    name, _, scheme = codes.quant_method.partition(" ")
    return name, scheme


def _blocks(matrices: Mapping[str, tuple[int, ...]], codes: Codes) -> str | None:
    """``validate_fp8_block_shape`` (utils/fp8_utils.py): a fused matrix must not cut a block of its parts.

    Blocks are squares, and only those of ``FP8_BLOCK`` have a kernel.
    """
    if codes.group != "block" or codes.group_size is None:
        return None
    for name, shape in matrices.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module in FUSED and module not in LAST and shape[-2] % codes.group_size:
            return (
                f"vLLM fuses {module} with others, and blocks of {codes.group_size} do not divide its {shape[-2]} "
                "rows; use another method, or another engine"
            )
    return None


def _auto_round(codes: Codes) -> str | None:
    """``INCConfig.SUPPORTED_FORMATS`` and ``_validate_fp8_block_quantization`` (quantization/inc/inc.py)."""
    if codes.asymmetric:
        return "vLLM reads auto-round's integers only in GPTQ's layout, without zero points; set symmetric: true"
    if codes.number == "float" and codes.group in ("tensor", "channel"):
        return "vLLM reads auto-round's float8 only with a scale per block, not per output channel; use llmc-fp8"
    return None


def _awq(codes: Codes) -> str | None:
    """``AutoAWQConfig.TYPE_MAP`` (quantization/auto_awq.py)."""
    return None if codes.bits in (4, None) else f"vLLM reads AWQ codes of 4 bits, not of {codes.bits}; use bits: 4"


def _gptq(codes: Codes) -> str | None:
    """``AutoGPTQConfig.TYPE_MAP`` and ``normalize_and_validate_gptq_desc_act`` (quantization/auto_gptq.py)."""
    if codes.bits not in (4, 8, None):
        return f"vLLM reads GPTQ codes of 4 or 8 bits, not of {codes.bits}; use one of these"
    if codes.asymmetric:
        return "vLLM reads only symmetric GPTQ codes; set symmetric: true, or use llmc-gptq"
    if codes.scattered and codes.group != "channel":
        return "vLLM reads no GPTQ codes in order of activations; set desc_act: false, or use llmc-gptq"
    return None


def _modelopt(codes: Codes) -> str | None:
    """``LINEAR_ALGOS`` (quantization/modelopt.py)."""
    return "vLLM reads only modelopt's float formats; use format: fp8, or llmc-int8" if codes.number == "int" else None


def _compressed_tensors(codes: Codes) -> str | None:
    """``CompressedTensorsConfig._quantization_scheme_map_from_config`` (compressed_tensors/compressed_tensors.py)."""
    ordered = "vLLM reads no compressed-tensors codes whose groups are in order of activations; use actorder static"
    return ordered if codes.scattered else None


OWN: Mapping[str, Callable[[Codes], str | None]] = {
    "auto-round": _auto_round,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
    "modelopt": _modelopt,
}
"""What the configuration classes of single methods refuse, whatever the device."""


def _on_cpu(planned: PlannedLoad, codes: Codes) -> str | None:
    """What vLLM has no kernel for on a CPU; None if only the checkpoint's method is known."""
    name, scheme = _named(codes)
    if name == "online" and scheme not in ONLINE_ON_CPU:
        return _none_for(scheme, " or ".join(ONLINE_ON_CPU))
    if name == "online" and codes.number == "int":
        return None
    if codes.number == "float":
        return _float8(planned, codes) if codes.bits == 8 else _none_for("4-bit floats", "llmc-fp8 or 4-bit integers")
    if codes.number == "int":
        return _integers(planned, codes)
    return None


def _float8(planned: PlannedLoad, codes: Codes) -> str | None:
    """``_POSSIBLE_FP8_KERNELS`` and the like (kernels/linear/__init__.py). Of a scale per tensor the CPU build lacks
    the operation that rounds (``static_scaled_fp8_quant``)."""
    if codes.activations is None:
        return _none_for("float8 weights with unquantized activations", "scheme: dynamic")
    if codes.group == "group":
        return _none_for("MXFP8", "llmc-fp8")
    if codes.activations.group == "tensor":
        return _none_for("float8 with one scale for a whole input", "a scale per token")
    if codes.group != "block":
        return None
    if codes.group_size != FP8_BLOCK:
        return _none_for(f"float8 in blocks of {codes.group_size}", f"blocks of {FP8_BLOCK}")
    if planned.dtype == "float16":
        return _none_for("float8 blocks in float16", "bfloat16")
    known = planned.machine.instructions
    return _none_for("float8 blocks without AMX", "llmc-fp8's scheme: dynamic") if known and AMX not in known else None


def _integers(planned: PlannedLoad, codes: Codes) -> str | None:
    """``CPUWNA16LinearKernel``, which takes no float32, and ``CPUInt8ScaledMMLinearKernel``, which takes it without AMX
    (``check_cpu_sgl_kernel``)."""
    if codes.activations is not None:
        fails = codes.bits == 8 and planned.dtype == "float32" and AMX in planned.machine.instructions
        return _none_for("8-bit integers in float32 with AMX", "a model in bfloat16") if fails else None
    if codes.bits != 4:
        return _none_for(f"{codes.bits}-bit integers with unquantized activations", "bits: 4")
    if planned.dtype == "float32":
        return _none_for("4-bit integers in float32", "a model in bfloat16")
    if codes.quant_method == "gptq" and codes.group == "group" and codes.group_size not in GROUP_SIZES:
        return _none_for(f"GPTQ groups of {codes.group_size}", f"group_size {', '.join(map(str, GROUP_SIZES))}")
    return _tiles(planned.matrices)


def _tiles(matrices: Mapping[str, tuple[int, ...]]) -> str | None:
    """Widths that tiles do not divide, of matrices that are fused as vLLM's models fuse them."""
    outputs: Counter[str] = Counter()
    for name, shape in matrices.items():
        if len(shape) != 2:
            continue
        if shape[1] % TILE:
            return _none_for(f"4-bit integers of {shape[1]} inputs", f"widths that {TILE} divides")
        layer, _, module = name.removesuffix(".weight").rpartition(".")
        outputs[f"{layer}.{FUSED.get(module, module)}"] += shape[0]
    uneven = next((width for width in outputs.values() if width % TILE), None)
    return _none_for(f"4-bit integers of {uneven} outputs", f"widths that {TILE} divides") if uneven else None


def _none_for(what: str, instead: str) -> str:
    return f"vLLM has no CPU kernel for {what}; use {instead}, or another engine"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
