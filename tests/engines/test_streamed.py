"""Streamed models: one part in memory at a time, and every state bit by bit that of the model loaded whole."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from quantize_alone import alone
from run_specs import run_spec
from safetensors.torch import load_file, save_file
from thorough import all_thorough_but

from harness import plugins as registry
from harness.core.capability import StoredTensor, Streamed, states_each
from harness.core.engine import LoadRequest, Streaming
from harness.core.method import CalibrationSet, QuantizeJob, Setting
from harness.core.metric import Windows
from harness.core.model import ModelRef
from harness.engines.transformers.engine import TRANSFORMERS, TransformersModel, load
from harness.engines.transformers.streamed import StreamedModel
from harness.errors import HarnessError, SourceError, StorageError, UnsupportedError
from harness.execution import reference as references
from harness.execution.checkpoints import copy_tokenizer, load_source
from harness.execution.checks import reload
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.execution.jobs import probe
from harness.execution.local import local_site
from harness.host.allocator import KEPT_BYTES
from harness.methods.rtn.rtn import RtnParams, enable, quantize
from harness.metrics.routing import KL, RouterAgreement
from harness.models.bitsandbytes import stored_widths
from harness.models.headers import read_directory
from harness.models.loading import load_transformers
from harness.models.prepare import prepare
from harness.models.published import unstreamed
from harness.models.scales import check_loaded
from harness.models.scope import in_decoder, modules
from harness.models.streaming import waiting
from harness.models.streaming.forwards import states_budget
from harness.models.streaming.layerwise import LayerPasses
from harness.models.streaming.parts import Parts, refuse_incomplete
from harness.models.streaming.quantizing import save_parts
from harness.models.streaming.reading import CheckpointReader
from harness.models.streaming.waiting import WaitingStates
from harness.models.streaming.writing import CheckpointWriter
from harness.storage.cache import Cache

pytestmark = [pytest.mark.heavy(minutes=1.5), pytest.mark.usefixtures("eager", "frozen_heap")]

STATES_BYTES = 30_000
"""Less than what the windows' states take, so that some of them wait on disk."""
WIDE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {"head_dim": 16}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**WIDE, **HEADS),
    "llama with a tied head": lambda: transformers.LlamaConfig(**WIDE, **HEADS, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**WIDE, **HEADS),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**WIDE, **HEADS, **EXPERTS, num_experts=4),
    "mixtral": lambda: transformers.MixtralConfig(**WIDE, **HEADS, num_local_experts=4),
    "gemma2": lambda: transformers.Gemma2Config(**WIDE, **HEADS, sliding_window=16),
    "gemma3": lambda: transformers.Gemma3TextConfig(**WIDE, **HEADS, **WINDOW),
    "gpt_oss": lambda: transformers.GptOssConfig(**WIDE, **HEADS, **WINDOW, num_local_experts=4, num_experts_per_tok=2),
    "phi3": lambda: transformers.Phi3Config(**WIDE),
    "olmo2": lambda: transformers.Olmo2Config(**WIDE),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **(WIDE | LATENT), **EXPERTS, n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1
    ),
    "granite": lambda: transformers.GraniteConfig(
        **WIDE, embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2, logits_scaling=8.0
    ),
    "gemma3n": lambda: transformers.Gemma3nTextConfig(
        **(WIDE | {"intermediate_size": [96] * 4}),
        **HEADS,
        **WINDOW,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=128,
        laurel_rank=8,
        num_kv_shared_layers=2,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=128, n_positions=256, n_embd=64, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **WIDE,
        **HEADS,
        **EXPERTS,
        **LINEAR,
        shared_expert_intermediate_size=48,
        num_experts=4,
        layer_types=["linear_attention", "full_attention"] * 2,
    ),
    "zamba2": lambda: transformers.Zamba2Config(
        **WIDE,
        mamba_d_state=16,
        chunk_size=16,
        adapter_rank=8,
        num_mem_blocks=1,
        layers_block_type=["linear_attention", "hybrid"] * 2,
    ),
}


FUSED: dict[str, Callable[[], Any]] = {
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(**WIDE, **EXPERTS, num_experts=4),
    "olmoe": lambda: transformers.OlmoeConfig(**WIDE, num_experts=4, num_experts_per_tok=2),
}
"""Further mixtures whose experts transformers fuses while loading."""
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3")
BY_128 = WIDE | HEADS | EXPERTS | {"intermediate_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 2}
BY_64 = dict.fromkeys(LATENT, 32) | {"q_lora_rank": 64, "kv_lora_rank": 64, "num_key_value_heads": 4, "head_dim": 32}
CHANNELS: dict[str, Callable[[], Any]] = {
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**BY_128, num_experts=4),
    "mixtral": lambda: transformers.MixtralConfig(**BY_128, num_local_experts=4),
    "gpt_oss": lambda: transformers.GptOssConfig(**BY_128, num_local_experts=4),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **(BY_128 | BY_64), n_routed_experts=4, n_group=2, topk_group=1, first_k_dense_replace=1
    ),
}
"""Mixtures of two layers whose inputs blocks of 64 divide."""


def saved(folder: Path, config: Any, dtype: str = "float32", shard: str = "60KB") -> LoadRequest:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size=shard)
    return LoadRequest(folder, dtype, "cpu")


def streamed(request: LoadRequest, states_bytes: int = STATES_BYTES, time_s: float | None = None) -> StreamedModel:
    model = load(replace(request, streaming=Streaming(states_bytes, time_s=time_s)))
    assert isinstance(model, StreamedModel)
    return model


def batches() -> list[torch.Tensor]:
    """Windows of unequal length, and one batch of two."""
    drawn = torch.Generator().manual_seed(1)
    shapes = [(1, 40), (1, 40), (1, 17), (2, 33), (1, 40)]
    return [torch.randint(128, shape, generator=drawn) for shape in shapes]


def sha256(tensors: Iterable[torch.Tensor]) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", all_thorough_but(("llama", "gemma3", "qwen3_moe"), CONFIGS))
def test_states_are_bit_by_bit_those_of_the_model_loaded_whole(name: str, dtype: str, tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS[name](), dtype)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    whole, cut = load(request), streamed(request)
    for model in (whole, cut):
        model.probe_head()
    assert whole.factored
    assert cut.factored
    with torch.inference_mode():
        assert sha256(states_each(cut, batches())) == sha256(states_each(whole, batches()))
        assert sha256(cut.logits_each(batches())) == sha256(map(whole.logits, batches()))
        states = whole.hidden(batches()[0])
        assert sha256([cut.head(states)]) == sha256([whole.head(states)])
    assert cut.streaming_cost().spilled_bytes > 0
    assert list(cut.weight_ledger()) == list(whole.weight_ledger())
    assert cut.kernels() == whole.kernels()
    assert cut.products(1) == whole.products(1)


@pytest.mark.parametrize("name", all_thorough_but(("llama",), CONFIGS))
def test_the_probe_that_other_stacks_are_compared_with_is_bit_by_bit_the_same(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "model", CONFIGS[name]()).path
    model, kept = ModelRef(name, name, "0", "directory", str(path), "float32"), {}
    for residency in ("resident", "streamed"):
        spec = run_spec("probe", model=model, residency=residency)
        context, out = Context(spec, Cache(tmp_path), str), tmp_path / residency
        out.mkdir()
        probe.run(spec.job, context, out)
        kept[residency] = (out / reload.FILE).read_bytes()
        fact = next((fact for fact in context.facts if fact.code == "streaming"), None)
        assert (fact is not None) == (residency == "streamed")
    assert fact is not None
    assert fact.arguments["passes"] == 1
    assert kept["streamed"] == kept["resident"]


VISION = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
MULTIMODAL = {
    "gemma3": {"text_config": {**WIDE, **HEADS, **WINDOW}, "vision_config": VISION, "mm_tokens_per_image": 4},
    "llava": {
        "text_config": {**WIDE, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
    },
}


@pytest.mark.parametrize("name", all_thorough_but(("gemma3",), MULTIMODAL))
def test_the_text_model_of_a_multimodal_checkpoint_is_the_same_streamed(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **MULTIMODAL[name])
    model = transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    request = LoadRequest(tmp_path, "float32", "cpu")
    whole, cut = load(request), streamed(request)
    for each in (whole, cut):
        each.probe_head()
    with torch.inference_mode():
        assert sha256(states_each(cut, batches())) == sha256(states_each(whole, batches()))
        assert sha256(cut.logits_each(batches())) == sha256(map(whole.logits, batches()))
    assert list(cut.weight_ledger()) == list(whole.weight_ledger())


def test_one_pass_reads_each_part_once_however_many_windows_there_are(tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["qwen3_moe"]())
    model = streamed(request)
    held = sum(tensor.nbytes for file in tmp_path.glob("*.safetensors") for tensor in load_file(file).values())
    head = 128 * 64 * 4
    before = model.streaming_cost()
    assert before.checkpoint_bytes == held
    with torch.inference_mode():
        list(model.hidden_each(batches() * 5))
    after = model.streaming_cost()
    norm = 64 * 4  # the last norm stays, and the head is not needed for states
    assert after.bytes_read - before.bytes_read == held - head - norm
    assert after.passes == before.passes + 1


def test_loading_each_part_once_reads_the_checkpoint_once_and_leaves_nothing(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["qwen3_moe"]()))
    begun = model.streaming_cost()
    model.load_each()
    cost = model.streaming_cost()
    assert cost.bytes_read == cost.checkpoint_bytes
    assert (begun.passes, cost.passes) == (0, 1)
    assert len(model.weight_ledger()) > 0
    assert model.streaming_cost().bytes_read == cost.bytes_read
    assert all(p.device.type == "meta" for n, p in model._parts.model.named_parameters() if n != "model.norm.weight")


def test_only_the_part_in_use_and_the_next_one_have_numbers(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    present: list[set[str]] = []
    for layer in model._parts.model.model.layers:
        layer.register_forward_hook(lambda *_: present.append(set(model._parts.loaded)))
    with torch.inference_mode():
        list(model.hidden_each(batches()))
    assert all(len(loaded - {"model.norm"}) == 1 for loaded in present)
    assert all(p.device.type == "meta" for n, p in model._parts.model.named_parameters() if n != "model.norm.weight")


def test_the_engine_streams_what_it_declares(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    assert isinstance(model, Streamed)
    assert TRANSFORMERS.unmet(model) == ()


def test_a_model_read_in_another_dtype_is_cast_as_loading_it_whole_does(tmp_path: Path) -> None:
    request = replace(saved(tmp_path, CONFIGS["llama"](), "bfloat16"), dtype="float32")
    whole, cut = load(request), streamed(request)
    with torch.inference_mode():
        assert sha256(cut.hidden_each(batches())) == sha256(map(whole.hidden, batches()))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["llama"]())
    sorted(tmp_path.glob("*.safetensors"))[3].unlink()
    with pytest.raises(
        SourceError, match=r"names weights that are not there: model-00004.*; fetch the checkpoint again"
    ):
        streamed(request)


def test_a_shard_that_is_short_is_named(tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["llama"]())
    shard = sorted(tmp_path.glob("*.safetensors"))[3]
    os.truncate(shard, shard.stat().st_size - 100)
    with pytest.raises(SourceError, match=r"model-00004.*cut short.*; fetch or write it again"):
        streamed(request)


def test_a_shard_that_becomes_short_while_it_is_read_is_named(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    for shard in tmp_path.glob("*.safetensors"):
        os.truncate(shard, 5000)
    with pytest.raises(SourceError, match=r"cut short within.*; fetch it again"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_tensor_that_the_checkpoint_lacks_is_named(tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["llama"](), shard="1GB")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    for way in (streamed, load, as_source, refuse_incomplete):
        with pytest.raises(SourceError, match=r"lacks model\.layers\.2\.mlp\.up_proj\.weight.*; fetch it again"):
            way(request)


@pytest.mark.parametrize("expert", ["gate", "down", "all of it"])
@pytest.mark.parametrize(
    "name", all_thorough_but(("qwen3_moe",), ("qwen3_moe", "mixtral", "deepseek_v3", "qwen2_moe", "olmoe"))
)
def test_a_tensor_of_one_expert_that_the_checkpoint_lacks_is_named(name: str, expert: str, tmp_path: Path) -> None:
    """transformers fuses all experts of a layer while loading: it would end in an error of its own."""
    request = saved(tmp_path, (CONFIGS | FUSED)[name](), shard="1GB")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    of_it = [each for each in tensors if re.search(r"\.2\..*\.experts\.3\.", each)]
    calls = {"gate": ("gate_proj", "w1"), "down": ("down_proj", "w2"), "all of it": ("",)}[expert]
    gone = sorted(each for each in of_it if any(call in each for call in calls))
    assert len(gone) == (3 if expert == "all of it" else 1)
    for each in gone:
        del tensors[each]
    save_file(tensors, file, metadata={"format": "pt"})
    message = re.escape(f"lacks {', '.join(gone)}, which its config.json needs; fetch it again")
    for way in (streamed, load, as_source, refuse_incomplete):
        with pytest.raises(SourceError, match=message):
            way(request)


def as_source(request: LoadRequest) -> Any:
    """Loads as jobs that quantize load what they quantize."""
    conditions = SimpleNamespace(attention=None, gpus=1)
    model = SimpleNamespace(trust_remote_code=False, dtype=request.dtype)
    spec = SimpleNamespace(device="cpu", model=model, job=SimpleNamespace(conditions=conditions))
    return load_source(cast(Context, SimpleNamespace(spec=spec)), request.path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_hidden_layers", 3, r"has model\.layers\.3.* for which its config\.json has no place"),
        ("intermediate_size", 80, r"the checkpoint's shape is .*, and config\.json says"),
    ],
)
def test_a_checkpoint_unlike_its_configuration_is_refused(name: str, value: int, message: str, tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["llama"]())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {name: value}))
    for way in (streamed, load):
        with pytest.raises(SourceError, match=message):
            way(request)


def test_states_that_fit_nowhere_end_the_run_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()), states_bytes=0)
    full = Path("/dev/full")
    monkeypatch.setattr(waiting.WaitingStates, "_file", lambda self, number: full)
    with pytest.raises(StorageError, match=r"no room for the states.*TMPDIR"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_disk_too_slow_for_the_time_limit_is_told_with_the_estimate(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()), time_s=60)
    reader = model._parts.reader
    reader.read_s = 10  # as if its first few hundred bytes had taken so long
    with pytest.raises(UnsupportedError, match=r"too slow for the time limit.*limits\.time is 60 s; raise the limit"):
        model.probe_head()


def test_a_disk_that_gets_slow_after_the_first_pass_is_told_too(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()), time_s=60)
    model.load_each()
    assert model.streaming_cost().bytes_read >= model.streaming_cost().checkpoint_bytes
    model._parts.reader.read_s += 20  # as if the latest layer had taken so long
    with pytest.raises(UnsupportedError, match="too slow for the time limit: reading took 20 s so far"):
        model.load_each()


def test_a_disk_is_judged_by_one_pass_while_memory_can_hold_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that takes half the limit: five would take too long, but later ones are read from memory."""
    memory_bytes, path = [10**12], saved(tmp_path, CONFIGS["llama"]())
    monkeypatch.setattr("harness.models.streaming.reading.usable_memory_bytes", lambda: memory_bytes[0])

    def slow(model: StreamedModel) -> StreamedModel:
        reader, fill = model._parts.reader, model._parts.reader._fill

        def read(buffer: memoryview, name: str) -> None:
            if reader.bytes_read < model._parts.checkpoint_bytes:
                reader.read_s += 30 * len(buffer) / model._parts.checkpoint_bytes
            fill(buffer, name)

        reader._fill = read
        return model

    slow(streamed(path, time_s=60)).load_each()
    memory_bytes[0] = 1
    with pytest.raises(UnsupportedError, match="too slow"):
        slow(streamed(path, time_s=60)).load_each()


@pytest.mark.parametrize("way", ["rtn", "bitsandbytes", "layer by layer", "degridding"])
def test_a_disk_too_slow_is_told_whatever_reads_from_it_in_parts(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = CheckpointReader.read

    def slow(self: CheckpointReader, name: str) -> torch.Tensor:
        self.read_s += 5
        return read(self, name)

    source = saved(tmp_path / "source", CONFIGS["llama"]())
    monkeypatch.setattr(CheckpointReader, "read", slow)
    once = Streaming(STATES_BYTES, time_s=60, passes=1)
    job = QuantizeJob(
        available("rtn").params(group_size=32),
        *(source.path, tmp_path / "out", "cpu", "float32", 0, lambda: None),
        untouched=("lm_head",),
        streaming=once,
    )
    ref = ModelRef("m", "m", "c", "directory", str(source.path), "float32", degrid=0)

    def layer_by_layer() -> None:
        with closing(Parts(replace(source, streaming=once))) as parts, torch.inference_mode():
            LayerPasses(parts).run([batches()[0]])

    reading: Mapping[str, Callable[[], object]] = {
        "rtn": lambda: available("rtn").quantize_parts(job),
        "bitsandbytes": lambda: save_parts(job, transformers.BitsAndBytesConfig(load_in_8bit=True)),
        "layer by layer": layer_by_layer,
        "degridding": lambda: prepare(ref, tmp_path / "out", time_s=60),
    }
    with pytest.raises(UnsupportedError, match=r"too slow for the time limit.*limits\.time is 60 s; raise the limit"):
        reading[way]()


def test_an_architecture_whose_layers_have_no_known_names_is_refused(tmp_path: Path) -> None:
    encoder = transformers.BertConfig(**WIDE, is_decoder=True)  # its layers are ``encoder.layer.0``
    with pytest.raises(UnsupportedError, match="no decoder layers were recognized"):
        streamed(saved(tmp_path, encoder))


def test_a_model_that_reads_weights_of_modules_it_does_not_call_is_refused(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    layer = model._parts.model.model.layers[1]
    own = layer.mlp.forward
    layer.mlp.forward = lambda x: own(x) + model._parts.model.model.layers[3].mlp.up_proj.weight.sum()
    with pytest.raises(UnsupportedError, match="a module that it does not call"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_model_that_asks_for_its_embedding_before_it_calls_it_is_the_same_streamed(tmp_path: Path) -> None:
    """Llama 4 moves the tokens to the device of the embedding's weights."""
    config = transformers.Llama4TextConfig(**WIDE, **HEADS, intermediate_size_mlp=96, num_local_experts=4)
    request = saved(tmp_path, config)
    whole, cut = load(request), streamed(request)
    with torch.inference_mode():
        assert sha256(cut.logits_each(batches())) == sha256(map(whole.logits, batches()))


def test_a_layer_that_is_given_a_tensor_without_numbers_is_refused(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    model._parts.model.model.layers[1].register_forward_hook(lambda layer, given, states: states.to("meta"))
    with pytest.raises(UnsupportedError, match="a module that it does not call"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_model_that_changes_torch_around_its_layers_is_refused(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    inner = model._parts.model.model
    own = inner.forward

    def within_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return own(*args, **kwargs)

    inner.forward = within_autocast
    with pytest.raises(UnsupportedError, match="changes a setting of torch"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_model_that_changes_weights_that_are_not_there_is_refused(tmp_path: Path) -> None:
    """RWKV divides the weights of all of its layers in its first forward pass."""
    config = transformers.RwkvConfig(vocab_size=128, hidden_size=64, num_hidden_layers=4, rescale_every=2)
    model = streamed(saved(tmp_path, config))
    with pytest.raises(UnsupportedError, match=r"changes .* in its forward pass"), torch.inference_mode():
        list(model.hidden_each(batches()))


def test_a_call_outside_of_its_passes_is_a_fault_of_the_harness(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    with pytest.raises(HarnessError, match="outside of its forward passes"):
        model._parts.model(input_ids=batches()[0])


def test_a_pass_that_was_given_up_leaves_the_model_usable(tmp_path: Path) -> None:
    request = saved(tmp_path, CONFIGS["llama"]())
    model, whole = streamed(request), load(request)
    with torch.inference_mode():
        with pytest.raises(IndexError):
            list(model.hidden_each([torch.tensor([[500]])]))
        assert sha256(model.hidden_each(batches())) == sha256(map(whole.hidden, batches()))


@pytest.mark.parametrize(("budget_bytes", "spilled_bytes"), [(1000, 0), (16, 12 * 4 + 4 * 8)])
def test_an_emptied_storage_comes_back_under_all_of_its_views(budget_bytes: int, spilled_bytes: int) -> None:
    whole, other = torch.arange(12.0), torch.arange(4)
    view = whole.view(3, 4)[1:]
    states = WaitingStates(budget_bytes)
    states.hold(0, [whole, view, other])
    assert whole.untyped_storage().nbytes() == 0
    assert states.spilled_bytes == spilled_bytes
    states.take(0)
    assert view.tolist() == [[4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]]
    assert other.tolist() == [0, 1, 2, 3]


def test_what_a_pass_keeps_for_later_waits_with_its_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama keeps the embeddings of a window to its end. What earlier layers computed nobody keeps."""
    model = streamed(saved(tmp_path, CONFIGS["llama"]()), states_bytes=0)
    windows = [torch.randint(128, (1, 40)) for _ in range(3)]
    state_bytes, held, alive = 40 * 64 * 4, [], []
    hold = waiting.WaitingStates.hold

    def watched(self: WaitingStates, number: int, tensors: list[torch.Tensor]) -> None:
        storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}
        held.append(sum(size == state_bytes for size in storages.values()))
        hold(self, number, tensors)
        alive.append(sum(each.untyped_storage().nbytes() == state_bytes for each in _tensors_of((1, 40, 64))))

    monkeypatch.setattr(waiting.WaitingStates, "hold", watched)
    with torch.inference_mode():
        list(model.hidden_each(windows))
    assert held[:3] == [1, 1, 1]  # before the first layer the embeddings are the states
    assert held[3:6] == [2, 2, 2]
    assert max(alive[:-3]) == 0


def _tensors_of(shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    return (each for each in gc.get_objects() if isinstance(each, torch.Tensor) and tuple(each.shape) == shape)


def test_a_tight_limit_leaves_states_less_memory(tmp_path: Path) -> None:
    """Beside the parts, which count in the dtype that they are loaded in if that is wider than the file's."""
    request = saved(tmp_path, CONFIGS["llama"](), dtype="bfloat16")
    parts, wide = Parts(replace(request, dtype="bfloat16")), Parts(replace(request, dtype="float32"))
    assert wide.largest_loaded_bytes == 2 * parts.largest_loaded_bytes == 2 * parts.largest_bytes
    assert states_budget(Streaming(states_bytes=1000), parts) == 1000
    enough = KEPT_BYTES + 3 * parts.largest_loaded_bytes + 1000
    assert states_budget(Streaming(1000, memory_bytes=enough), parts) == 1000
    assert states_budget(Streaming(1000, memory_bytes=enough - 400), parts) == 600
    assert states_budget(Streaming(1000, memory_bytes=enough), wide) == 0


@pytest.mark.parametrize("budget_bytes", [0, 1000])
def test_what_another_pass_still_holds_stays_filled(budget_bytes: int) -> None:
    mask, one, two, fixed = (torch.ones(8) for _ in range(4))
    states = WaitingStates(budget_bytes)
    states.share([fixed])
    states.hold(0, [mask, one])
    states.hold(1, [mask, two, fixed])
    assert [tensor.untyped_storage().nbytes() for tensor in (mask, one, two, fixed)] == [0, 0, 0, 32]
    states.take(0)
    states.hold(0, [mask, one])
    assert [tensor.untyped_storage().nbytes() for tensor in (mask, one, two, fixed)] == [32, 0, 0, 32]
    states.take(1)
    assert mask.tolist() == two.tolist() == fixed.tolist() == [1.0] * 8


def test_while_a_reference_is_written_its_head_need_not_stay_in_memory(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path, CONFIGS["llama"]()))
    model.probe_head()
    with torch.inference_mode():
        head = references._write_head(model, tmp_path)
    assert load_file(tmp_path / references.HEAD)["weight"].shape == (128, 64)
    assert head is not None
    assert head.weight.untyped_storage().nbytes() == 0


def test_tensors_of_all_dtypes_are_written_in_the_order_of_safetensors(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    for dtype in DTYPES:
        model.register_buffer(f"of_{dtype}", torch.ones(8, dtype=getattr(torch, dtype)))
    model.save_pretrained(tmp_path / "whole")
    with CheckpointWriter(model, tmp_path / "parts") as writer:
        writer.write(model.state_dict())
    one, other = ((tmp_path / way / "model.safetensors").read_bytes() for way in ("whole", "parts"))
    assert one == other


DTYPES = (
    *("float64", "int64", "uint64", "complex64", "int32", "uint32", "float16", "bfloat16", "int16", "uint16"),
    *("int8", "uint8", "bool", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
)


DISK_TO_DISK: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "group_size": 8},
    "hqq": {"bits": 3, "group_size": 8},
    "gptq": {"bits": 4, "group_size": 32},
    "awq": {"group_size": 32},
    "llmc-rtn": {"bits": 4, "group_size": 16},
    "llmc-gptq": {"bits": 4, "group_size": 16},
    "llmc-awq": {"group_size": 16, "grid": 3},
    "llmc-fp8": {"scheme": "static"},
    "llmc-int8": {"smoothquant": True},
    "llmc-nvfp4": {},
    "autoround": {"group_size": 32, "iterations": 2},
    "autoround-fp8": {},
    "llmc-w4a8": {"group_size": 16},
    "llmc-mxfp4": {},
    "llmc-mxfp8": {},
}


@pytest.mark.parametrize(
    ("method", "name"),
    all_thorough_but(
        (("rtn", "llama"), ("rtn", "qwen3_moe"), ("hqq", "qwen3_moe"), ("llmc-fp8", "llama"), ("gptq", "qwen3")),
        [
            *(("rtn", name) for name in ("llama", "llama with a tied head", "gemma3", "phi3", "olmo2", *MIXTURES)),
            *(("hqq", name) for name in ("llama with a tied head", "qwen3_moe", "gpt_oss")),
            *(("llmc-gptq", name) for name in ("llama with a tied head", "qwen3_moe")),
            ("llmc-rtn", "gpt_oss"),
            ("gptq", "qwen3"),
            pytest.param("awq", "qwen3", marks=pytest.mark.slow),
            *((name, "llama") for name in ("llmc-awq", "llmc-fp8", "llmc-int8", "llmc-nvfp4", "autoround-fp8")),
            *(("autoround", name) for name in ("llama with a tied head", "gemma3", "mixtral")),
            *((name, "llama") for name in ("llmc-w4a8", "llmc-mxfp4", "llmc-mxfp8")),
        ],
    ),
)
def test_from_disk_to_disk_a_method_writes_the_bytes_that_it_writes_of_the_model_in_memory(
    method: str, name: str, tmp_path: Path, tiny: Path
) -> None:
    chosen = available(method)
    request = saved(tmp_path / "source", CONFIGS[name]())
    if method.startswith("autoround"):
        copy_tokenizer(tiny, request.path)
    untouched = modules(read_directory(request.path).shapes).untouched
    tokens = batches()[0]
    logits = {}
    for way in ("whole", "parts"):
        job = QuantizeJob(
            params=chosen.params.model_validate(DISK_TO_DISK[method]),
            source=request.path,
            out=tmp_path / way,
            device="cpu",
            dtype="float32",
            seed=0,
            load=partial(transformers.AutoModelForCausalLM.from_pretrained, request.path, dtype=torch.float32),
            calibration=CalibrationSet(CALIBRATION_ROWS, [32] * len(CALIBRATION_ROWS), ""),
            untouched=untouched,
            probe=lambda model, way=way: logits.update({way: logits_of(model, tokens)}),
        )
        model = chosen.quantize_parts(job) if way == "parts" else chosen.quantize(job)
        if model is not None:
            job.probe(model)
    assert sha256([logits["parts"]]) == sha256([logits["whole"]])
    files = {
        way: {path.name: path.read_bytes() for path in (tmp_path / way).iterdir() if path.name != "quant_log.csv"}
        for way in logits  # without gptqmodel's log of seconds
    }
    assert files["parts"].keys() == files["whole"].keys()
    assert files["parts"] == files["whole"]


@pytest.mark.parametrize("name", ["gpt_oss", "gemma3"])
def test_auto_round_says_what_to_do_with_a_model_that_it_only_quantizes_whole(name: str, tmp_path: Path) -> None:
    chosen = available("autoround")
    config = CONFIGS[name]() if name == "gpt_oss" else transformers.AutoConfig.for_model(name, **MULTIMODAL[name])
    auto = transformers.AutoModelForCausalLM if name == "gpt_oss" else transformers.AutoModelForImageTextToText
    auto.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    job = QuantizeJob(
        chosen.params(), tmp_path, tmp_path / "out", "cpu", "float32", 0, partial(auto.from_pretrained, tmp_path)
    )
    with pytest.raises(UnsupportedError, match="set residency: resident on a machine where it fits"):
        chosen.quantize_parts(job)


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["llmc-rtn", "autoround"])
def test_layers_on_disk_are_loaded_as_the_run_loads_its_source(method: str, tmp_path: Path, tiny: Path) -> None:
    """With the recipe's attention above all: what a calibrated method sees depends on it, and an id does too."""
    request, attentions = saved(tmp_path / "source", CONFIGS["llama"]()), []
    copy_tokenizer(tiny, request.path)
    chosen = available(method)
    load = transformers.AutoModelForCausalLM.from_pretrained
    job = QuantizeJob(
        params=chosen.params.model_validate(DISK_TO_DISK[method]),
        source=request.path,
        out=tmp_path / "out",
        device="cpu",
        dtype="float32",
        seed=0,
        load=partial(load, request.path, dtype=torch.float32, attn_implementation="eager"),
        calibration=CalibrationSet(CALIBRATION_ROWS, [32] * len(CALIBRATION_ROWS), ""),
        untouched=("lm_head",),
        probe=lambda model: attentions.append(model.config._attn_implementation),
    )
    chosen.quantize_parts(job)
    assert attentions == ["eager"]


def test_gptqmodel_loads_its_source_with_the_recipes_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptqmodel import GPTQModel

    class LoadedError(Exception):
        """Nothing after loading is of interest."""

    attentions, whole = [], GPTQModel.load

    def load(*arguments: Any, **options: Any) -> None:
        attentions.append(whole(*arguments, **options).model.config._attn_implementation)
        raise LoadedError

    request = saved(tmp_path / "source", CONFIGS["qwen3"]())
    chosen = available("gptq")
    monkeypatch.setattr(GPTQModel, "load", load)
    for attention in (None, "eager"):
        job = QuantizeJob(
            params=chosen.params.model_validate(DISK_TO_DISK["gptq"]),
            source=request.path,
            out=tmp_path / "out",
            device="cpu",
            dtype="float32",
            seed=0,
            load=lambda: None,
            calibration=CalibrationSet(CALIBRATION_ROWS, [32] * len(CALIBRATION_ROWS), ""),
            attention=attention,
        )
        with pytest.raises(LoadedError):
            chosen.quantize_parts(job)
    assert attentions == ["sdpa", "eager"]


def test_a_probe_keeps_a_layers_tensors_until_the_outermost_layer_ends() -> None:
    from compressed_tensors.offload.cache import OffloadCache

    from harness.methods.llmcompressor.driver import _probe_by_layer

    kept = []

    class Layer(torch.nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([Layer(depth - 1)] if depth else [])

        def forward(self) -> None:
            for layer in self.layers:
                layer()
            kept.append(OffloadCache.offloading_disabled)

    model = Layer(2)
    job = QuantizeJob(None, Path(), Path(), "cpu", "float32", 0, lambda: model, probe=lambda model: model())
    _probe_by_layer(job, model)
    assert kept == [True, True, False], "two layers, one in the other, and the model"


def logits_of(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=tokens).logits
    return logits


def test_the_artifact_of_rtn_is_read_part_by_part_as_it_is_read_whole(tmp_path: Path) -> None:
    enable()
    request = saved(tmp_path / "source", CONFIGS["qwen3"]())
    model = transformers.AutoModelForCausalLM.from_pretrained(request.path, dtype=torch.float32)
    job = QuantizeJob(
        RtnParams(bits=3, group_size=32), request.path, tmp_path / "out", "cpu", "float32", 0, lambda: model
    )
    quantize(job)
    assert any(entry.quantized for entry in same_streamed(LoadRequest(tmp_path / "out", "float32", "cpu")))


def same_streamed(request: LoadRequest) -> Sequence[StoredTensor]:
    """Asserts that a variant is the same streamed: its states, logits, stored tensors and kernels; returns the third.

    Every layer is loaded several times, and has no numbers after the last. What is quantized while loading is
    quantized once before anything is computed, as in a run.
    """
    whole, cut = load(request), streamed(request)
    if request.quantization is not None:
        cut.load_each()
    for model in (whole, cut):
        model.probe_head()
    with torch.inference_mode():
        assert sha256(states_each(cut, batches())) == sha256(states_each(whole, batches()))
        assert sha256(cut.logits_each(batches())) == sha256(map(whole.logits, batches()))
    assert list(cut.weight_ledger()) == list(whole.weight_ledger())
    assert cut.kernels() == whole.kernels()
    assert cut.products(1) == whole.products(1)
    present = {name for name, tensor in cut._parts.model.state_dict().items() if tensor.device.type != "meta"}
    assert present <= {"model.norm.weight"}
    return whole.weight_ledger()


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["bnb-nf4", "int8"])
def test_experts_that_are_quantized_while_loading_are_the_same_part_by_part(name: str, tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(**WIDE, **HEADS, **(EXPERTS | {"moe_intermediate_size": 64}), num_experts=4)
    stored = same_streamed(quantized_on_load(name, saved(tmp_path, config, "bfloat16")))
    assert any(entry.quantized for entry in stored)


ON_LOAD = {
    "bnb-nf4": {},
    "bnb-fp4": {},
    "bnb-int8": {},
    "int8": {},
    "fp8": {},
    "torchao-int8-dynamic": {},
    "torchao-intx": {"bits": 4, "group_size": 32},
    "torchao-int4": {"group_size": 32},
    "torchao-nvfp4": {},
    "torchao-mxfp8": {},
    "torchao-mxfp4": {},
}


@pytest.mark.parametrize("name", all_thorough_but(("bnb-nf4", "int8", "torchao-int4"), ON_LOAD))
def test_what_is_quantized_while_loading_is_the_same_part_by_part(name: str, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128}), **HEADS)  # bitsandbytes packs 64 at once
    stored = same_streamed(quantized_on_load(name, saved(tmp_path, config, "bfloat16")))
    assert any(entry.quantized for entry in stored)


UNSAVED = "torchao-int4"
"""Of those, what transformers does not save on a CPU."""
PUBLISHED = [name for name in ON_LOAD if name != UNSAVED]


@pytest.mark.parametrize("name", all_thorough_but(("bnb-nf4",), PUBLISHED))
def test_what_was_quantized_while_loading_and_saved_is_the_same_part_by_part(name: str, tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128}), **HEADS)
    source = saved(tmp_path / "source", config, "bfloat16")
    load_transformers(quantized_on_load(name, source)).save_pretrained(tmp_path / "out", max_shard_size="60KB")
    stored = same_streamed(replace(source, path=tmp_path / "out"))
    assert sum(entry.quantized for entry in stored) == 4 * 7
    shapes = {name: shape for name, shape in read_directory(source.path).shapes.items() if in_decoder(name, len(shape))}
    assert len(shapes) == 4 * 7
    in_four_bits = {shape[-1] for shape in shapes.values()} if name in ("bnb-nf4", "bnb-fp4") else set()
    assert stored_widths(tmp_path / "out") == in_four_bits


def saved_both_ways(name: str, source: LoadRequest, place: Path, **given: Any) -> LoadRequest:
    """Asserts that a variant that is quantized while loading is saved part by part as transformers saves it whole.

    Logits of the quantized model, scales and files are the same. torchao's notes in a file's header are in no order.
    Returns the request for what was saved.
    """
    request = quantized_on_load(name, source, **given)
    tokens, logits = batches()[0], {}
    whole = load_transformers(request)
    whole.save_pretrained(place / "whole")
    logits["whole"] = logits_of(whole, tokens)
    job = QuantizeJob(
        params=None,
        source=source.path,
        out=place / "parts",
        device="cpu",
        dtype=source.dtype,
        seed=0,
        load=lambda: None,
        untouched=request.untouched,
        probe=lambda model: logits.update(parts=logits_of(model, tokens)),
    )
    scales = save_parts(job, request.quantization)
    assert sha256([logits["parts"]]) == sha256([logits["whole"]])
    assert scales == check_loaded(dict(load_transformers(request).named_modules()))
    names = [sorted(path.name for path in (place / way).iterdir()) for way in ("whole", "parts")]
    assert names[0] == names[1]
    for file in names[0]:
        one, other = ((place / way / file).read_bytes() for way in ("whole", "parts"))
        if file.endswith(".safetensors"):
            (header, numbers), (own, same) = split(one), split(other)
            assert header == own
            assert numbers == same
        else:
            assert one == other, file
    return replace(source, path=place / "parts")


def split(file: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the numbers of a safetensors file."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


SAVED = [*((name, {}) for name in PUBLISHED), ("bnb-nf4", {"double_quant": True}), ("fp8", {"format": "e5m2"})]


@pytest.mark.parametrize(("name", "given"), all_thorough_but([SAVED[0], ("int8", {}), ("torchao-mxfp8", {})], SAVED))
def test_from_disk_to_disk_a_library_saves_what_transformers_saves_of_the_model_in_memory(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    config = transformers.Qwen3Config(
        **(WIDE | {"intermediate_size": 128, "num_hidden_layers": 2}), **HEADS, tie_word_embeddings=name != "bnb-nf4"
    )
    made = saved_both_ways(name, saved(tmp_path / "source", config, "bfloat16"), tmp_path, **given)
    stored = same_streamed(made)
    assert sum(entry.quantized for entry in stored) == 2 * 7


@pytest.mark.parametrize(
    ("name", "kind"), all_thorough_but([("bnb-nf4", "mixtral")], product(("bnb-nf4", "bnb-int8", "int8"), MIXTURES))
)
def test_from_disk_to_disk_experts_are_saved_one_by_one(name: str, kind: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "source", CHANNELS[kind](), "bfloat16")
    stored = same_streamed(saved_both_ways(name, source, tmp_path))
    in_scope = modules(read_directory(source.path).shapes).scope
    assert sum(entry.quantized for entry in stored) == len(in_scope)


def test_what_a_method_says_that_it_cannot_save_cannot_be_saved(tmp_path: Path) -> None:
    config = transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128, "num_hidden_layers": 1}), **HEADS)
    model = load_transformers(quantized_on_load(UNSAVED, saved(tmp_path / "source", config, "bfloat16")))
    with pytest.raises(ValueError, match=r"Unsupported tensor type: .*Int4OpaqueTensor"):
        model.save_pretrained(tmp_path / "out")
    reasons = {name: available(name).unsaved(available(name).params(), "cpu") for name in ON_LOAD}
    assert {name for name, reason in reasons.items() if reason} == {UNSAVED}
    assert "Int4OpaqueTensor" in reasons[UNSAVED]


@pytest.mark.thorough
@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-int8", "int8"])
def test_a_mixture_whose_single_experts_were_published_quantized_is_the_same_part_by_part(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "source", CHANNELS[kind](), "bfloat16")
    model = load_transformers(quantized_on_load(name, source))
    model._weight_conversions = None  # expert by expert, as transformers 4 stored them
    model.save_pretrained(tmp_path / "out", max_shard_size="60KB")
    if name == "bnb-int8":  # as where no method of bitsandbytes was enabled in the process
        linear = importlib.import_module("bitsandbytes.nn").Linear8bitLt
        monkeypatch.setattr(linear, "forward", linear.forward.__wrapped__)
    stored = same_streamed(replace(source, path=tmp_path / "out"))
    in_scope = modules(read_directory(source.path).shapes).scope
    assert sum(entry.quantized for entry in stored) == len(in_scope)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("name", ["bnb-nf4", "bnb-int8"])
def test_a_mixture_as_transformers_itself_publishes_it_is_the_same_part_by_part(
    name: str, kind: str, tmp_path: Path
) -> None:
    """It quantizes layers alone, and leaves the experts that it fuses as they are."""
    source = saved(tmp_path / "source", CHANNELS[kind](), "bfloat16")
    how = quantized_on_load(name, source).quantization
    load_whole = transformers.AutoModelForCausalLM.from_pretrained
    load_whole(source.path, dtype="bfloat16", quantization_config=how, device_map="cpu").save_pretrained(
        tmp_path / "out", max_shard_size="60KB"
    )
    stored = same_streamed(replace(source, path=tmp_path / "out"))
    in_scope = modules(read_directory(source.path).shapes).scope
    assert sum(entry.quantized for entry in stored) == sum(".experts." not in name for name in in_scope)


@pytest.mark.parametrize(
    ("name", "given"),
    all_thorough_but([("bnb-nf4", {})], [*((each, {}) for each in ON_LOAD), ("bnb-nf4", {"double_quant": True})]),
)
def test_a_wrong_scale_that_loading_makes_is_found_part_by_part_as_in_the_model_loaded_whole(
    name: str, given: dict[str, Any], tmp_path: Path
) -> None:
    """Of a block with an infinite weight, the scale of the MX formats is their largest: only of NaN it is NaN."""
    config = transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128, "num_hidden_layers": 2}), **HEADS)
    request = saved(tmp_path, config, "bfloat16")
    sound = load(quantized_on_load(name, request, **given))
    assert isinstance(sound, TransformersModel)
    expected = sound.check_scales()
    assert expected.scales >= expected.tensors >= 2 * 7
    assert not expected.faults, "what fills up tiles is none"
    wrong = "model.layers.1.mlp.down_proj"
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{wrong}.weight" in tensors:
            tensors[f"{wrong}.weight"][3, 7] = math.nan if "-mx" in name else math.inf
            save_file(tensors, file, metadata={"format": "pt"})
    whole, cut = (make(quantized_on_load(name, request, **given)) for make in (load, streamed))
    assert isinstance(whole, TransformersModel)
    cut.load_each()
    found = whole.check_scales()
    assert found == cut.check_scales()
    assert (found.tensors, found.scales) == (expected.tensors, expected.scales)
    assert found.faults
    assert all(fault.name.startswith(f"{wrong}.") and fault.fatal for fault in found.faults)


def available(name: str) -> Any:
    """The method, enabled; skips where its library is missing."""
    method = registry.method(name)
    if reason := registry.missing(method, local_site()):
        pytest.skip(reason)
    if method.enable is not None:
        method.enable()
    return method


def quantized_on_load(name: str, request: LoadRequest, **given: Any) -> LoadRequest:
    """The request for a variant by a method that quantizes while loading; skips where its library is missing."""
    method = available(name)
    setting = Setting("bfloat16", "cpu", modules(read_directory(request.path).shapes).untouched)
    assert method.load_config is not None
    how = method.load_config(method.params.model_validate(ON_LOAD[name] | given), setting)
    return replace(request, quantization=how, untouched=setting.untouched)


@pytest.mark.parametrize("name", all_thorough_but(("qwen3_moe",), MIXTURES))
def test_routers_are_seen_as_in_the_model_loaded_whole(name: str, tmp_path: Path) -> None:
    """The baseline's are kept, and a variant's (here its rounding to bfloat16) agree as much."""
    texts = [tokens[0].tolist() for tokens in batches()]
    windows = Windows(texts, [1, 5, 1, 1, 1], ["a", "b", "b", "c", "c"], {"tokens_sha256": "0"})
    source = saved(tmp_path / "source", CONFIGS[name]())
    base, variant = source, replace(source, dtype="bfloat16")
    kept, agreed = {}, {}
    for way, loaded in (("whole", load), ("parts", streamed)):
        folder = tmp_path / way
        folder.mkdir()
        models: Any = [loaded(request) for request in (base, variant)]
        for model in models:
            model.probe_head()
        with torch.inference_mode():
            assert models[0].router_blocks()
            references.write(models[0], windows, folder, models[0])
            kept[way] = references.Reference(folder, "cpu")
            agreement = RouterAgreement(windows, kept[way].routed)
            with models[1].watching_routers(agreement.see):
                observe(models[1], windows, [], None)
        agreed[way] = list(agreement.finish())
    tokens = sum(len(text) - 1 for text in texts)
    assert kept["parts"].router_blocks == kept["whole"].router_blocks
    for block in kept["whole"].router_blocks:
        ours, theirs = (kept[way].routed(block, 0, tokens) for way in ("parts", "whole"))
        assert sha256(ours.scores) == sha256(theirs.scores)
        assert torch.equal(ours.chosen, theirs.chosen)
    assert agreed["parts"] == agreed["whole"]
    (divergence,) = (measurement for measurement in agreed["whole"] if measurement.metric == KL)
    assert max(divergence.values) > 0


CHECKPOINTS = {
    "gptq": {"bits": 4, "group_size": 32},
    "awq": {"group_size": 32},
    "hqq": {"bits": 4, "group_size": 32},
    "autoround": {"group_size": 32, "iterations": 1},
    "autoround-fp8": {},
    "llmc-rtn": {"bits": 4, "group_size": 32, "symmetric": False},
    "llmc-fp8": {},
    "llmc-int8": {},
    "llmc-nvfp4": {},
    "llmc-mxfp8": {},
}
"""Formats whose library changes the layers after it has loaded them: repacked for a kernel, or made dense."""


SOURCES: dict[str, Callable[[], Any]] = {
    "dense": lambda: transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128}), **HEADS),
    "shallow": lambda: transformers.Qwen3Config(**(WIDE | {"intermediate_size": 128, "num_hidden_layers": 2}), **HEADS),
    "experts": lambda: transformers.Qwen3MoeConfig(
        **WIDE, **HEADS, **(EXPERTS | {"moe_intermediate_size": 64}), num_experts=4
    ),
}
OF_EXPERTS = ("gptq", "llmc-rtn", "hqq", "autoround")
WRITTEN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *((name, "dense", params) for name, params in CHECKPOINTS.items()),
    ("gptq", "shallow", CHECKPOINTS["gptq"] | {"bits": 8}),
    ("autoround", "shallow", CHECKPOINTS["autoround"] | {"symmetric": False}),
    *((name, "experts", CHECKPOINTS[name]) for name in OF_EXPERTS),
)
"""Methods, what they quantize, and how."""


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], LoadRequest]:
    """The request for a checkpoint that a method writes of one of SOURCES; skips where its library is missing.

    A library writes all of its checkpoints in one process of its own.
    """
    folder = tmp_path_factory.mktemp("quantized")
    sources = {kind: saved(folder / kind, config(), "bfloat16") for kind, config in SOURCES.items()}
    made: set[str] = set()

    def find(name: str, kind: str) -> LoadRequest:
        method, library = available(name), library_of(name)
        if library not in made:
            alone(write_all, [each for each in WRITTEN if library_of(each[0]) == library], folder)
            made.add(library)
        untouched = modules(read_directory(sources[kind].path).shapes).untouched
        return replace(sources[kind], path=folder / f"{name} {kind}", read=method.read, untouched=untouched)

    return find


def library_of(name: str) -> str:
    return "gptqmodel" if name in ("gptq", "awq") else name.partition("-")[0]


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_its_library_changes_after_loading_is_the_same_part_by_part(name: str, quantized: Any) -> None:
    request = quantized(name, "dense")
    stored = same_streamed(request)
    assert registry.method(name).loaded == "dense" or any(entry.quantized for entry in stored)
    if name in ("gptq", "awq"):
        same_streamed(replace(request, read=None))  # as a published checkpoint is loaded
    if name == "autoround":  # whose library would convert a model in float32
        same_streamed(replace(request, dtype="float32"))


@pytest.mark.thorough
def test_gptq_in_eight_bits_is_the_same_part_by_part(quantized: Any) -> None:
    """gptqmodel has another layer for them, ``TorchLinear``, which unpacks codes in every product."""
    assert any(entry.quantized for entry in same_streamed(quantized("gptq", "shallow")))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("layout", "name", "kind"),
    [
        ("auto_round:auto_gptq", "autoround", "dense"),
        ("auto_round:gptq", "autoround", "dense"),
        ("auto_round", "autoround", "shallow"),
        ("auto_round:gptqmodel", "autoround", "shallow"),
        ("auto_round:auto_awq", "awq", "dense"),
        ("auto_round:awq", "awq", "dense"),
        ("auto_round:fp8_static", "autoround-fp8", "dense"),
    ],
)
def test_all_layouts_of_auto_round_s_published_checkpoints_are_the_same_part_by_part(
    layout: str, name: str, kind: str, quantized: Any, tmp_path: Path
) -> None:
    """Some have several names. Version 0.15.1 fails to write AWQ's layout, and reads what earlier versions wrote."""
    request = quantized(name, kind)
    shutil.copytree(request.path, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    own = config["quantization_config"]
    if name == "awq":
        own = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}
    elif layout.count("_") == 2 or layout == "auto_round":
        assert own["packing_format"] == layout, "as the library calls it"
    config["quantization_config"] = own | {"packing_format": layout}
    (tmp_path / "config.json").write_text(json.dumps(config))
    published = replace(request, path=tmp_path, read=None)
    assert unstreamed(config["quantization_config"], "cpu") is None
    stored = same_streamed(published)
    assert sum(entry.quantized for entry in stored) == (2 if kind == "shallow" else 4) * 7


@pytest.mark.thorough
@pytest.mark.parametrize("name", OF_EXPERTS)
def test_experts_that_its_library_changes_after_loading_are_the_same_part_by_part(name: str, quantized: Any) -> None:
    """In a process of its own: auto-round's library leaves transformers to save mixtures otherwise from then on."""
    alone(same_experts_streamed, quantized(name, "experts"))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llmc-rtn", "gpt_oss"),  # whose attention has parameters beside its layers
        *(pytest.param("llmc-rtn", kind, marks=pytest.mark.slow) for kind in MIXTURES if kind != "gpt_oss"),
        *(
            pytest.param(name, kind, marks=pytest.mark.slow)
            for name in ("gptq", "awq", "autoround")
            for kind in MIXTURES
        ),
    ],
)
def test_mixtures_that_were_published_quantized_are_the_same_part_by_part(
    name: str, kind: str, tmp_path: Path, tiny: Path
) -> None:
    available(name)
    source = saved(tmp_path / kind, CHANNELS[kind](), "bfloat16")
    copy_tokenizer(tiny, source.path)
    alone(write_all, [(name, kind, CHECKPOINTS[name])], tmp_path)
    alone(same_experts_streamed, replace(source, path=tmp_path / f"{name} {kind}"))


def same_experts_streamed(request: LoadRequest) -> None:
    torch.compiler.set_stance("force_eager")
    assert any(".experts.3.down_proj." in entry.name for entry in same_streamed(request))


def write_all(written: Sequence[tuple[str, str, Mapping[str, Any]]], folder: Path) -> None:
    """Has methods write their checkpoints. Nothing is compiled, which would take minutes."""
    torch.compiler.set_stance("force_eager")
    for name, kind, params in written:
        write(name, params, folder / kind, folder / f"{name} {kind}")


CALIBRATION_ROWS: list[list[int]] = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(2)).tolist()


def write(name: str, params: Mapping[str, Any], source: Path, out: Path) -> None:
    method = registry.method(name)
    if method.enable is not None:
        method.enable()
    found = modules(read_directory(source).shapes)
    job = QuantizeJob(
        params=method.params.model_validate(params),
        source=source,
        out=out,
        device="cpu",
        dtype="bfloat16",
        seed=0,
        load=lambda: transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16),
        calibration=CalibrationSet(CALIBRATION_ROWS, [32] * 4, ""),
        scope=found.scope,
        untouched=found.untouched,
    )
    out.mkdir()
    assert method.quantize is not None
    method.quantize(job)
