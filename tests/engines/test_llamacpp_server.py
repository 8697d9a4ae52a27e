"""llama.cpp's own server of a tiny model, started and ended by the engine in its stack."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serve_until import served

from harness.core.capability import numbered
from harness.core.engine import LoadRequest, PlannedLoad
from harness.core.site import Machine
from harness.engines.endpoint.engine import ENDPOINT, EndpointModel, EndpointParams
from harness.engines.llamacpp import server
from harness.engines.llamacpp.engine import LLAMACPP, LlamaCppModel, LlamaCppParams
from harness.errors import UnsupportedError
from harness.stacks import Stacks
from harness.stacks.build import environment

PROGRAM = Path(__file__).parents[1] / "support" / "serve_once.py"
REQUEST = LoadRequest(Path("model.gguf"), "float16", "cpu")


def arguments(request: LoadRequest, context: int | None, **params: Any) -> dict[str, str]:
    made = server.arguments(request, LlamaCppParams(threads=3, **params), context)
    return dict(pairwise(made))


@pytest.mark.heavy
def test_each_slot_has_a_cache_of_its_own_text_and_the_variants_type() -> None:
    usual = arguments(REQUEST, 1024)
    assert (usual["--ctx-size"], usual["--parallel"]) == (str(16 * 1024), "16")
    assert usual["--cache-type-k"] == usual["--cache-type-v"] == "f16"
    assert arguments(REQUEST, 131_072)["--ctx-size"] == arguments(REQUEST, None)["--ctx-size"] == str(16 * 4096)
    narrow = arguments(replace(REQUEST, kv_cache="int8"), 131_072, slots=2, slot_tokens=9000)
    assert (narrow["--ctx-size"], narrow["--cache-type-k"], narrow["--cache-type-v"]) == ("18000", "q8_0", "q8_0")
    assert "--n-gpu-layers" not in usual
    assert arguments(replace(REQUEST, device="cuda"), 1024)["--n-gpu-layers"] == "999"


def test_requests_that_no_slot_holds_are_refused_before_the_run() -> None:
    def refused(tokens: int, serves: bool = True, **params: Any) -> str | None:
        planned = PlannedLoad(Machine("cpu", "a CPU"), "float16", tokens=tokens, serves=serves)
        return LLAMACPP.refuses(planned, LlamaCppParams(**params))

    assert refused(8192 + 64) == (
        "prompt and new tokens of a request, 8256, exceed the 4096 tokens that llama.cpp's server keeps in a slot; "
        "raise slot_tokens"
    )
    assert refused(8192 + 64, slot_tokens=8256) is refused(4096) is None
    assert refused(513, slot_tokens=512) is not None
    assert refused(8192 + 64, serves=False) is None  # its library keeps what a run needs


def test_a_library_built_without_the_server_says_how_to_build_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "llama_cpp" / "__init__.py"))
    monkeypatch.setattr(server, "find_spec", lambda name: spec)
    with pytest.raises(
        UnsupportedError, match=r"without llama\.cpp's server: qharness stack create llamacpp builds both"
    ):
        server.installed()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "llama-server").touch()
    assert server.installed() == (tmp_path / "bin" / "llama-server", tmp_path / "lib")
    monkeypatch.setattr(server, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="stack create llamacpp"):
        server.installed()


@pytest.fixture(scope="module")
def gguf(llama_cpp: object, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    assert LLAMACPP.convert is not None
    LLAMACPP.convert(tiny, folder, "float16")
    return folder


@pytest.fixture(scope="module")
def seen(llamacpp_stacks: Stacks, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What ``serve_once.py`` sees of the server in the stack."""

    def serve_once(checkpoint: Path, kv_cache: str, **params: Any) -> Any:
        folder = tmp_path_factory.mktemp("served")
        stack = llamacpp_stacks.find("llamacpp")
        given = ["llamacpp", checkpoint, "float16", kv_cache, folder, json.dumps(params)]
        command = [str(stack.python), str(PROGRAM), *map(str, given)]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment(folder), check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return json.loads(ended.stdout.splitlines()[-1])

    return serve_once


@pytest.mark.stack
def test_the_server_serves_the_variant_and_ends_with_all_of_its_processes(gguf: Path, seen: Callable[..., Any]) -> None:
    found = seen(gguf, "model", threads=1, slots=2, slot_tokens=256)
    assert found["models"] == ["model"], found
    assert found["tokens"] == [8, 8]
    assert found["left"] == []
    assert found["log_bytes"] > 0
    assert ("--cache-type-k", "f16") in pairwise(found["arguments"])
    (written,) = re.findall(r"^llamacpp:tokens_predicted_total (\d+)$", found["metrics"], re.MULTILINE)
    assert int(written) == 16


@pytest.mark.stack
def test_what_the_server_refuses_is_unsupported_with_the_end_of_its_log(gguf: Path, seen: Callable[..., Any]) -> None:
    found = seen(gguf, "int4", threads=1, slots=1, flash_attention="disabled")
    assert found["error"] == "UnsupportedError", found
    assert re.search(r"its server does not start: exit code \d+: .*flash", found["message"], re.IGNORECASE)


@pytest.mark.stack
def test_as_an_endpoint_it_answers_as_the_library_does_and_gives_no_log_likelihoods(
    gguf: Path, tiny: Path, llamacpp_stacks: Stacks, tmp_path: Path
) -> None:
    prompts = numbered([[1, 5, 38, 9], [1, 66, 465]])
    library = LLAMACPP.load(LoadRequest(gguf, "float16", "cpu"), LlamaCppParams(threads=1))
    assert isinstance(library, LlamaCppModel)
    python = llamacpp_stacks.find("llamacpp").python
    params = {"threads": 1, "slots": 2, "slot_tokens": 256}
    with served(python, environment(tmp_path), "llamacpp", gguf, "float16", tmp_path, **params) as server:
        model = ENDPOINT.load(LoadRequest(tiny, "float32", "cpu", served=server), EndpointParams(retries=0))
        assert isinstance(model, EndpointModel)
        answers = model.complete(prompts, 6, [], 0)
        with pytest.raises(UnsupportedError, match="gives no log-likelihoods of a prompt"):
            model.score([prompt.tokens for prompt in prompts], 1)
    library.tokenizer = model.tokenizer
    decode = partial(model.tokenizer.decode, skip_special_tokens=True)
    assert list(map(decode, answers)) == list(map(decode, library.complete(prompts, 6, [], 0)))
    library.close()
