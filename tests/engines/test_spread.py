"""A model that accelerate has spread over two GPUs, as torch's fake tensors.

They hold no numbers, but each operation on tensors of two devices fails as it would on GPUs. What the model returns
must be where its inputs are.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.capability import Spread
from harness.engines.transformers.engine import TransformersModel
from harness.engines.vllm.runtime import VllmRuntime

pytestmark = pytest.mark.heavy

LAYERS = 4
FIRST, SECOND = "cuda:0", "cuda:1"
PLACES = {
    "model.embed_tokens": FIRST,
    **{f"model.layers.{index}": FIRST if index < LAYERS // 2 else SECOND for index in range(LAYERS)},
    "model.norm": SECOND,
    "model.rotary_emb": SECOND,
    "lm_head": SECOND,
}
"""As accelerate places a model of this many layers."""


class Sliced(TorchFunctionMode):
    """Indexes and copies by operators: torch's functions for that need a CUDA build, even of fake tensors."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return _indexed(*args)
        if function is torch.Tensor.contiguous:
            return torch.clone(args[0], memory_format=torch.contiguous_format)
        return function(*args, **(kwargs or {}))


def _indexed(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [each for each in entries if not isinstance(each, torch.Tensor)]:
        place = next(place for place, each in enumerate(entries) if each is Ellipsis)
        taken = sum(each is not None and each is not Ellipsis for each in entries)
        entries[place : place + 1] = [slice(None)] * (tensor.ndim - taken)
    dimension, chosen = 0, {}
    for entry in entries:
        if entry is None:
            tensor = tensor.unsqueeze(dimension)
        elif isinstance(entry, int):
            tensor = tensor.select(dimension, entry)
            continue
        elif isinstance(entry, slice):
            tensor = torch.ops.aten.slice(tensor, dimension, entry.start, entry.stop, entry.step or 1)
        else:
            chosen[dimension] = entry
        dimension += 1
    return torch.ops.aten.index(tensor, [chosen.get(each) for each in range(dimension)]) if chosen else tensor


@pytest.fixture
def model() -> Iterator[TransformersModel]:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
    )
    with FakeTensorMode(allow_non_fake_inputs=True), Sliced():
        raw = LlamaForCausalLM(config).eval()
        for name, place in PLACES.items():
            for module in raw.get_submodule(name).modules():
                for own in (module._parameters, module._buffers):
                    for key, tensor in own.items():
                        if tensor is not None:
                            moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=place)
                            own[key] = torch.nn.Parameter(moved) if own is module._parameters else moved
        dispatch_model(raw, PLACES, main_device=FIRST, skip_keys=raw._skip_keys_device_placement)
        with torch.no_grad():
            yield TransformersModel(raw, None)


def test_everything_comes_back_to_the_first_gpu(model: TransformersModel) -> None:
    tokens = torch.zeros((2, 8), dtype=torch.int64)
    assert isinstance(model, Spread)
    assert (model.device, model.devices) == (FIRST, (FIRST, SECOND))
    hidden = model.hidden(tokens)
    for found in (hidden, model.head(hidden), model.logits(tokens), model.own_cache_logits(tokens)):
        assert str(found.device) == FIRST
    assert hidden.shape == (2, 8, 32)


def test_each_layers_keys_stay_where_the_layer_is(model: TransformersModel) -> None:
    logits, cache = model.prefill(torch.zeros((2, 8), dtype=torch.int64))
    for _ in range(2):
        logits, cache = model.decode(logits.argmax(dim=-1, keepdim=True), cache)
    assert str(logits.device) == FIRST
    assert [str(layer.keys.device) for layer in cache.layers] == [FIRST, FIRST, SECOND, SECOND]
    chosen = model.select_prefix(cache, torch.tensor([1]), 4)
    assert [str(layer.values.device) for layer in chosen.layers] == [FIRST, FIRST, SECOND, SECOND]
    assert chosen.layers[3].keys.shape[0] == 1


def test_a_prefix_branches_over_both_gpus(model: TransformersModel) -> None:
    states, prefix = model.extend_prefix(torch.zeros(6, dtype=torch.int64), None)
    assert str(states.device) == FIRST
    tree = model.forward_tree(torch.zeros(4, dtype=torch.int64), torch.tensor([2, 2, 4, 4]), prefix)
    assert str(tree.device) == FIRST
    assert tree.shape == (4, 32)


@pytest.mark.parametrize(("world_size", "device"), [(1, FIRST), (2, "cpu")])
def test_states_reach_vllms_other_processes_through_host_memory(world_size: int, device: str) -> None:
    given: list[torch.Tensor] = []

    def collective_rpc(method: str, args: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        given.extend(args)
        return [torch.empty(len(args[0]), 8)]

    parallel = SimpleNamespace(parallel_config=SimpleNamespace(world_size=world_size))
    runtime = VllmRuntime.__new__(VllmRuntime)
    runtime.engine = SimpleNamespace(vllm_config=parallel, collective_rpc=collective_rpc)
    with FakeTensorMode():
        assert runtime.head(torch.empty(2, 3, 4, device=FIRST)).shape == (2, 3, 8)
    assert [str(each.device) for each in given] == [device]
