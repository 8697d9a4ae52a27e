"""``estimate`` of published configurations, against the caches and parameters that transformers itself makes of them.

The cache is that of a forward pass on the meta device: tensors of the true shapes, without numbers in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from harness.errors import SourceError
from harness.models import headers
from harness.models.resolve import answers, described, resolve
from harness.models.shapes import ModelShapes, read
from harness.models.shapes import shapes as sorted_shapes
from harness.planning.estimate import chosen, fits

pytestmark = pytest.mark.heavy

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
PARAMETERS = {
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-4b-it": 4_300_079_472,
    "gemma-3-27b-it": 27_432_406_640,
    "gpt-oss-20b-bf16": 20_914_757_184,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x7b-v0.1": 46_702_792_704,
    "olmo-2-1124-7b": 7_298_617_344,
    "phi-3-mini-4k": 3_821_079_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-7b-windows": 7_615_616_512,
    "qwen3-30b-a3b": 30_532_122_624,
}
"""What the model hub says of the published weights."""
LENGTHS = (100, 3000, 131_072)
"""Within most windows, between the shortest and the longest, and beyond them all (or as long as the model reads)."""


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows all of them: one process answers at once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHARNESS_CACHE", str(folder))
        assert not any("error" in answer for answer in answers([published(name) for name in PARAMETERS]))
    return folder


@pytest.fixture
def shapes(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModelShapes]:
    monkeypatch.setenv("QHARNESS_CACHE", str(cache_folder))
    return lambda name: read(str(CONFIGS / f"{name}.json"))


class Nothing(torch.nn.Module):
    """In the place of gpt-oss's feed-forward, which gives the router's scores too."""

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, None]:
        return states, None


def published(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return content


def on_meta(name: str, folder: Path) -> Any:
    """The model in bfloat16 without memory; its feed-forwards, which keep nothing, are left out."""
    (folder / "config.json").write_text(json.dumps(published(name)))
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype="bfloat16")
    return model.eval()


def estimated(model: ModelShapes, context: int, method: str = "none") -> fits.MemoryEstimate:
    (found,) = fits.estimates(model, [chosen.parse(method)], fits.request(model, context, 1, None), "bfloat16")
    return found


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_cache_is_the_one_that_transformers_fills(
    shapes: Callable[[str], ModelShapes], name: str, tmp_path: Path
) -> None:
    """One token after a prompt: a layer with a window has then dropped what is beyond it."""
    found, model = shapes(name), on_meta(name, tmp_path)
    decoder = model.get_decoder()
    for layer in decoder.layers:
        layer.mlp = Nothing() if name.startswith("gpt-oss") else torch.nn.Identity()
    for length in {min(length, found.context_length or length) for length in LENGTHS}:
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            for tokens in (length - 1, 1):
                decoder(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"), past_key_values=cache)
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert all(tensor.dtype == torch.bfloat16 for tensor in held)
        assert estimated(found, length).kv_bytes == sum(tensor.untyped_storage().nbytes() for tensor in held)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_cache_is_the_one_that_transformers_allocates(
    shapes: Callable[[str], ModelShapes], name: str, tmp_path: Path
) -> None:
    """The static cache of a length, for compiled decoding."""
    found = shapes(name)
    config = on_meta(name, tmp_path).config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for length in {min(length, found.context_length or length) for length in LENGTHS}:
        cache = StaticCache(config, max_cache_len=length)
        cache.early_initialization(1, config.num_key_value_heads, width, torch.bfloat16, torch.device("meta"))
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert estimated(found, length).kv_bytes == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_published_weights(
    shapes: Callable[[str], ModelShapes], name: str, tmp_path: Path
) -> None:
    found = shapes(name)
    assert found.parameters == PARAMETERS[name] == sum(p.numel() for p in on_meta(name, tmp_path).parameters())


@pytest.mark.parametrize(
    ("name", "context", "gigabytes"),
    [
        ("gemma-3-1b-it", 32_768, 0.145752),  # 4 layers of 26 see all: (4 · 32768 + 22 · 512) · 2 · 256 · 2
        ("gemma-2-9b", 8192, 2.113929),  # every other: 21 · (8192 + 4096) · 2 · 8 · 256 · 2
        ("qwen2.5-7b-windows", 131_072, 3.875537),  # the first 14 of 28: 14 · (131072 + 4096) · 2 · 4 · 128 · 2
        ("qwen2.5-7b", 131_072, 7.516193),  # its window is there and not used
        ("mistral-7b-v0.1", 32_768, 0.536871),  # all 32: 4096 · 2 · 8 · 128 · 2
    ],
)
def test_caches_worked_out_by_hand(
    shapes: Callable[[str], ModelShapes], name: str, context: int, gigabytes: float
) -> None:
    assert estimated(shapes(name), context).kv_bytes / 1e9 == pytest.approx(gigabytes, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "billions"), [("mixtral-8x7b-v0.1", 12.88), ("qwen3-30b-a3b", 3.35), ("gpt-oss-20b-bf16", 4.19)]
)
def test_a_token_meets_some_of_the_experts(shapes: Callable[[str], ModelShapes], name: str, billions: float) -> None:
    """Published as 12.9B, 3.3B and 3.6B active; the last leaves out the embedding's 0.58B."""
    assert shapes(name).active / 1e9 == pytest.approx(billions, abs=0.005)


def test_biases_of_experts_are_vectors(shapes: Callable[[str], ModelShapes]) -> None:
    """gpt-oss: 32 experts in each of 24 layers, 2880 wide; each has a bias of 5760 and one of 2880."""
    found = shapes("gpt-oss-20b-bf16")
    assert found.expert_parameters == 24 * 32 * (2880 * 5760 + 2880 * 2880)
    assert sorted(set(found.experts)) == [(32, 2880, 2880), (32, 2880, 5760)]
    assert set(found.matrices) == {(4096, 2880), (512, 2880), (2880, 4096)}


def test_experts_that_a_method_leaves_are_counted_as_they_are(shapes: Callable[[str], ModelShapes]) -> None:
    """Qwen3-30B-A3B: 57.98 GB of its 61.06 are experts, which bitsandbytes does not see."""
    found = shapes("qwen3-30b-a3b")
    experts = 48 * 128 * 3 * 2048 * 768
    plain, left = estimated(found, 1), estimated(found, 1, "bnb-nf4")
    assert plain.weights is not None
    assert left.weights is not None
    assert plain.weights.total / 1e9 == pytest.approx(61.06, abs=0.01)
    assert left.weights.linear > 2 * experts
    assert left.weights.total / 1e9 == pytest.approx(59.8, abs=0.1)
    assert "experts counted unquantized" in str(left.note)
    assert plain.note is None
    packed = estimated(found, 1, "llmc-rtn bits=4 group_size=128")
    assert packed.weights is not None
    assert packed.weights.disk is not None
    assert packed.weights.disk / 1e9 == pytest.approx(16.7, abs=0.2)
    assert "experts" not in str(packed.note), "llm-compressor quantizes them"


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({"multi_query": True}, 1),
        ({"new_decoder_architecture": True, "num_kv_heads": 2}, 4),
        ({"multi_query": False}, 4),
    ],
)
def test_key_value_heads_by_another_name(changes: dict[str, Any], heads: int) -> None:
    """Falcon says ``multi_query`` and ``num_kv_heads``; against the cache that transformers builds."""
    config = AutoConfig.for_model(
        "falcon", hidden_size=64, num_attention_heads=4, num_hidden_layers=2, vocab_size=32, **changes
    )
    model = AutoModelForCausalLM.from_config(config)
    cache = model(torch.arange(3)[None], use_cache=True).past_key_values
    assert cache.layers[0].keys.shape[1] == heads
    assert described(config, build=False)["text"]["num_key_value_heads"] == heads


def test_a_configuration_that_asks_for_a_kernel_that_is_not_here_is_read(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mistral", hidden_size=64, num_attention_heads=4, num_hidden_layers=2).to_dict()
    found = resolve("m", {**config, "_attn_implementation": "flash_attention_2"})
    assert found.shapes


def test_what_has_no_decoder_layers_is_refused() -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=2).to_dict()
    with pytest.raises(SourceError, match="no decoder layers"):
        sorted_shapes("bert", config, headers.Header({"embeddings.weight": (8, 4)}, None, None, "float32", "bert"))
