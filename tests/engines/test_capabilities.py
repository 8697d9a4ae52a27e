"""What an engine declares is what the models that it loads can do."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from run_specs import changed, run_spec

from harness import plugins as registry
from harness.core.capability import (
    PROTOCOLS,
    Branching,
    Capability,
    Decodes,
    Endpoint,
    LoadedModel,
    Logits,
    as_branching,
    states_and_head,
)
from harness.core.engine import LoadRequest
from harness.core.model import MethodRef, ModelRef
from harness.engines.llamacpp.engine import LLAMACPP
from harness.engines.transformers.engine import TRANSFORMERS, TransformersModel
from harness.errors import HarnessError, UnsupportedError
from harness.execution.context import Context, checked
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

TOKENS = torch.arange(2, 34).unsqueeze(0)


@pytest.fixture
def model(tiny: Path) -> TransformersModel:
    loaded = TRANSFORMERS.load(LoadRequest(tiny, "float32", "cpu"), TRANSFORMERS.params())
    assert isinstance(loaded, TransformersModel)
    return loaded


class LogitsAlone:
    """A model that does nothing but score text."""

    tokenizer = None
    attention = "its own"
    cache_description = context_length = None
    device, vocabulary, threads = "cpu", 512, 1

    def weight_ledger(self) -> tuple[()]:
        return ()

    def running_bytes(self) -> int:
        return 0

    def kernels(self) -> dict[str, int]:
        return {}

    def products(self, rows: int, mode: str = "eager") -> dict[str, Any]:
        return {}

    def sync(self) -> None: ...

    def close(self) -> None: ...

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(tokens, self.vocabulary).float()

    own_cache_logits = logits


def test_each_name_has_a_protocol_but_for_serving_which_needs_no_model() -> None:
    assert {*PROTOCOLS, "serves"} == set(get_args(Capability))


def test_an_engine_serves_if_it_declares_a_server_and_not_from_disk_part_by_part() -> None:
    silent = replace(TRANSFORMERS, serve=None)
    assert "serves" not in silent.offers()
    serving = replace(silent, serve=lambda request, params, folder: nullcontext(Endpoint("http://127.0.0.1:1", "m")))
    assert serving.offers() - silent.offers() == {"serves"}
    assert "serves" not in serving.offers("streamed")


def test_a_run_gets_the_endpoint_of_its_engine_which_ends_with_the_context(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    @contextmanager
    def serve(request: LoadRequest, params: Any, folder: Path) -> Iterator[Endpoint]:
        asked.append((request.path, request.dtype, folder))
        yield Endpoint("http://127.0.0.1:1", request.path.name)
        asked.append("ended")

    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    source = ModelRef("tiny", "tiny", "0", "directory", str(tiny), "float32")
    context = Context(run_spec("quality", "engines", source, none, none), Cache(tmp_path), str)
    monkeypatch.setattr("harness.execution.context.engine", lambda name: replace(TRANSFORMERS, serve=None))
    with (
        pytest.raises(UnsupportedError, match="needs a server, which the engine transformers does not have"),
        context.serve(tmp_path),
    ):
        pass
    monkeypatch.setattr("harness.execution.context.engine", lambda name: replace(TRANSFORMERS, serve=serve))
    with context.serve(tmp_path) as endpoint:
        assert asked == [(tiny, "float32", tmp_path)]
        assert endpoint.model == tiny.name
    assert asked[1:] == ["ended"]
    assert [phase.name for phase in context.phases] == ["start server"]


@pytest.mark.parametrize("name", ["transformers", "llamacpp"])
def test_an_engine_declares_caches_and_modes_that_go_together(name: str) -> None:
    engine = registry.engine(name)
    assert engine.capabilities <= set(PROTOCOLS)
    assert {cache for caches in engine.decode_modes.values() for cache in caches} == set(engine.caches)
    assert engine.decode_modes["eager"] == tuple(engine.caches)


def test_transformers_can_do_all_that_it_declares(model: TransformersModel) -> None:
    assert TRANSFORMERS.unmet(model) == ()
    assert TRANSFORMERS.capabilities == set(PROTOCOLS) - {"ragged", "completes", "scores"}
    assert "scores" in TRANSFORMERS.offers() & TRANSFORMERS.offers("streamed")
    assert checked(TRANSFORMERS, model, Branching) is model


def test_llama_cpp_can_do_what_it_declares_and_no_more(llama_cpp: ModuleType, tiny: Path, tmp_path: Path) -> None:
    assert LLAMACPP.convert is not None
    LLAMACPP.convert(tiny, tmp_path, "float32")
    loaded = LLAMACPP.load(LoadRequest(tmp_path, "float32", "cpu"), LLAMACPP.params())
    assert LLAMACPP.unmet(loaded) == ()
    assert {name for name in PROTOCOLS if isinstance(loaded, PROTOCOLS[name])} == LLAMACPP.capabilities
    assert as_branching(loaded) is None
    loaded.close()


def test_a_declared_capability_that_is_not_there_is_an_error_and_a_missing_one_unsupported() -> None:
    engine = replace(TRANSFORMERS, name="boaster", capabilities=frozenset({"logits", "decodes", "generates"}))
    with pytest.raises(HarnessError, match="boaster declares decodes, generates, but its LogitsAlone does not"):
        checked(engine, LogitsAlone(), Logits)
    honest = replace(engine, capabilities=frozenset({"logits"}))
    assert isinstance(checked(honest, LogitsAlone(), LoadedModel), LogitsAlone)
    with pytest.raises(UnsupportedError, match="needs Decodes, which the engine boaster does not offer"):
        checked(honest, LogitsAlone(), Decodes)


def test_two_steps_make_the_logits_of_every_model(model: TransformersModel) -> None:
    for each, probed in ((LogitsAlone(), True), (model, False), (model, True)):
        if probed and isinstance(each, TransformersModel):
            each.probe_head()
        with torch.inference_mode():
            states_of, head = states_and_head(each)
            torch.testing.assert_close(head(states_of(TOKENS)), each.logits(TOKENS), rtol=0, atol=1e-5)


def test_a_runs_engine_parameters_reach_the_engine(tiny: Path, tmp_path: Path) -> None:
    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    source = ModelRef("tiny", "tiny", "0", "directory", str(tiny), "float32")
    usual = run_spec("quality", "engines", source, none, none)
    for own, expected in ({}, "sdpa"), ({"attention": "eager"}, "eager"):
        context = Context(changed(usual, engine_params=own), Cache(tmp_path), str)
        assert context.load(Logits).attention == context.load_as("bfloat16", Logits).attention == expected


def test_a_closed_model_holds_no_weights(model: TransformersModel) -> None:
    layer = weakref.ref(model._model.model.layers[0].mlp.up_proj)
    assert layer() is not None
    model.close()
    assert layer() is None
