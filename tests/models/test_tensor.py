"""One tensor of a checkpoint, by its name, against what safetensors and gguf read; and the command that rounds it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import SourceError, UsageError
from harness.models.tensor import read

pytestmark = pytest.mark.heavy

Q = "model.layers.0.self_attn.q_proj"
VALUES = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Two shards; one tensor in each dtype."""
    dtypes = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    shards = {
        "a.safetensors": {f"{name}.weight": VALUES.to(dtype) for name, dtype in dtypes.items()},
        "b.safetensors": {
            "norm.weight": VALUES[0].clone(),
            "experts": VALUES.reshape(2, 4, 32).clone(),
            "codes.weight": VALUES.to(torch.int8),
            "broken.weight": torch.full((2, 2), torch.nan),
            "empty.weight": torch.empty(0, 4),
        },
    }
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = {name: file for file, tensors in shards.items() for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return tmp_path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.attn_q.weight", gguf.quantize(VALUES.numpy(), kind), raw_dtype=kind)
    writer.add_tensor("blk.1.attn_q.weight", VALUES.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize(
    ("name", "dtype"), [("f64", torch.float64), ("f32", torch.float32), ("f16", torch.half), ("bf16", torch.bfloat16)]
)
def test_a_tensor_is_read_in_every_float_dtype(checkpoint: Path, name: str, dtype: torch.dtype) -> None:
    tensor = read(str(checkpoint), name)
    assert (tensor.name, tensor.stored, tensor.shape) == (f"{name}.weight", name.upper(), (8, 32))
    assert tensor.values.dtype == np.float32
    assert np.array_equal(tensor.values, VALUES.to(dtype).float().numpy())


def test_other_shapes_become_matrices(checkpoint: Path) -> None:
    assert read(str(checkpoint), "norm").values.shape == (1, 32)
    experts = read(str(checkpoint), "experts")
    assert experts.shape == (2, 4, 32)
    assert np.array_equal(experts.values, VALUES.numpy())


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", Q, f"{Q}.weight"])
def test_a_gguf_has_its_own_names_and_those_of_transformers(gguf_file: Path, name: str) -> None:
    tensor = read(str(gguf_file), name)
    assert (tensor.name, tensor.stored, tensor.shape) == ("blk.0.attn_q.weight", "Q8_0", (8, 32))
    assert np.abs(tensor.values - VALUES.numpy()).max() < 0.02


def test_each_layer_of_a_gguf_is_found(gguf_file: Path) -> None:
    assert np.array_equal(read(str(gguf_file), "model.layers.1.self_attn.q_proj").values, VALUES.numpy())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nrm.weight", "unknown tensor 'nrm.weight'; near it: norm.weight"),
        ("f", "unknown tensor 'f'; near it: bf16.weight, f16.weight, f32.weight"),
        ("codes", "stored as I8 codes; name an unquantized checkpoint"),
        ("broken", "'broken.weight' holds NaN"),
        ("empty", "'empty.weight' is empty"),
    ],
)
def test_what_cannot_be_read_is_told(checkpoint: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read(str(checkpoint), name)


def test_a_file_that_is_cut_short_is_told(checkpoint: Path, gguf_file: Path, tmp_path: Path) -> None:
    whole = (checkpoint / "a.safetensors").read_bytes()
    (checkpoint / "a.safetensors").write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little") + 10])
    with pytest.raises(SourceError, match=r"cut short within 'f64\.weight'"):
        read(str(checkpoint), "f32")
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf_file.read_bytes()[:100])
    with pytest.raises(SourceError, match="cut short or damaged"):
        read(str(short), Q)


@pytest.mark.parametrize("model", ["absent", "org/model", "package:no_such_package/x.gguf"])
def test_a_model_that_is_not_there_is_told(model: str) -> None:
    with pytest.raises(SourceError, match=r"no such folder or file|is not installed"):
        read(model, Q)


def invoke(*arguments: str) -> str:
    """What the command prints; its own errors are raised as they are."""
    return CliRunner().invoke(app, ["formats", *arguments], catch_exceptions=False).stdout


def test_the_command_rounds_a_tensor(tiny: Path) -> None:
    lines = [json.loads(line) for line in invoke("--model", str(tiny), "--tensor", Q, "--json").splitlines()]
    of = {(line["format"], line["scaling"]): line for line in lines}
    assert of["FP32", "none"]["error"] == {"sqnr_db": "inf", "largest": 0, "mean": 0}
    assert 15 < of["INT4", "FP16 for 64 columns"]["error"]["sqnr_db"] < 25
    assert of["NF4", "FP32 for 64 values"]["bits_per_weight"] == 4.5
    shown = invoke("nf4", "--model", str(tiny), "--tensor", Q)
    assert "64 × 64, stored as F32" in shown
    assert "4.500" in shown
    assert "INT4" not in shown


def test_the_ranges_of_the_command_are_those_of_the_observers(tiny: Path) -> None:
    from harness.cli.commands.formats import Observing
    from harness.numerics.observers import OBSERVERS

    assert [each.value for each in Observing] == list(OBSERVERS)
    asked = ("int4", "--model", str(tiny), "--tensor", Q, "--json", "--range")
    best = {name: json.loads(invoke(*asked, name).splitlines()[0])["error"]["sqnr_db"] for name in OBSERVERS}
    assert best["mse"] == max(best.values()) > best["min-max"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tensor", Q), "--tensor needs --model"),
        (("--model", "x"), "--model needs --tensor"),
        (("fp9",), "unknown format 'fp9'; did you mean"),
    ],
)
def test_a_wrong_command_is_told(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        invoke(*arguments)
