"""Checkpoints that strangers made: each header that is wrong is refused in one line that says what is wrong."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest

from harness.errors import SourceError
from harness.models import headers, safetensors, tensor
from harness.models.gguf import reader
from harness.models.gguf.header import configuration, read_header
from harness.models.gguf.tokens import read_tokens

CORPUS = fuzzing.HERE / "corpus"
SIZES = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def safetensors_file(path: Path, header: Any, data: int = 0, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(data))
    return path


def floats(begin: int, *shape: int, **changes: Any) -> dict[str, Any]:
    count = 1
    for size in shape:
        count *= size
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, begin + 4 * count], **changes}


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "b": floats(0, 2, 3), "none": floats(24, 0), "a": floats(24, 4)}
    found = safetensors.read(safetensors_file(tmp_path / "m", header, 40))
    begin = 8 + len(json.dumps(header))
    assert [(name, each.shape, each.begin - begin, each.end - begin) for name, each in found.items()] == [
        ("b", (2, 3), 0, 24),
        ("none", (0,), 24, 24),
        ("a", (4,), 24, 40),
    ]


def test_a_file_without_metadata_may_say_so(tmp_path: Path) -> None:
    assert [*safetensors.read(safetensors_file(tmp_path / "m", {"__metadata__": None, "a": floats(0, 2)}, 8))] == ["a"]


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": floats(0, 2)}, 7, "cut short within 'a'"),
        ({"a": floats(0, 2)}, 9, "1 bytes follow the last tensor"),
        ({"a": floats(4, 2)}, 12, "'a' does not begin where the one before it ends"),
        ({"a": floats(0, 2), "b": floats(4, 2)}, 12, "'b' does not begin where the one before it ends"),
        ({"a": floats(0, 2, dtype="F33")}, 8, "'a' has the unknown dtype 'F33'"),
        ({"a": floats(0, 2, dtype=["F32"])}, 8, "unknown dtype"),
        ({"a": floats(0, 2, shape=[3])}, 8, "'a' takes 8 bytes, which its shape and dtype do not"),
        ({"a": floats(0, 2, shape=[-2, -1])}, 8, r"the shape \[-2, -1\]"),
        ({"a": floats(0, 2, shape=[2.0])}, 8, r"the shape \[2.0\]"),
        ({"a": floats(0, 2, shape=[True, 2])}, 8, r"the shape \[True, 2\]"),
        ({"a": floats(0, 2, shape=[2**62, 2**62])}, 8, "takes 8 bytes"),
        ({"a": floats(0, 2, shape="2")}, 8, "the shape '2'"),
        ({"a": floats(0, 2, data_offsets=[8, 0])}, 8, "takes -8 bytes"),
        ({"a": floats(0, 2, data_offsets=[0, 8, 8])}, 8, "the data_offsets"),
        ({"a": None}, 0, "'a' is not a mapping"),
        ({"a\n\x1b[31m": floats(0, 2)}, 8, "not printable"),
        ({"x" * 501: floats(0, 2)}, 8, "too long"),
        ({"__metadata__": {"a": 1}, "a": floats(0, 2)}, 8, "must map names to text"),
        ([], 0, "not a mapping"),
        (b'{"a": 1, "a": 1}', 0, "the key 'a' appears twice"),
        (b"[" * 100_000, 0, "nested too deeply"),
        (b"[" + b"0," * 3_100_000 + b"0]", 0, "more than 3000000 values"),
        (b'{"a": ' + b"9" * 5000 + b"}", 0, "not valid JSON"),
        (b'{"\\ud800": 1}', 0, "half of a surrogate pair"),
        (b"\xff", 0, "not valid JSON"),
    ],
)
def test_a_safetensors_file_with_something_wrong_in_it(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = safetensors_file(tmp_path / "m.safetensors", header, data)
    with pytest.raises(SourceError, match=message) as caught:
        safetensors.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("length", [9, 2**31, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(SourceError, match="its header is longer than the file"):
        safetensors.read(safetensors_file(tmp_path / "m", b"{}", length=length))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "abc"}, "hidden_size is 'abc'; expected a whole number from 0 to 2147483648"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": 10**30}, "hidden_size is 1000000000000000000000000000000"),
        ({"hidden_size": 1.5}, "hidden_size is 1.5"),
        ({"hidden_size": [32]}, r"hidden_size is \[32\]"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected a whole number from 0 to 2000"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_experts": 8192, "num_hidden_layers": 99}, "8192 experts in each of 99 layers"),
        ({"intermediate_size": [64, None, "x"]}, "intermediate_size is"),
        ({"model_type": ["llama"]}, "model_type is"),
        ({"dtype": "float32\n"}, "dtype is 'float32.n'"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq'; expected a mapping"),
        ({"quantization_config": {"quant_method": 4}}, "quant_method is 4"),
        ({"text_config": {"vocab_size": "8"}}, "vocab_size is '8'"),
        ({"layer_types": [1]}, "layer_types is"),
    ],
)
def test_a_configuration_with_something_wrong_in_it(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, **changes}))
    with pytest.raises(SourceError, match=message):
        headers.read_config(tmp_path)


def test_the_largest_published_sizes_are_read(tmp_path: Path) -> None:
    """Llama 3.1 405B, Kimi K2, and Doge as transformers configures it by default."""
    large = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126}
    experts = {"n_routed_experts": 384, "num_hidden_layers": 61}, {"num_experts": 16384, "num_hidden_layers": 32}
    for changes in (large, *experts):
        (tmp_path / "config.json").write_text(json.dumps(SIZES | changes))
        assert headers.read_config(tmp_path) == SIZES | changes


@pytest.mark.parametrize(
    "name", ["../m.safetensors", "/m.safetensors", ".m.safetensors", "m.bin", "", 7, None, "m\n.safetensors", "x" * 300]
)
def test_an_index_names_only_files_beside_it(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(SourceError, match=r"expected a \.safetensors file beside it"):
        headers.read_directory(tmp_path)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(sys.platform != "linux", reason="has other special files")
@pytest.mark.parametrize("make", [fifo, device, loop, Path.mkdir])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "model.gguf"])
def test_what_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    with pytest.raises(
        SourceError, match=r"not a regular file|a folder|no config|no \.safetensors|cannot read|symbolic"
    ):
        read_header(tmp_path / name) if name == "model.gguf" else headers.read_directory(tmp_path)


def gguf_text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_file(path: Path, keys: int, tensors: int, content: bytes) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + content)
    return path


@pytest.mark.parametrize(
    ("keys", "tensors", "content", "message"),
    [
        (1, 0, gguf_text("k") + struct.pack("<IIQ", 9, 9, 2**40), "'k' counts 1099511627776 values"),  # 49 bytes
        (2**64 - 1, 0, b"", "it counts 18446744073709551615 metadata keys"),
        (0, 2**64 - 1, b"", "it counts 18446744073709551615 tensors"),
        (1, 0, struct.pack("<Q", 2**63) + bytes(40), "a text of 9223372036854775808 bytes"),
        (1, 0, gguf_text("k") + struct.pack("<I", 13) + bytes(9), "unknown type 13"),
        (
            1,
            0,
            gguf_text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 3 + bytes(9),
            "a list of the unknown type 9",
        ),
        (1, 0, gguf_text("k") + struct.pack("<IB", 7, 2) + bytes(9), "neither 0 nor 1"),
        (1, 0, gguf_text("k") + struct.pack("<IQ", 8, 2) + b"\xff\xff" + bytes(9), "not UTF-8"),
        (2, 0, (gguf_text("k") + struct.pack("<II", 4, 1)) * 2, "'k' appears twice"),
        (1, 0, gguf_text("general.alignment") + struct.pack("<II", 4, 3), "no power of two"),
        (0, 1, gguf_text("t") + struct.pack("<I", 5) + bytes(60), "'t' has 5 dimensions"),
        (0, 1, gguf_text("t") + struct.pack("<IQIQ", 1, 4, 0, 0), "'t' is not inside the file"),
        (0, 1, gguf_text("t") + struct.pack("<IQIQ", 1, 0, 0, 1) + bytes(99), "'t' is not inside the file"),
        (0, 1, gguf_text("t") + struct.pack("<IQIQ", 1, 4, 99, 0) + bytes(99), "unknown type 99"),
        (0, 1, gguf_text("t") + struct.pack("<IQIQ", 1, 4, 8, 0) + bytes(99), "no whole number of blocks of Q8_0"),
        (0, 2, (gguf_text("t") + struct.pack("<IQIQ", 1, 0, 0, 0)) * 2, "two tensors have one name"),
    ],
)
def test_a_gguf_file_with_something_wrong_in_it(
    tmp_path: Path, keys: int, tensors: int, content: bytes, message: str
) -> None:
    path = gguf_file(tmp_path / "m.gguf", keys, tensors, content)
    with pytest.raises(SourceError, match=message) as caught:
        reader.read(path)
    assert str(caught.value).startswith(f"{path}: cut short or damaged")


@pytest.mark.parametrize("file", ["llama", "gpt2"])
def test_the_gguf_package_reads_the_same(file: str) -> None:
    from gguf import GGUFReader

    expected, found = GGUFReader(CORPUS / "gguf" / file), reader.read(CORPUS / "gguf" / file)
    fields = {name: each.contents() for name, each in expected.fields.items() if not name.startswith("GGUF.")}
    assert found.metadata == fields
    assert [(each.name, each.type, each.shape, each.bytes, each.begin) for each in found.tensors] == [
        (each.name, each.tensor_type.name, tuple(each.shape[::-1].tolist()), each.n_bytes, each.data_offset)
        for each in expected.tensors
    ]


@pytest.mark.parametrize(
    ("key", "value", "read", "message"),
    [
        ("llama.context_length", "64", read_header, "llama.context_length is '64'; expected a whole number"),
        ("llama.block_count", 10**9, configuration, "expected a whole number from 0 to 2000"),
        ("tokenizer.ggml.tokens", "abc", read_tokens, "tokenizer.ggml.tokens is 'abc'; expected a list of texts"),
        ("tokenizer.ggml.token_type", [7] * 8, read_tokens, "a type from 0 to 6 for each token"),
        ("tokenizer.ggml.token_type", [1], read_tokens, "a type from 0 to 6 for each token"),
        ("tokenizer.ggml.scores", ["a"] * 8, read_tokens, "expected a list of finite numbers"),
    ],
)
def test_a_gguf_value_of_the_wrong_kind_is_named(
    tmp_path: Path, key: str, value: Any, read: Callable[[Path], object], message: str
) -> None:
    import gguf

    held = reader.read(CORPUS / "gguf" / "llama")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name, each in {**held.metadata, key: value}.items():
        if name != "general.architecture":
            kind = gguf.GGUFValueType.ARRAY if isinstance(each, list) else gguf.GGUFValueType.get_type(each)
            writer.add_key_value(name, each, kind)
    writer.add_tensor("token_embd.weight", np_zeros(8, 32))
    writer.add_tensor("blk.0.ffn_up.weight", np_zeros(8, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "m.gguf")


def np_zeros(*shape: int) -> Any:
    import numpy as np

    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("name", ["model.layers.999999999.mlp.up_proj", "x" * 100_000, "\x1b[31m"])
def test_a_tensor_that_no_file_has_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.gguf").write_bytes((CORPUS / "gguf" / "llama").read_bytes())
    with pytest.raises(SourceError, match="unknown tensor") as caught:
        tensor.read(str(tmp_path / "m.gguf"), name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
