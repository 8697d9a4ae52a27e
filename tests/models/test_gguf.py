"""GGUF files written here, read back by other programs' readers; and files that must be refused."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from harness.core.engine import LoadRequest
from harness.core.model import ModelRef
from harness.engines.llamacpp.engine import LLAMACPP
from harness.errors import SourceError, UnsupportedError
from harness.models.gguf.architectures import ARCHITECTURES, context_length, rope_factors
from harness.models.gguf.convert import convert
from harness.models.gguf.header import read_header
from harness.models.gguf.layout import CODE_BITS, ledger, read
from harness.models.gguf.reader import read as header
from harness.models.gguf.tokenizer import file_tokenizer
from harness.models.headers import GGUF_FILE
from harness.models.prepare import prepare
from harness.numerics.traffic import Routing, Running, decode_step

pytestmark = pytest.mark.heavy

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
}
OTHERS = {"gemma2": GEMMA, "gemma3_text": GEMMA, "mistral": {"sliding_window": None}, **MIXTURES}

CONFIGURED = ("llama", "mistral", "qwen2")
"""Whose configuration transformers reads whole; of the others it leaves out the width of a head, or the windows."""


def saved(folder: Path, kind: str, **changes: Any) -> Any:
    """A model of random weights and norms, and its checkpoint in the folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **OTHERS.get(kind, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0.5 if name.endswith("norm.weight") else 0.0, 0.2)
    model.save_pretrained(folder)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(2, 26)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in ("gemma", "mixtral")])
def test_transformers_reads_the_same_model_from_the_file(tmp_path: Path, kind: str) -> None:
    """Its reader was written by others: it undoes the places of rows and the shift of norms by code of its own."""
    model = saved(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "model.gguf", "float32")
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="model.gguf",
        quantization_config=GgufConfig(gguf_file="model.gguf", dequantize=True),
        dtype=torch.float32,
        **({} if kind in CONFIGURED else {"config": model.config}),
    ).eval()
    assert torch.allclose(logits(again), logits(model), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_the_experts_of_a_layer_are_in_one_tensor_and_the_router_is_in_float32(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    model = saved(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "model.gguf", dtype)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    held = {tensor.name: tensor for tensor in reader.tensors}
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    stacks = {}
    for layer in range(2):
        stacks[f"blk.{layer}.ffn_down_exps.weight"] = weights[f"model.layers.{layer}.mlp.experts.down_proj"]
        gate, up = weights[f"model.layers.{layer}.mlp.experts.gate_up_proj"].chunk(2, dim=1)
        stacks |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
        router = weights[f"model.layers.{layer}.mlp.gate.weight"]
        assert np.array_equal(held[f"blk.{layer}.ffn_gate_inp.weight"].data, router.numpy())
    assert len(held) == 3 + 2 * (4 + 2 + 1 + 3 + (2 if kind == "qwen3_moe" else 0)), "and none is left out"
    for name, weight in stacks.items():
        assert np.array_equal(held[name].data, weight.to(getattr(torch, dtype)).numpy())
    name = {"mixtral": "llama", "qwen3_moe": "qwen3moe"}[kind]
    sizes = {"expert_count": 4, "expert_used_count": 2, "feed_forward_length": 64}
    if kind == "qwen3_moe":
        sizes["expert_feed_forward_length"] = 48
    assert {key: reader.get_field(f"{name}.{key}").contents() for key in sizes} == sizes


@pytest.mark.parametrize("kind", sorted(MIXTURES))
def test_what_a_file_stores_of_experts_has_the_names_that_tell_them_from_other_layers(
    tmp_path: Path, kind: str
) -> None:
    """By these names the bytes that a token reads are counted, and what a recipe skips is found."""
    saved(tmp_path / "model", kind)
    convert(tmp_path / "model", tmp_path / "model.gguf", "float32")
    entries = ledger(read(tmp_path / "model.gguf"))
    experts = {entry.name for entry in entries if ".experts." in entry.name}
    assert experts == {
        f"model.layers.{layer}.mlp.experts.{part}_proj.weight" for layer in range(2) for part in ("gate", "up", "down")
    }
    assert all(entry.role == "linear" for entry in entries if entry.name in experts)
    routers = {entry.name: entry.role for entry in entries if entry.name.endswith("mlp.gate.weight")}
    assert routers == {f"model.layers.{layer}.mlp.gate.weight": "other" for layer in range(2)}
    assert read_header(tmp_path / "model.gguf").model_type == kind
    some, every = (
        decode_step(Running(entries, 96, 2**40, Routing(4, active)), {}, batch=1, prompt=1, new=1).read_bytes
        for active in (2, 4)
    )
    assert every - some == sum(entry.value_bytes for entry in entries if entry.name in experts) / 2


def test_experts_that_are_missing_are_noticed(tmp_path: Path) -> None:
    saved(tmp_path / "model", "mixtral")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.block_sparse_moe.experts.2.w1.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    message = r"blk\.1\.ffn_gate_exps\.weight takes 4 experts of one shape; the checkpoint has 3"
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "model", tmp_path / "model.gguf", "float32")


def test_a_mixtrals_file_that_transformers_would_read_as_a_llama_is_unsupported(tmp_path: Path) -> None:
    saved(tmp_path / "model", "mixtral")
    convert(tmp_path / "model", tmp_path / "model.gguf", "float32")
    ref = ModelRef("m", "m", "c", "gguf", str(tmp_path / "model.gguf"), "float32")
    with pytest.raises(UnsupportedError, match="as a Llama without experts"):
        prepare(ref, tmp_path / "out")


def test_a_model_is_prepared_from_one_reading_of_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers by itself reads it twice, and maps the tensors' names for each module."""
    model = saved(tmp_path / "model", "llama")
    file = tmp_path / "model.gguf"
    convert(tmp_path / "model", file, "float32")
    made: list[str] = []

    def counted(name: str) -> Any:
        make = getattr(gguf, name)
        return lambda *of: made.append(name) or make(*of)

    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, counted(name))
    counting = gguf.GGUFReader
    prepare(ModelRef("m", "m", "c", "gguf", str(file), "float32"), tmp_path / "out")
    assert sorted(made) == ["GGUFReader", "get_tensor_name_map"]
    assert gguf.GGUFReader is counting
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_llama_cpp_computes_the_same_model(tmp_path: Path, kind: str) -> None:
    """But for its keys and values, which it keeps in float16. The text is longer than the windows that it has."""
    model = saved(tmp_path / "model", kind)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "model", tmp_path / "out" / GGUF_FILE, "float32")
    loaded = LLAMACPP.load(LoadRequest(tmp_path / "out", "float32", "cpu"), LLAMACPP.params())
    found, expected = loaded.logits(torch.arange(2, 26)[None]), logits(model)
    assert float((found - expected).abs().max() / expected.abs().max()) < 2e-3
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    if kind in MIXTURES:
        parts = ("gate_proj", "up_proj", "down_proj")
        linears |= {f"model.layers.{layer}.mlp.experts.{part}.weight" for layer in range(2) for part in parts}
    assert {entry.name for entry in loaded.weight_ledger() if entry.role == "linear"} == linears - {"lm_head.weight"}


def test_norms_of_gemma_are_shifted_and_nothing_else_is(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "gemma")
    convert(tmp_path / "model", tmp_path / "model.gguf", "float32")
    held = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    assert np.allclose(held["blk.1.attn_norm.weight"], weights["model.layers.1.input_layernorm.weight"] + 1)
    assert np.allclose(held["output_norm.weight"], weights["model.norm.weight"] + 1)
    assert np.array_equal(held["blk.1.attn_q.weight"], weights["model.layers.1.self_attn.q_proj.weight"])
    assert "output.weight" not in held, "the head is the embedding's own"


@pytest.mark.parametrize(("dtype", "type_name", "size"), [("float16", "F16", 2), ("bfloat16", "BF16", 2)])
def test_matrices_have_the_dtype_asked_for_and_vectors_float32(
    tmp_path: Path, tiny: Path, dtype: str, type_name: str, size: int
) -> None:
    convert(tiny, tmp_path / "tiny.gguf", dtype)
    tensors = read(tmp_path / "tiny.gguf").tensors
    assert {tensor.type for tensor in tensors if len(tensor.shape) == 2} == {type_name}
    assert {tensor.type for tensor in tensors if len(tensor.shape) == 1} == {"F32"}
    (embedding,) = (tensor for tensor in tensors if tensor.name == "token_embd.weight")
    assert embedding.bytes == 512 * 64 * size
    source = AutoModelForCausalLM.from_pretrained(tiny).get_input_embeddings().weight.to(getattr(torch, dtype))
    (raw,) = (t.data for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors if t.name == "token_embd.weight")
    assert raw.tobytes() == source.detach().view(torch.int16).numpy().tobytes()


def test_llama_3_scaling_is_that_of_transformers() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = AutoConfig.for_model("llama", **{**SIZES, "head_dim": 64, "rope_parameters": scaling})
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64)
    factors = rope_factors(config.to_dict())
    assert factors is not None
    assert torch.allclose(plain / torch.tensor(factors), expected, rtol=1e-5)


def test_a_window_that_llama_cpp_ignores_bounds_the_context() -> None:
    config = {**SIZES, "sliding_window": 16}
    assert context_length(config, ARCHITECTURES["mistral"]) == 16
    assert context_length({**config, "use_sliding_window": False}, ARCHITECTURES["qwen2"]) == 64
    assert context_length(config, ARCHITECTURES["gemma2"]) == 64, "there llama.cpp knows the window"


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gpt_neox", {"num_key_value_heads": None}, "no conversion of gpt_neox models is known"),
        ("gpt_oss", {"num_local_experts": 4}, "no conversion of gpt_oss models is known"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "some layers have no experts"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "some layers have no experts"),
        ("llama", {"hidden_act": "gelu"}, "have the activation silu, not gelu"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar 24; llama.cpp would take 8"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rotary scaling 'dynamic' of qwen2",
        ),
    ],
)
def test_what_llama_cpp_cannot_be_told_is_refused_and_nothing_is_left(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "model", kind, **changes)
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "model", tmp_path / "out" / "model.gguf", "float32")
    assert list((tmp_path / "out").iterdir()) == []


def test_weights_beyond_a_dtype_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "llama")
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedError, match=r"layers.0.mlp.up_proj.weight does not fit float16"):
        convert(tmp_path / "model", tmp_path / "out" / "model.gguf", "float16")
    assert list((tmp_path / "out").iterdir()) == []


TEXT = "The boats came back: 1234 fish, naïve — 東京! \n\n  two  spaces\tand a tab"


def test_the_tokenizer_in_the_file_is_the_checkpoints(tmp_path: Path, tiny: Path) -> None:
    convert(tiny, tmp_path / "tiny.gguf", "float32")
    own = AutoTokenizer.from_pretrained(tiny)
    told = file_tokenizer(tmp_path / "tiny.gguf")
    assert told.encode(TEXT, add_special_tokens=False) == own.encode(TEXT, add_special_tokens=False)
    assert told.encode(TEXT) == own.encode(TEXT), "BOS before it"
    assert own.encode(TEXT)[0] == own.bos_token_id
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "a"}', encoding="utf-8")
    assert file_tokenizer(tmp_path / "tiny.gguf").unk_token == told.unk_token, "what lies beside the file is not read"


def test_bytes_with_a_fallback_that_none_needs_are_no_sentencepiece(tmp_path: Path) -> None:
    """So transformers writes the tokenizer of a GGUF file that it read."""
    saved(tmp_path, "llama", vocab_size=270)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<unk>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "<unk>"}', encoding="utf-8")
    convert(tmp_path, tmp_path / "model.gguf", "float32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    told = {key: reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("model", "pre", "unknown_token_id")}
    assert told == {"model": "gpt2", "pre": "gpt-2", "unknown_token_id": 0}


def test_a_sentencepiece_vocabulary_keeps_its_types_and_the_order_of_its_merges(tmp_path: Path) -> None:
    saved(tmp_path, "llama", vocab_size=270)
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *bytes_, "▁", "a", "b", "ab", "▁ab"]
    model = models.BPE(
        {piece: index for index, piece in enumerate(pieces)},
        [("a", "b"), ("▁", "ab")],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    convert(tmp_path, tmp_path / "model.gguf", "float32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    told = {key: reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("model", "tokens", "scores")}
    types = reader.get_field("tokenizer.ggml.token_type").contents()
    assert told["model"] == "llama"
    assert told["tokens"][:264] == pieces
    assert told["tokens"][264:] == [f"[PAD{index}]" for index in range(264, 270)]
    assert types[:3] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    assert set(types[3:259]) == {gguf.TokenType.BYTE}
    assert set(types[264:]) == {gguf.TokenType.UNUSED}
    assert told["scores"][262] > told["scores"][263], "the earlier merge is made first"
    assert reader.get_field("tokenizer.ggml.add_space_prefix").contents() is True


def test_tokenizers_that_are_no_pair_encoding_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "llama")
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="tokenizers of type WordLevel"):
        convert(tmp_path, tmp_path / "model.gguf", "float32")


def blocks(path: Path) -> None:
    """A file with a tensor of each type that the library itself can write, and one in float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    weights = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    writer.add_tensor("token_embd.weight", weights)
    for name, kind in (("attn_q", "Q8_0"), ("attn_k", "Q4_0"), ("attn_v", "Q5_1"), ("ffn_up", "Q4_1")):
        known = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"blk.0.{name}.weight", gguf.quants.quantize(weights, known), raw_dtype=known)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_ledger_counts_what_the_file_holds(tmp_path: Path) -> None:
    blocks(tmp_path / "model.gguf")
    entries = {entry.name: entry for entry in ledger(read(tmp_path / "model.gguf"))}
    held = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors)
    assert sum(entry.value_bytes + entry.scale_bytes for entry in entries.values()) == held
    query = entries["model.layers.0.self_attn.q_proj.weight"]
    assert (query.value_bytes, query.scale_bytes) == (64 * 64, 64 * 64 // 32 * 2), "a float16 scale per 32 weights"
    value = entries["model.layers.0.self_attn.v_proj.weight"]
    assert (value.value_bytes, value.scale_bytes) == (64 * 64 * 5 // 8, 64 * 64 // 32 * 4), "and a float16 minimum"
    assert entries["model.embed_tokens.weight"].role == "embedding"
    assert not entries["model.embed_tokens.weight"].quantized
    assert (entries["lm_head.weight"].tied, entries["lm_head.weight"].value_bytes) == (True, 0)


def test_a_header_is_read_again_once_its_file_was_touched(tmp_path: Path) -> None:
    saved(tmp_path / "model", "llama")
    file = tmp_path / "model.gguf"
    convert(tmp_path / "model", file, "float32")
    first = header(file)
    assert header(file) is first
    content = file.read_bytes()
    file.write_bytes(content.replace(b"llama.block_count", b"llama.block_kount"))
    assert "llama.block_kount" in header(file).metadata
    file.unlink()
    with pytest.raises(SourceError):
        header(file)


def test_codes_and_scales_fill_the_blocks_of_the_library() -> None:
    for name, bits in CODE_BITS.items():
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert 0 < size - weights * bits / 8 <= weights / 4, f"{name}: its scales take a part of its block"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "cut short or damaged, fetch or convert it again"),
        ("cut in its header", "cut short or damaged, fetch or convert it again"),
        ("newer", "GGUF version 99, and 2 and 3 are read here; convert the model anew"),
        ("of the other order", "its bytes are in the other order"),
        ("other", "no GGUF file: it begins with b'{\"a\"'"),
        ("empty", "no GGUF file: it begins with b''"),
    ],
)
def test_what_is_no_whole_gguf_file_is_refused(tmp_path: Path, fault: str, message: str) -> None:
    file = tmp_path / "model.gguf"
    blocks(file)
    content = file.read_bytes()
    broken = {
        "cut": content[: len(content) // 2],
        "cut in its header": content[:150],
        "newer": content[:4] + struct.pack("<I", 99) + content[8:],
        "of the other order": content[:4] + struct.pack(">I", 3) + content[8:],
        "other": json.dumps({"a": 1}).encode() * 100,
        "empty": b"",
    }
    file.write_bytes(broken[fault])
    with pytest.raises(SourceError, match=re.escape(f"{file}: {message}")):
        read(file)
