"""Models that are streamed to a GPU: parts, states and what is compared with them are where they are needed.

Their arithmetic is the CPU's, so equal figures show that the same tensors met, not that a GPU rounds alike.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_simulation import simulated
from simulated_gpu import BLOCK_BYTES, Gpus, Plan
from small_mixture import LAYERS, save_small_mixture

from harness.core.engine import LoadRequest, Streaming
from harness.core.method import QuantizeJob
from harness.core.metric import Windows
from harness.engines.transformers.engine import load
from harness.engines.transformers.streamed import StreamedModel
from harness.execution import reference as references
from harness.execution.forward import observe
from harness.methods.rtn.rtn import RtnParams, enable, quantize, quantize_parts
from harness.metrics.perplexity import Likelihood
from harness.metrics.routing import RouterAgreement
from harness.models.headers import read_directory
from harness.models.loading import load_transformers
from harness.models.scope import modules
from harness.models.streaming.layerwise import LayerPasses
from harness.models.streaming.parts import Parts
from harness.models.unfuse import unfuse

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("eager")]

STATES_BYTES = 10_000
"""Less than what the windows' states take, so that some of them wait on disk."""
ROWS = [[(7 * row + 3 * column) % 500 + 1 for column in range(24)] for row in range(3)]
WINDOWS = Windows(ROWS, [1] * 3, ["a", "b", "c"], {"tokens_sha256": "0", "context": 24, "windows": 3})


@pytest.fixture
def checkpoint(tmp_path: Path, tiny: Path) -> LoadRequest:
    return LoadRequest(save_small_mixture(tmp_path / "model", tiny), "float32", "cuda")


@pytest.fixture
def gpus(checkpoint: LoadRequest) -> Iterator[Gpus]:
    with simulated(Plan()) as found:
        yield found


def streamed(checkpoint: LoadRequest) -> Any:
    model = load(replace(checkpoint, streaming=Streaming(STATES_BYTES)))
    assert isinstance(model, StreamedModel)
    return with_plain_experts(model)


def with_plain_experts(model: Any) -> Any:
    """One expert after the other: what transformers does by default on a GPU counts tokens by a kernel of CUDA's."""
    model._model.set_experts_implementation("eager")
    model.probe_head()
    return model


def texts(count: int = 3) -> list[torch.Tensor]:
    return [torch.tensor([ROWS[number % 3]], device="cuda") for number in range(count)]


def test_a_streamed_model_computes_what_it_computes_loaded_whole(checkpoint: LoadRequest, gpus: Gpus) -> None:
    whole, cut = with_plain_experts(load(checkpoint)), streamed(checkpoint)
    assert (cut.device, cut.factored) == ("cuda:0", True)
    with torch.inference_mode():
        states, logits = list(cut.hidden_each(texts())), list(cut.logits_each(texts()))
        assert all(each.is_cuda for each in (*states, *logits))
        assert all(torch.equal(one, whole.hidden(text)) for one, text in zip(states, texts(), strict=True))
        assert all(torch.equal(one, whole.logits(text)) for one, text in zip(logits, texts(), strict=True))
    assert cut.streaming_cost().spilled_bytes > 0
    assert list(cut.weight_ledger()) == list(whole.weight_ledger())
    assert cut.products(1) == whole.products(1)
    assert cut.router_blocks() == whole.router_blocks()
    del states, logits
    whole.close()
    cut.close()
    assert torch.cuda.memory_allocated() == 0


def test_a_reference_with_its_routers_is_what_the_model_is_compared_with(
    checkpoint: LoadRequest, gpus: Gpus, tmp_path: Path
) -> None:
    folder, model = tmp_path / "reference", streamed(checkpoint)
    folder.mkdir()
    with torch.inference_mode():
        references.write(model, WINDOWS, folder, model)
        kept = references.Reference(folder, "cuda")
        agreement = RouterAgreement(WINDOWS, kept.routed)
        with model.watching_routers(agreement.see):
            observe(model, WINDOWS, [Likelihood(WINDOWS)], kept)
        states = next(model.hidden_each([texts(1)[0][:, :-1]]))
        assert torch.equal(kept.window(0), states[0])
    assert {each.metric: set(each.values) for each in agreement.finish()} == {"router_overlap": {1}, "router_kl": {0}}


def test_between_two_layers_texts_wait_in_main_memory(checkpoint: LoadRequest, gpus: Gpus) -> None:
    def held(count: int) -> list[int]:
        """What is on the GPU when each layer begins, besides the tokens."""
        gc.collect()
        found, before = [], torch.cuda.memory_allocated()
        read = texts(count)

        @contextmanager
        def watch(layer: Any, name: str) -> Iterator[None]:
            gc.collect()
            found.append(torch.cuda.memory_allocated() - before - count * BLOCK_BYTES)
            yield

        with closing(Parts(checkpoint)) as parts, torch.inference_mode():
            states = LayerPasses(parts).run(read, watch)
        assert not any(each.is_cuda for each in states)
        return found

    few, many = held(1), held(8)
    assert len(few) == LAYERS
    assert many == few


def test_layer_passes_give_the_logits_of_the_model_loaded_whole(checkpoint: LoadRequest, gpus: Gpus) -> None:
    (text,) = texts(1)
    whole = load_transformers(checkpoint)
    unfuse(whole)
    with closing(Parts(checkpoint)) as parts, torch.inference_mode():
        assert torch.equal(LayerPasses(parts).logits(text), whole(input_ids=text).logits)


def test_from_disk_to_disk_a_method_writes_what_it_writes_of_the_model_on_the_gpu(
    checkpoint: LoadRequest, gpus: Gpus, tmp_path: Path
) -> None:
    enable()
    (text,) = texts(1)
    logits: dict[str, torch.Tensor] = {}

    def probe(model: Any, way: str) -> None:
        with torch.inference_mode():
            logits[way] = model(input_ids=text).logits

    for way in ("whole", "parts"):
        job = QuantizeJob(
            params=RtnParams(bits=4, group_size=32),
            source=checkpoint.path,
            out=tmp_path / way,
            device="cuda",
            dtype="float32",
            seed=0,
            load=partial(load_transformers, checkpoint),
            untouched=modules(read_directory(checkpoint.path).shapes).untouched,
            probe=partial(probe, way=way),
        )
        if way == "parts":
            quantize_parts(job)
        else:
            probe(quantize(job), way)
    assert torch.equal(logits["parts"], logits["whole"])
    written = {way: {path.name: path.read_bytes() for path in (tmp_path / way).iterdir()} for way in logits}
    assert written["parts"] == written["whole"]
