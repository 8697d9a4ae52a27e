"""What vLLM refuses while planning: every cell of the table that was tried on CPUs, and what a run needs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import plugins as registry
from harness.core.engine import LoadRequest, PlannedLoad
from harness.core.format import Activations, Codes
from harness.core.method import Setting
from harness.core.model import Attention, LayerCache
from harness.core.site import Machine
from harness.engines.vllm.engine import VLLM, VllmParams, text_tokens
from harness.engines.vllm.runtime import EngineLimits
from harness.engines.vllm.tables import HEAD_SIZES

GIB = 2**30
CPU = Machine("cpu", "a processor", memory_bytes=16 * GIB)
AMX = replace(CPU, instructions=frozenset({"avx512f", "amx_tile"}))
PLAIN = replace(CPU, instructions=frozenset({"avx2"}))
H100 = Machine("cuda", "an imagined H100", (9, 0), memory_bytes=80 * GIB)
SMOLLM2 = Attention((LayerCache(2 * 3 * 64),) * 30, heads=9, kv_heads=3, head_dim=64)
MATRICES = {
    "model.layers.0.self_attn.q_proj.weight": (512, 512),
    "model.layers.0.self_attn.k_proj.weight": (128, 512),
    "model.layers.0.self_attn.v_proj.weight": (64, 512),
    "model.layers.0.mlp.down_proj.weight": (512, 1536),
}
HALF = ("bfloat16", "float16")
EVERY = (*HALF, "float32")
READ: list[tuple[str, dict[str, Any], tuple[str, ...], Machine]] = [
    ("none", {}, EVERY, PLAIN),
    ("llmc-int8", {}, EVERY, PLAIN),
    ("llmc-int8", {}, HALF, AMX),
    ("llmc-int8", {"activations": "static"}, EVERY, PLAIN),
    ("llmc-w4a8", {"group_size": 64}, EVERY, AMX),
    ("llmc-rtn", {}, HALF, PLAIN),
    ("llmc-gptq", {"act_order": True}, HALF, PLAIN),
    ("llmc-gptq", {"group_size": "channel"}, HALF, PLAIN),
    ("llmc-awq", {}, HALF, PLAIN),
    ("llmc-awq", {"symmetric": True}, HALF, PLAIN),
    ("llmc-fp8", {}, EVERY, PLAIN),
    ("llmc-fp8", {"scheme": "block"}, ("bfloat16", "float32"), AMX),
    ("gptq", {}, HALF, PLAIN),
    ("gptq", {"group_size": "channel", "desc_act": True}, HALF, PLAIN),
    ("awq", {}, HALF, PLAIN),
    ("autoawq", {}, HALF, PLAIN),
    ("autogptq", {}, HALF, PLAIN),
    ("autoround", {}, HALF, PLAIN),
    ("vllm-online", {"scheme": "fp8_per_channel"}, HALF, PLAIN),
    ("vllm-online", {"scheme": "fp8_per_block"}, ("bfloat16",), AMX),
    ("vllm-online", {"scheme": "int8_per_channel_weight_only"}, HALF, PLAIN),
    ("qlora", {"result": "merged"}, EVERY, PLAIN),
]
"""What vLLM reads on a CPU, in which dtypes, and on which processor."""
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llmc-rtn", {"bits": 8}, "8-bit integers with unquantized activations"),
    ("llmc-awq", {"bits": 3}, "3-bit integers with unquantized activations"),
    ("llmc-fp8", {"scheme": "static"}, "one scale for a whole input"),
    ("llmc-fp8", {"scheme": "weight_only"}, "float8 weights with unquantized activations"),
    ("llmc-fp8", {"scheme": "block", "block_size": 64}, "blocks of 64"),
    ("llmc-nvfp4", {}, "4-bit floats"),
    ("llmc-nvfp4", {"activations": False}, "4-bit floats"),
    ("llmc-mxfp4", {}, "4-bit floats"),
    ("llmc-mxfp8", {}, "MXFP8"),
    ("gptq", {"bits": 8}, "8-bit integers"),
    ("gptq", {"bits": 3}, "GPTQ codes of 4 or 8 bits, not of 3"),
    ("gptq", {"symmetric": False}, "only symmetric GPTQ codes"),
    ("gptq", {"desc_act": True}, "set desc_act: false"),
    ("gptq", {"group_size": 256}, "GPTQ groups of 256"),
    ("autoround", {"symmetric": False}, "without zero points; set symmetric: true"),
    ("autoround", {"bits": 2}, "2-bit integers"),
    ("autoround-fp8", {}, "auto-round's float8 only with a scale per block"),
    ("modelopt", {}, "one scale for a whole input"),
    ("modelopt", {"format": "int8_smoothquant"}, "only modelopt's float formats"),
    ("quark", {"scheme": "fp8"}, "one scale for a whole input"),
    ("vllm-online", {"scheme": "fp8_per_tensor"}, "fp8_per_tensor; use fp8_per_channel"),
    ("vllm-online", {"scheme": "mxfp8"}, "no CPU kernel for mxfp8"),
    ("vllm-online", {"scheme": "nvfp4_per_token"}, "no CPU kernel for nvfp4_per_token"),
    *((name, {}, f"reads no {name} checkpoint") for name in ("rtn", "hqq", "quanto", "inc-rtn", "gptqmodel-gguf")),
    ("qat", {}, "reads no torchao checkpoint"),
    ("qlora", {}, "reads no bitsandbytes checkpoint"),
]
"""What vLLM does not read on any CPU in bfloat16, and a part of the reason."""


def planned(name: str, params: dict[str, Any], dtype: str = "bfloat16", machine: Machine = AMX) -> PlannedLoad:
    method = registry.method(name)
    codes = method.stored(method.params(**params))
    return PlannedLoad(machine, dtype, codes, "model", SMOLLM2, MATRICES, tokens=512)


def refused(load: PlannedLoad, **params: Any) -> str | None:
    return VLLM.refuses(load, VllmParams(**params))


def is_one_sentence(reason: str) -> bool:
    return "\n" not in reason and len(reason) < 200 and not reason.endswith(".") and ("; " in reason)


@pytest.mark.parametrize(("name", "params", "dtypes", "machine"), READ)
@pytest.mark.parametrize("dtype", EVERY)
def test_what_it_reads_on_a_cpu(
    name: str, params: dict[str, Any], dtypes: tuple[str, ...], machine: Machine, dtype: str
) -> None:
    reason = refused(planned(name, params, dtype, machine))
    assert (reason is None) == (dtype in dtypes), reason
    if reason is not None:
        assert is_one_sentence(reason)
        assert dtype in reason


@pytest.mark.parametrize(("name", "params", "part"), REFUSED)
def test_what_it_refuses_on_a_cpu_whatever_the_processor(name: str, params: dict[str, Any], part: str) -> None:
    for machine in (CPU, PLAIN, AMX):
        reason = refused(planned(name, params, "bfloat16", machine))
        assert reason is not None
        assert part in reason
        assert is_one_sentence(reason)


def test_float8_blocks_need_amx_where_the_processor_is_known() -> None:
    for name, params in (("llmc-fp8", {"scheme": "block"}), ("vllm-online", {"scheme": "fp8_per_block"})):
        assert "AMX" in str(refused(planned(name, params, machine=PLAIN)))
        assert refused(planned(name, params, machine=CPU)) is None, "an unknown processor is left to loading"


def test_every_method_is_read_or_refused_by_name() -> None:
    """A method whose checkpoint vLLM is said to read declares its codes; the default is a name that vLLM lacks."""
    read = {name for name, *_ in READ}
    for name in registry.method_names():
        method = registry.method(name)
        if method.stage == "offline" and method.codes is None and method.stores_codes(method.params()):
            assert name not in read
            assert "reads no" in str(refused(planned(name, {})))


@pytest.mark.parametrize("name", [name for name, *_ in READ])
def test_a_gpu_reads_what_a_cpu_does(name: str) -> None:
    params = next(params for each, params, *_ in READ if each == name)
    assert refused(planned(name, params, machine=H100)) is None


@pytest.mark.parametrize(("name", "params", "part"), REFUSED)
def test_what_a_gpu_reads_is_left_to_loading(name: str, params: dict[str, Any], part: str) -> None:
    """The tables are those of the version that the stack for CPUs has, and GPUs get another."""
    for machine in (H100, Machine("cuda", "an imagined P100", (6, 0))):
        for dtype in EVERY:
            assert refused(planned(name, params, dtype, machine)) is None, part


def test_widths_that_tiles_do_not_divide() -> None:
    rows = {"model.layers.0.self_attn.q_proj.weight": (40, 64), "model.layers.0.self_attn.k_proj.weight": (12, 64)}
    fused = {**rows, "model.layers.0.self_attn.v_proj.weight": (12, 64)}  # 40 + 12 + 12 = 64 as vLLM fuses them
    load = planned("llmc-rtn", {})
    assert refused(replace(load, matrices=fused)) is None
    assert "52 outputs" in str(refused(replace(load, matrices=rows)))
    assert "48 inputs" in str(refused(replace(load, matrices={"model.layers.0.mlp.down_proj.weight": (64, 48)})))
    assert refused(replace(planned("llmc-fp8", {}), matrices=rows)) is None, "float8 has no tiles"


def test_blocks_that_fused_matrices_would_cut() -> None:
    load = planned("llmc-fp8", {"scheme": "block"})
    smollm2 = {**MATRICES, "model.layers.0.self_attn.k_proj.weight": (192, 576)}
    reason = str(refused(replace(load, matrices=smollm2)))
    assert "do not divide its 192 rows; use another method" in reason
    assert "block_size" not in reason, "no other size has a kernel"
    wide = {**MATRICES, "model.layers.0.self_attn.k_proj.weight": (256, 576)}
    assert refused(replace(load, matrices=wide)) is None, "rows are divided, not columns"
    online = planned("vllm-online", {"scheme": "fp8_per_block"})
    assert refused(replace(online, matrices=smollm2)) is None, "quantized after they are fused"


@given(size=st.integers(1, 600))
def test_heads_without_a_kernel(size: int) -> None:
    load = replace(planned("none", {}), attention=replace(SMOLLM2, head_dim=size), tokens=0)
    reason = refused(load)
    assert (reason is None) == (size in (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512))
    assert refused(replace(load, machine=H100)) is None, "a GPU has several backends"
    if reason:
        assert f"heads of {size} numbers" in reason
        assert is_one_sentence(reason)


@given(
    layers=st.integers(1, 80),
    kv_heads=st.integers(1, 16),
    head=st.sampled_from(HEAD_SIZES),
    tokens=st.integers(1, 200_000),
    gib=st.integers(1, 8),
    dtype=st.sampled_from(EVERY),
    kv_cache=st.sampled_from(["model", "fp8"]),
)
def test_a_text_longer_than_the_cache(
    layers: int, kv_heads: int, head: int, tokens: int, gib: int, dtype: str, kv_cache: Any
) -> None:
    attention = Attention((LayerCache(2 * kv_heads * head),) * layers, kv_heads, kv_heads, head)
    load = PlannedLoad(CPU, dtype, None, kv_cache, attention, {}, tokens)
    element = 1 if kv_cache == "fp8" else {"float32": 4}.get(dtype, 2)
    blocks = math.ceil((tokens + 1) / 128) + 1  # one token is sampled, one block is vLLM's own
    needed = blocks * 128 * layers * 2 * kv_heads * head * element
    reason = refused(load, kv_cache_memory=gib * GIB)
    assert (reason is not None) == (needed > gib * GIB)
    assert (refused(load) is not None) == (needed > GIB), "vLLM takes 1 GiB on a CPU unless a recipe says otherwise"
    if reason:
        assert f"{tokens} tokens needs" in reason
        assert is_one_sentence(reason)


@given(texts=st.integers(1, 200), tokens=st.integers(1, 3000), most=st.integers(1, 128))
def test_a_batch_larger_than_the_cache_or_than_what_is_computed_together(texts: int, tokens: int, most: int) -> None:
    """Decoding steps are timed with all of a batch in them: none may wait for another."""
    load = PlannedLoad(CPU, "bfloat16", None, "model", SMOLLM2, {}, tokens, texts)
    needed = (texts * math.ceil(tokens / 128) + 1) * 128 * 30 * 2 * 3 * 64 * 2
    reason = refused(load, max_num_seqs=most)
    assert (reason is not None) == (texts > most or needed > GIB)
    if texts > most:
        assert reason == f"this run decodes batches of {texts}, and max_num_seqs is {most}; raise it"
    elif texts > 1 and reason:
        assert f"a batch of {texts} × {tokens} tokens needs" in reason


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    long = PlannedLoad(
        CPU, "bfloat16", None, "model", Attention((LayerCache(2 * 3 * 64, 512),) * 30, 9, 3, 64), {}, 100_000
    )
    assert refused(long) is None
    assert refused(replace(long, attention=SMOLLM2)) is not None


def test_planning_and_the_loaded_engine_agree_on_the_smallest_cache() -> None:
    """vLLM makes whole blocks of the memory that it gets, and keeps one of them."""
    block = 128 * 30 * 2 * 3 * 64 * 2
    for texts, tokens in ((1, 127), (1, 128), (3, 128), (3, 129), (8, 512)):
        load = PlannedLoad(CPU, "bfloat16", None, "model", SMOLLM2, {}, tokens, texts)
        least = next(count for count in range(1, 99) if refused(load, kv_cache_memory=count * block) is None)
        limits = [
            EngineLimits(tokens + 1, 64, 4096, count, 128, count * block, 1, None) for count in (least, least - 1)
        ]  # type: ignore[arg-type]
        assert limits[0].refusal(texts, tokens) is None
        if texts > 1:  # else the token that is sampled needs a block
            assert "take" in str(limits[1].refusal(texts, tokens))


@pytest.mark.parametrize(("context", "cached"), [(127, 2), (128, 3), (255, 3)])
def test_the_length_that_vllm_gets_fits_the_cache(tmp_path: Path, context: int, cached: int) -> None:
    config = {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_position_embeddings": context}), encoding="utf-8")
    request, size = LoadRequest(tmp_path, "bfloat16", "cpu"), cached * 128 * 30 * 2 * 3 * 64 * 2
    load = PlannedLoad(CPU, "bfloat16", None, "model", SMOLLM2, {}, context)
    for memory, fits in ((size, True), (size - 1, False)):
        assert text_tokens(request, memory) == (context + 1 if fits else -1)
        assert (refused(load, kv_cache_memory=memory) is None) == fits


def test_lengths_memory_and_parts_that_do_not_fit() -> None:
    load = planned("none", {})
    assert "max_model_len is 256; raise it" in str(refused(load, max_model_len=256))
    assert "one more is sampled after them" in str(refused(load, max_model_len=512))
    assert refused(load, max_model_len=513) is None
    assert "a max_model_len of 100000 needs" in str(refused(load, max_model_len=100_000))
    assert "more than this machine's 16.0 GiB" in str(refused(load, kv_cache_memory=32 * GIB))
    assert refused(replace(load, machine=replace(CPU, memory_bytes=0)), kv_cache_memory=32 * GIB) is None
    assert "sweep runs on a CPU" in str(refused(load, tensor_parallel=2))
    pair = replace(H100, uuids=("GPU-a", "GPU-b"))
    assert "needs as many GPUs, and 1 may be used here" in str(refused(replace(load, machine=H100), tensor_parallel=3))
    assert "does not divide the 9 attention heads" in str(refused(replace(load, machine=pair), tensor_parallel=2))
    assert refused(replace(load, machine=replace(H100, uuids=("GPU-a", "GPU-b", "GPU-c"))), tensor_parallel=3) is None


def test_what_is_not_known_is_left_to_loading() -> None:
    unknown = PlannedLoad(CPU, "auto", Codes("compressed-tensors"))
    assert refused(unknown) is None
    w4a8 = Codes("compressed-tensors", "int", 4, "group", 32, activations=Activations("int", 8, "token"))
    assert refused(replace(unknown, dtype="bfloat16", codes=w4a8)) is None


def test_online_quantization_is_configured_by_arguments_of_vllm() -> None:
    method = registry.method("vllm-online")
    assert method.load_config is not None
    made = method.load_config(method.params(scheme="fp8_per_channel"), Setting("bfloat16", "cpu", ("lm_head",)))
    assert made == {"quantization": "fp8_per_channel", "quantization_config": {"ignore": ["lm_head"]}}
    assert method.output_format in VLLM.reads
    assert [
        registry.engine(name).name
        for name in ("transformers", "llamacpp")
        if method.output_format in registry.engine(name).reads
    ] == []


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("fp8_per_tensor", 8.0),
        ("fp8_per_channel", 8 + 32 / 576),
        ("fp8_per_block", 8 + 32 / 128**2),
        ("mxfp8", 8.25),
        ("mxfp4", 4.25),
        ("nvfp4_per_token", 4.5),
    ],
)
def test_bits_of_an_online_weight(scheme: str, bits: float) -> None:
    method = registry.method("vllm-online")
    assert method.bits_per_weight(method.params(scheme=scheme), 16, 576) == bits
