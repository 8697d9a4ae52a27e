"""``qharness estimate``: arithmetic against known models, searches against their definition, messages, exit codes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import probe, qharness
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.render.estimate import size
from harness.errors import SourceError, UsageError
from harness.models import hub, memory
from harness.models.headers import header_of
from harness.models.resolve import answers
from harness.models.shapes import ModelShapes, read
from harness.planning.estimate import chosen, fits, gpus

GB, GIB = 10**9, 2**30
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WINDOWED = {"model_type": "mistral", "sliding_window": 4096}
MIXED = {
    **{"model_type": "qwen3", "head_dim": 128, "sliding_window": 100, "use_sliding_window": True},
    "layer_types": ["full_attention", "sliding_attention"] * 16,
}
ODD = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}


@pytest.fixture(scope="module", autouse=True)
def answered() -> None:
    """One process answers for all of them, where the cache has no answers yet."""
    answers([{**LLAMA_8B, **changes} for changes in ({}, WINDOWED, MIXED, ODD)])


def model(folder: Path, **changes: Any) -> ModelShapes:
    path = folder / "config.json"
    path.write_text(json.dumps({**LLAMA_8B, **changes}))
    return read(str(path))


@pytest.fixture
def llama(tmp_path: Path) -> ModelShapes:
    """Llama 3.1 8B, by its published configuration."""
    return model(tmp_path)


def one(
    of: ModelShapes, method: str, context: int = 1, batch: int = 1, budget: str | None = None
) -> fits.MemoryEstimate:
    limit = gpus.budget(budget) if budget else None
    (found,) = fits.estimates(of, [chosen.parse(method)], fits.request(of, context, batch, limit))
    return found


@pytest.mark.parametrize(
    ("parameters", "bits", "gigabytes"),
    [(70e9, 32, 280), (7e9, 32, 28), (7e9, 16, 14), (7e9, 8, 7), (7e9, 4, 3.5)],
)
def test_bytes_of_plain_parameters(parameters: float, bits: float, gigabytes: float) -> None:
    assert memory.plain_bytes(parameters, bits) == gigabytes * GB


def test_both_units_are_printed() -> None:
    assert memory.plain_bytes(70e9, 32) / GIB == pytest.approx(260.8, abs=0.05)
    assert memory.plain_bytes(70e9, 4) / GIB == pytest.approx(32.6, abs=0.05)
    assert size(memory.plain_bytes(70e9, 32)) == "280.0 GB = 260.8 GiB"
    assert size(memory.plain_bytes(70e9, 4)) == "35.00 GB = 32.60 GiB"


def test_llama_8b_by_role(llama: ModelShapes) -> None:
    assert llama.parameters == 8_030_261_248
    assert llama.embedding == llama.head == 128256 * 4096
    assert llama.norms == 65 * 4096
    stored = one(llama, "none").weights
    assert stored is not None
    assert stored.total == 2 * 8_030_261_248 + 4 * 128, "and the rotary frequencies"
    assert stored.total / GB == pytest.approx(16.06, abs=0.005)


def test_the_cache_of_llama_8b(llama: ModelShapes) -> None:
    found = one(llama, "none", context=1000, batch=3)
    assert found.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2 == 131_072
    assert found.kv_bytes == 3000 * 131_072


def test_a_window_bounds_the_cache(tmp_path: Path) -> None:
    windowed = model(tmp_path, **WINDOWED)
    assert one(windowed, "none", context=4096).kv_bytes == 4096 * 131_072
    assert one(windowed, "none", context=10_000).kv_bytes == 4096 * 131_072
    mixed = model(tmp_path, **MIXED)
    assert one(mixed, "none", context=1000).kv_bytes == (1000 + 100) * 131_072 // 2


def test_a_matrix_is_estimated_from_its_own_shape(llama: ModelShapes) -> None:
    """GPTQ's column indices weigh more on 1,024 outputs than on 14,336: one for all would be wrong."""
    expected = 0.0
    for rows, columns in llama.matrices:
        expected += rows * columns * (4 + (16 + 4) / 128) / 8 + 4 * columns + 4 * 8
    found = one(llama, "gptq").weights
    assert found is not None
    assert found.linear == math.ceil(expected)


def test_what_is_dense_in_memory_is_packed_on_disk(llama: ModelShapes) -> None:
    plain, packed = one(llama, "none").weights, one(llama, "llmc-rtn bits=4 group_size=128").weights
    assert plain is not None
    assert packed is not None
    assert packed.total == plain.total
    assert packed.disk is not None
    assert packed.disk == pytest.approx(llama.decoder * (4 + 16 / 128) / 8 + 2 * (2 * 128256 * 4096), rel=1e-3)


def test_a_dense_copy_beside_the_codes_needs_room(llama: ModelShapes) -> None:
    """neural-compressor unpacks all layers for good; others one matrix at a time."""
    asked = {"context": 10}
    both, single = one(llama, "inc-rtn", **asked), one(llama, "rtn", **asked)
    assert (
        both.workspace_bytes - 4 * llama.decoder
        == one(replace(llama, dtype="float32"), "none", **asked).workspace_bytes
    )
    assert single.workspace_bytes - 2 * 4096 * 14336 == one(llama, "none", **asked).workspace_bytes


@given(
    context=st.integers(1, 131072),
    batch=st.integers(1, 64),
    gib=st.integers(1, 200),
    method=st.sampled_from(["none", "rtn", "bnb-nf4"]),
)
def test_the_longest_context_and_the_largest_batch_are_the_last_that_fit(
    tmp_path_factory: pytest.TempPathFactory, context: int, batch: int, gib: int, method: str
) -> None:
    llama = model(tmp_path_factory.getbasetemp())
    found = one(llama, method, context, batch, f"{gib}GiB")
    assert found.longest_context is not None
    assert found.largest_batch is not None
    assert found.fits == (found.longest_context >= context) == (found.largest_batch >= batch)
    if found.longest_context:
        assert one(llama, method, found.longest_context, batch, f"{gib}GiB").fits
    if found.longest_context < 131072:
        assert not one(llama, method, found.longest_context + 1, batch, f"{gib}GiB").fits
    assert not one(llama, method, context, found.largest_batch + 1, f"{gib}GiB").fits


def test_a_method_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    odd = model(tmp_path, **ODD)
    assert one(odd, "rtn bits=4 group_size=64").unsupported == (
        "group_size 64 does not divide the input widths 96, 160 of this model"
    )
    assert one(odd, "rtn bits=4 group_size=64").total_bytes is None
    assert one(odd, "gptqmodel-gguf format=q4_k").unsupported is None, "rows are filled up there"


def test_every_method_has_an_estimate(llama: ModelShapes) -> None:
    found = fits.estimates(llama, chosen.every(), fits.request(llama, None, 1, gpus.budget("H100")))
    assert len(found) > 30
    assert [entry.label for entry in found if entry.unsupported] == []
    assert all(entry.fits for entry in found if not entry.label.startswith("inc-"))


def test_a_folder_without_weights_is_read_by_its_configuration(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny / "config.json").read_bytes())
    assert replace(read(str(tmp_path)), label="") == replace(read(str(tiny)), label="")


def test_a_hub_model_by_the_headers_that_the_hub_gives(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.models.headers import read_config, tensors

    config = read_config(tiny)
    monkeypatch.setattr(hub, "header", lambda name, revision: (config, header_of(config, tensors(tiny))))
    assert replace(read("some/model"), label="") == replace(read(str(tiny)), label="")
    monkeypatch.setattr(hub, "header", lambda name, revision: (config, None))
    assert replace(read("some/model"), label="") == replace(read(str(tiny)), label="")


def test_experts_are_counted_as_matrices(tmp_path: Path, llama: ModelShapes) -> None:
    """A stack of experts takes what its matrices take one by one."""
    method = chosen.parse("gptq bits=4")
    stacked = memory.quantized(method.method, method.params, 16, [(8, 1024, 512)])
    assert stacked == memory.quantized(method.method, method.params, 16, [(1024, 512)] * 8)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama_of_tomorrow"}, "it knows no model type 'llama_of_tomorrow'"),
        ({"model_type": "vit"}, "makes no language model of a configuration of type 'vit'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"layer_types": ["linear_attention"] * 32}, "linear_attention"),
        (
            {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 32},
            "sliding-window layers but gives no window size",
        ),
        ({"num_attention_heads": 0}, "does not read its configuration"),
    ],
)
def test_a_model_that_cannot_be_estimated_gets_a_clear_message(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        model(tmp_path, **changes)


@pytest.mark.parametrize(
    ("name", "gibibytes"),
    [("H100", 79.6), ("nvidia h100", 79.6), ("GeForce RTX 4090", 24.0), ("rtx4090", 24.0), ("t4", 15)],
)
def test_a_gpu_by_name(name: str, gibibytes: float) -> None:
    assert gpus.budget(name).bytes / GIB == pytest.approx(gibibytes, abs=0.05)


def test_a_gpu_by_size() -> None:
    assert gpus.budget("24GiB").bytes == 24 * GIB
    assert gpus.budget("24 GB").bytes == 24 * GB


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RTX 409", "near: RTX 4090"),
        ("A100", "near: A100-40GB, A100-80GB"),
        ("abacus", "known: A10, "),
        ("0GiB", "above zero"),
        ("-4GiB", "above zero"),
        ("24", "such as 24GiB"),
    ],
)
def test_a_budget_that_means_nothing(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gpus.budget(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnt", "did you mean 'rtn'"),
        ("rtn bit=4", "did you mean 'bits'"),
        ("rtn bits=5", "bits: expected 8, 4, 3 or 2, not 5"),
        ("checkpoint id=x", "the size of its files"),
    ],
)
def test_a_method_that_means_nothing(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen.parse(text)


def test_parameters_are_written_as_tables_show_them() -> None:
    found = chosen.parse("bnb-nf4 double_quant compute_dtype=bfloat16")
    assert found.params.double_quant
    assert found.params.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", "0"), "--context: expected 1 to 16777216, not 0"),
        (("--context", "513"), "--context: 513 tokens exceed the 512"),
        (("--batch", "-1"), "--batch: expected 1 to 16777216, not -1"),
        (("--dtype", "float8"), "name the one it is to run in"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(tiny: Path, arguments: tuple[str, ...], message: str) -> None:
    ended = qharness("estimate", str(tiny), *arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_json_for_machines_and_no_torch(tiny: Path) -> None:
    ended = probe("estimate", tiny, "--json", "--gpu", "1MiB")
    assert ended.code == 0
    assert ended.imported.isdisjoint(("torch", "transformers", "pandas"))
    lines = {entry["method"]: entry for entry in map(json.loads, ended.output.splitlines())}
    assert lines["none"]["parameters"] == {
        "all": 229_952,
        "active": 229_952,
        "linear": 196_608,
        "experts": 0,
        "embedding": 32_768,
        "head": 0,
        "other": 576,
        "other_inputs": 0,
        "not_loaded": 0,
    }
    assert lines["none"]["weight_bytes"]["total"] == 919_872
    assert lines["none"]["fits"] is False
    assert "does not divide" in lines["gptq"]["unsupported"]


def test_the_parts_of_one_variant_in_both_units(tiny: Path) -> None:
    ended = qharness("estimate", str(tiny), "--method", "none", "--gpu", "24GiB", "--context", "100")
    assert ended.returncode == 0, ended.stderr
    assert "weights, total             919.9 kB = 898.3 KiB" in ended.stdout
    assert "key-value cache per token  1.024 kB = 1.000 KiB" in ended.stdout
    assert "longest context at batch 1: 512 tokens" in ended.stdout
