"""``estimate`` of published configurations, against the caches and parameters that transformers itself makes of them.

The cache is that of a forward pass on the meta device: tensors of the true shapes, without numbers in them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.quantizers import AutoHfQuantizer

from harness.errors import SourceError
from harness.models import headers
from harness.models import resolve as resolving
from harness.models.resolve import answers, described, resolve
from harness.models.shapes import ModelShapes, read
from harness.models.shapes import shapes as sorted_shapes
from harness.planning.estimate import chosen, fits

pytestmark = pytest.mark.heavy(minutes=1)

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
OTHERS = {
    "deepseek-v3": (671, 36.6),
    "deepseek-v3.2": (671, 37),
    "gemma-3n-e4b-text": (6.87, None),
    "gemma-4-26b-a4b": (26, 3.8),
    "glm-5": (744, 40),
    "gpt-oss-20b": (20.91, 3.61),
    "gpt-oss-120b": (116.83, 5.13),
    "llama-4-scout": (109, 17),
    "mimo-v2-flash": (309, 15),
    "minimax-m2.5": (229, 10),
    "nemotron-3-nano-30b-a3b": (31.6, 3.2),
    "nemotron-h-56b": (56, None),
    "qwen3-32b-fp8": (32.8, None),
    "qwen3-vl-8b": (8.77, None),
    "qwen3-vl-30b-a3b": (31.1, 3),
    "qwen3.5-35b-a3b": (35, 3),
}
"""Billions of parameters, and of a mixture's that a token uses without the embedding, as their publishers name them."""
LIKE_ANOTHER = {"gemma-2-2b", "gemma-3-270m", "gemma-3-27b-it", "gpt-oss-120b", "mistral-7b-v0.3", "nemotron-h-56b"}
"""Those whose class another has too."""
KEPT_ALIKE = {
    "deepseek-v3": "deepseek-v3.2",
    "glm-5": "deepseek-v3.2",
    "gpt-oss-20b-bf16": "gpt-oss-20b",
    "llama-3.1-8b": "mistral-7b-v0.1",
    "olmo-2-1124-7b": "qwen2.5-7b",
    "phi-3-mini-4k": "qwen2.5-7b",
    "qwen3-vl-30b-a3b": "qwen3-30b-a3b",
    "qwen3-vl-8b": "gemma-3-4b-it",
}
"""Those of other classes whose layers keep the same kind of states as those of another, which stands for them."""
SLOW = {*LIKE_ANOTHER, *KEPT_ALIKE}
FEW = ("gemma-3-1b-it", "gpt-oss-20b")
"""Those of 'make test': a dense model with windows, and a mixture in 4 bits."""


def case(name: str, *more: Any, slow: Container[str] = ()) -> Any:
    marks = [pytest.mark.slow] * (name in slow) or [pytest.mark.thorough] * (name not in FEW)
    return pytest.param(name, *more, marks=marks)


def cases(names: Iterable[str]) -> list[Any]:
    return [case(name, slow=SLOW) for name in names]


IN_A_PROCESS = resolving._asked
"""As users have it; tests otherwise answer in their own process (conftest.py)."""
LENGTHS = (100, 3000, 131_072)
"""Within most windows, between the shortest and the longest, and beyond them all (or as long as the model reads)."""
WITHOUT_WINDOW = 10_000
"""The longest text of a model without windows in a forward pass, which takes time even without numbers."""


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows a few: one process answers at once. This one answers for others (conftest.py)."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QHARNESS_CACHE", str(folder))
        patch.setattr(resolving, "_asked", IN_A_PROCESS)
        assert not any("error" in answer for answer in answers([published(name) for name in FEW]))
    return folder


@pytest.fixture
def shapes(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModelShapes]:
    monkeypatch.setenv("QHARNESS_CACHE", str(cache_folder))
    return lambda name: read(str(CONFIGS / f"{name}.json"))


def published(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text())
    return content


def lengths(config: Any, longest: int) -> set[int]:
    """Three lengths, none beyond what the model reads. Windows that the configuration leaves to a default count too."""
    windows = re.search(r'"\w*(window|chunk)\w*": [1-9]', config.get_text_config().to_json_string(use_diff=False))
    found = {min(length, longest) for length in (*LENGTHS[:2], LENGTHS[2] if windows else WITHOUT_WINDOW)}
    assert len(found) == len(LENGTHS)
    return found


def on_meta(name: str, folder: Path) -> Any:
    """The model that the configuration itself names, in bfloat16 without memory and without its quantization."""
    content = published(name)
    content.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, content["architectures"][0])
    with torch.device("meta"):
        model = kind._from_config(config, dtype=torch.bfloat16)
    with suppress(ValueError):  # without experts
        model.set_experts_implementation("batched_mm")  # the usual loop over experts needs numbers
    return model.eval()


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """A configuration's name, and its model: made once for the tests that only read it."""
    return request.param, on_meta(request.param, tmp_path_factory.mktemp("built"))


def estimated(model: ModelShapes, context: int, method: str = "none") -> fits.MemoryEstimate:
    (found,) = fits.estimates(model, [chosen.parse(method)], fits.request(model, context, 1, None), "bfloat16")
    return found


def held_tensors(layer: Any) -> list[torch.Tensor]:
    """The tensors that a layer of transformers' cache keeps: keys, values, an index's keys, states."""
    found = [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
    for states in vars(layer).values():
        found += [each for each in states.values() if isinstance(each, torch.Tensor)] if type(states) is dict else []
    return [tensor for tensor in found if tensor.is_floating_point()]


def test_every_configuration_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == {*PARAMETERS, *OTHERS}
    classes = {name: published(name)["architectures"][0] for name in (*PARAMETERS, *OTHERS)}
    tested = {kind for name, kind in classes.items() if name not in LIKE_ANOTHER}
    assert {classes[name] for name in LIKE_ANOTHER} <= tested
    assert not {*KEPT_ALIKE.values()} & SLOW, "tested in 'make test-thorough'"


@pytest.mark.parametrize("built", cases([*PARAMETERS, *OTHERS]), indirect=True)
def test_the_cache_is_the_one_that_transformers_fills(
    shapes: Callable[[str], ModelShapes], built: tuple[str, Any]
) -> None:
    """One token after a prompt: a layer with a window has then dropped what is beyond it."""
    name, model = built
    found = shapes(name)
    for length in lengths(model.config, found.context_length or LENGTHS[-1]):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            for tokens in (length - 1, 1):
                ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
                model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        held = sum(tensor.untyped_storage().nbytes() for layer in cache.layers for tensor in held_tensors(layer))
        assert estimated(found, length).kv_bytes == held


@pytest.mark.parametrize("built", cases(PARAMETERS), indirect=True)
def test_the_cache_is_the_one_that_transformers_allocates(
    shapes: Callable[[str], ModelShapes], built: tuple[str, Any]
) -> None:
    """The static cache of a length, for compiled decoding."""
    name, model = built
    found, config = shapes(name), model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for length in {min(each, found.context_length or each) for each in LENGTHS}:
        cache = StaticCache(config, max_cache_len=length)
        cache.early_initialization(1, config.num_key_value_heads, width, torch.bfloat16, torch.device("meta"))
        held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        assert estimated(found, length).kv_bytes == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("built", cases([*PARAMETERS, *OTHERS]), indirect=True)
def test_parameters_are_those_of_the_modules(shapes: Callable[[str], ModelShapes], built: tuple[str, Any]) -> None:
    """By what transformers itself calls the embedding, the head, the decoder, and a module's class."""
    name, model = built
    found = shapes(name)
    embedding, head, decoder = model.get_input_embeddings(), model.get_output_embeddings(), model.get_decoder()
    assert found.parameters + found.unloaded == model.num_parameters()
    assert found.head == (0 if head.weight is embedding.weight else head.weight.numel())
    in_text = {id(parameter) for part in (decoder, head) for parameter in part.parameters()}
    others = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in in_text)
    assert found.other_inputs + found.unloaded == others
    experts = [module for name, module in decoder.named_modules() if name.endswith("experts")]
    assert found.expert_parameters == sum(
        parameter.numel() for module in experts for parameter in module.parameters() if parameter.dim() == 3
    )


@pytest.mark.parametrize("name", cases(PARAMETERS))
def test_parameters_are_those_of_the_published_weights(shapes: Callable[[str], ModelShapes], name: str) -> None:
    assert shapes(name).parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", cases(OTHERS))
def test_billions_of_parameters_are_those_that_the_publisher_names(
    shapes: Callable[[str], ModelShapes], name: str
) -> None:
    found, (total, active) = shapes(name), OTHERS[name]
    assert found.parameters / 1e9 == pytest.approx(total, rel=0.03)
    assert bool(found.experts) == (active is not None)
    if active is not None:
        looked_up = found.embedding if found.head else 0  # a tied one is multiplied too, as the head
        assert (found.active - looked_up) / 1e9 == pytest.approx(active, rel=0.08)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        case("deepseek-v3", [(61, 512 + 64, None)]),  # a compressed latent and one rotary key per token
        case("gpt-oss-20b", [(12, 2 * 8 * 64, 128), (12, 2 * 8 * 64, None)]),
        case("gemma-3n-e4b-text", [(16, 2 * 2 * 256, 512), (4, 2 * 2 * 256, None)]),  # the last 15 of 35 have no cache
        case("qwen3.5-35b-a3b", [(10, 2 * 2 * 256, None)]),  # every fourth layer of 40; the others keep a state
        case("llama-4-scout", [(36, 2 * 8 * 128, 8192), (12, 2 * 8 * 128, None)]),  # chunks of 8192
    ],
)
def test_what_layers_keep_of_a_token_worked_out_by_hand(
    shapes: Callable[[str], ModelShapes], name: str, layers: list[tuple[int, int, int | None]]
) -> None:
    kept = Counter((layer.token, layer.window) for layer in shapes(name).attention.layers if layer.token)
    assert sorted(kept.items(), key=str) == sorted((((token, window), n) for n, token, window in layers), key=str)


@pytest.mark.thorough
def test_the_state_of_linear_attention_worked_out_by_hand(shapes: Callable[[str], ModelShapes]) -> None:
    """Qwen3.5-35B-A3B: 32 value heads of 128 × 128, and 3 inputs of a convolution over 2 · 16 · 128 + 32 · 128."""
    states = [layer for layer in shapes("qwen3.5-35b-a3b").attention.layers if not layer.token]
    assert len(states) == 30
    assert {layer.state + layer.float32_state for layer in states} == {32 * 128 * 128 + 4 * (2 * 16 * 128 + 32 * 128)}


@pytest.mark.parametrize(
    ("name", "gibibytes"), [("gpt-oss-20b", 12.8), pytest.param("gpt-oss-120b", 60.8, marks=pytest.mark.slow)]
)
def test_native_checkpoints_are_as_large_as_their_publisher_says(
    shapes: Callable[[str], ModelShapes], name: str, gibibytes: float
) -> None:
    """Table 1 of gpt-oss's model card."""
    stored = estimated(shapes(name), 1).weights
    assert stored is not None
    assert stored.disk is not None
    assert stored.disk / 2**30 == pytest.approx(gibibytes, abs=0.05)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-32b-fp8", "minimax-m2.5"])
def test_fp8_checkpoints_are_the_modules_that_transformers_prepares(
    shapes: Callable[[str], ModelShapes], name: str, tmp_path: Path
) -> None:
    model, found = on_meta(name, tmp_path), shapes(name)
    wanted = published(name)["quantization_config"]
    quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=True)
    quantizer.preprocess_model(model)
    stored = estimated(found, 1).weights
    assert stored is not None
    rotary = 4 * found.rotary
    assert stored.total - rotary == sum(parameter.nbytes for parameter in model.parameters())
    assert stored.bits_per_weight == pytest.approx(8, abs=0.3)
    assert stored.active < stored.total / 4 or not found.experts


@pytest.mark.parametrize(
    ("name", "context", "gigabytes"),
    [
        case("gemma-3-1b-it", 32_768, 0.145752),  # 4 layers of 26 see all: (4 · 32768 + 22 · 512) · 2 · 256 · 2
        case("gemma-2-9b", 8192, 2.113929),  # every other: 21 · (8192 + 4096) · 2 · 8 · 256 · 2
        case("qwen2.5-7b-windows", 131_072, 3.875537),  # the first 14 of 28: 14 · (131072 + 4096) · 2 · 4 · 128 · 2
        case("qwen2.5-7b", 131_072, 7.516193),  # its window is there and not used
        case("mistral-7b-v0.1", 32_768, 0.536871),  # all 32: 4096 · 2 · 8 · 128 · 2
    ],
)
def test_caches_worked_out_by_hand(
    shapes: Callable[[str], ModelShapes], name: str, context: int, gigabytes: float
) -> None:
    assert estimated(shapes(name), context).kv_bytes / 1e9 == pytest.approx(gigabytes, abs=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "billions"), [("mixtral-8x7b-v0.1", 12.88), ("qwen3-30b-a3b", 3.35), ("gpt-oss-20b-bf16", 4.19)]
)
def test_a_token_meets_some_of_the_experts(shapes: Callable[[str], ModelShapes], name: str, billions: float) -> None:
    """Published as 12.9B, 3.3B and 3.6B active; the last leaves out the embedding's 0.58B."""
    assert shapes(name).active / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.thorough
def test_biases_of_experts_are_vectors(shapes: Callable[[str], ModelShapes]) -> None:
    """gpt-oss: 32 experts in each of 24 layers, 2880 wide; each has a bias of 5760 and one of 2880."""
    found = shapes("gpt-oss-20b-bf16")
    assert found.expert_parameters == 24 * 32 * (2880 * 5760 + 2880 * 2880)
    assert sorted(set(found.experts)) == [(32, 2880, 2880), (32, 5760, 2880)]
    assert set(found.matrices) == {(4096, 2880), (512, 2880), (2880, 4096)}


@pytest.mark.thorough
def test_experts_that_a_method_leaves_are_counted_as_they_are(shapes: Callable[[str], ModelShapes]) -> None:
    """Qwen3-30B-A3B: 57.98 GB of its 61.06 are experts, which quantization-aware training does not see."""
    found = shapes("qwen3-30b-a3b")
    experts = 48 * 128 * 3 * 2048 * 768
    plain, left = estimated(found, 1), estimated(found, 1, "qat bits=4")
    assert plain.weights is not None
    assert left.weights is not None
    assert plain.weights.total / 1e9 == pytest.approx(61.06, abs=0.01)
    assert left.weights.linear > 2 * experts
    assert left.weights.total / 1e9 == pytest.approx(60.24, abs=0.1)
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
