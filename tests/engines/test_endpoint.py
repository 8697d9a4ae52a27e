"""A server that the user runs, as an engine: what it is asked, what its answers mean, and how its faults are named."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_openai import KEY, Answer, FakeOpenAI, json_answer

from harness.core.capability import PROTOCOLS, Completes, Endpoint, Scores, numbered
from harness.core.engine import LoadRequest
from harness.engines.endpoint.engine import ENDPOINT, EndpointModel, EndpointParams, ServedAnswer
from harness.errors import HarnessError, InvalidRunError, RunError, UnsupportedError
from harness.libraries import openai_api
from harness.libraries.openai_api import OpenAIClient
from harness.tasks.sampling import request_seed
from harness.tasks.scoring import Request, score

pytestmark = pytest.mark.heavy

TEXTS = ([5, 38, 9, 66, 465], [1, 10])


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_api, "BACKOFF_S", 0.001)


@contextmanager
def loaded(tiny: Path, fake: FakeOpenAI, key: str | None = None, **params: Any) -> Iterator[EndpointModel]:
    with fake.running():
        request = LoadRequest(tiny, "float32", "cpu", served=Endpoint(fake.url, "fake", api_key_env=key))
        model = ENDPOINT.load(request, EndpointParams(**params))
        assert isinstance(model, EndpointModel)
        yield model
        model.close()


def expected(fake: FakeOpenAI, tokens: list[int]) -> list[float]:
    return [fake.logarithm(before, token) for before, token in itertools.pairwise(tokens)]


@pytest.mark.parametrize("given", ["prompt_logprobs", "echo"])
def test_texts_are_scored_by_what_the_server_gives(tiny: Path, tokenizer: Any, given: str) -> None:
    fake = FakeOpenAI(tokenizer, gives=frozenset({"tokens", given}))
    likely = [7]
    for _ in range(3):
        likely.append(fake.successor(likely[-1]))
    with loaded(tiny, fake) as model:
        found = model.score([*TEXTS, likely], 3)
    for tokens, scores in zip((*TEXTS, likely), found, strict=True):
        assert scores.logarithms == pytest.approx(expected(fake, list(tokens)))
        assert scores.likeliest == tuple(value > -1 for value in expected(fake, list(tokens)))
    assert found[-1].likeliest == (True, True, True)


def test_a_request_is_scored_by_its_continuation_and_equal_texts_are_asked_once(tiny: Path, tokenizer: Any) -> None:
    fake = FakeOpenAI(tokenizer)
    next_one = fake.successor(9)
    requests = [Request((5, 9), (next_one, 4)), Request((5, 9, next_one), (4,)), Request((5, 9), (next_one,))]
    with loaded(tiny, fake) as model:
        found = score(model, requests, "ragged", 1)
    last = fake.logarithm(next_one, 4)
    assert [each.loglikelihood for each in found] == pytest.approx([math.log(0.5) + last, last, math.log(0.5)])
    assert [each.greedy for each in found] == [False, False, True]
    assert sum(body.get("prompt") == [5, 9, next_one, 4] for _, body in fake.asked) == 1


@pytest.mark.parametrize(
    ("gives", "path"),
    [("tokens", "/v1/completions"), ("text", "/v1/completions"), ("chat", "/v1/chat/completions")],
)
def test_answers_are_the_servers_whatever_form_of_prompt_it_takes(
    tiny: Path, tokenizer: Any, gives: str, path: str
) -> None:
    fake = FakeOpenAI(tokenizer, gives=frozenset({gives}))
    prompts = [tokenizer.encode(text) for text in ("Once upon a time", "The cat")]
    with loaded(tiny, fake, concurrency=1) as model:
        written = model.complete(numbered(prompts), 4, ["\n"], 11, do_sample=False)
    asked = [(where, body) for where, body in fake.asked if body.get("max_tokens") == 4]
    assert {where for where, _ in asked} == {path}
    assert [(body["seed"], body["temperature"], body["stop"]) for _, body in asked] == [
        (request_seed(11, number), 0, ["\n"]) for number in range(2)
    ]
    for prompt, tokens in zip(prompts, written, strict=True):
        whole = fake.written(prompt, {"max_tokens": 4, "stop": ["\n"]})
        assert tokenizer.decode(tokens, skip_special_tokens=True) == whole["text"]
        if whole["finish_reason"] == "length":
            assert len(tokens) >= 4
        else:
            assert tokens[-1] == tokenizer.eos_token_id


def test_a_prompt_in_a_chat_template_reaches_a_server_of_text_with_its_special_tokens(
    tiny: Path, tokenizer: Any
) -> None:
    end, chat = tokenizer.eos_token_id, [*tokenizer.encode("Once"), tokenizer.eos_token_id, 5]
    fake = FakeOpenAI(tokenizer, gives=frozenset({"text"}))
    with loaded(tiny, fake) as model:
        model.complete(numbered([chat]), 4, [], 0)
    (sent,) = [body["prompt"] for _, body in fake.asked if body.get("max_tokens") == 4]
    assert tokenizer.convert_ids_to_tokens(end) in sent
    assert tokenizer.encode(sent) == chat, "the server's tokenizer makes the same tokens of it, one BOS at most"
    with (
        loaded(tiny, FakeOpenAI(tokenizer, gives=frozenset({"chat"}))) as model,
        pytest.raises(UnsupportedError, match="puts each into its chat template, and this prompt is in one already"),
    ):
        model.complete(numbered([chat]), 4, [], 0)


def test_an_answer_that_the_limit_ended_is_as_long_as_the_limit(tiny: Path, tokenizer: Any) -> None:
    class OnlyAnEnd:
        """Of special tokens, as GPT-2's."""

        all_special_ids = (tokenizer.eos_token_id,)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __len__(self) -> int:
            return len(tokenizer)

    with loaded(tiny, FakeOpenAI(tokenizer, gives=frozenset({"tokens"}))) as model:
        model.tokenizer = OnlyAnEnd()
        answer = ServedAnswer("Once", None, truncated=True)
        assert len(model._tokens(answer, 9)) == 9
        assert tokenizer.decode(model._tokens(answer, 9)).strip() == "Once"


def test_tokens_that_the_server_returns_are_taken_as_they_are(tiny: Path, tokenizer: Any) -> None:
    fake = FakeOpenAI(tokenizer, gives=frozenset({"tokens", "token_ids"}))
    with loaded(tiny, fake) as model:
        (written,) = model.complete(numbered([[5, 8]]), 3, [], 0)
    first = fake.successor(8)
    assert written == [first, fake.successor(first), fake.successor(fake.successor(first))]


def test_sampling_reaches_the_server_and_what_it_does_not_know_is_unsupported(tiny: Path, tokenizer: Any) -> None:
    fake = FakeOpenAI(tokenizer)
    with loaded(tiny, fake) as model:
        model.complete(numbered([[5]]), 1, [], 0, do_sample=True, temperature=0.6, top_p=0.9)
        assert (fake.asked[-1][1]["temperature"], fake.asked[-1][1]["top_p"]) == (0.6, 0.9)
        with pytest.raises(UnsupportedError, match="a server is not asked for num_beams"):
            model.complete(numbered([[5]]), 1, [], 0, num_beams=2)


def test_a_server_without_log_likelihoods_or_without_prompts_is_unsupported(tiny: Path, tokenizer: Any) -> None:
    with (
        loaded(tiny, FakeOpenAI(tokenizer, gives=frozenset({"tokens"}))) as model,
        pytest.raises(UnsupportedError, match="gives no log-likelihoods of a prompt, neither by prompt_logprobs"),
    ):
        model.score(TEXTS, 1)
    with (
        loaded(tiny, FakeOpenAI(tokenizer, gives=frozenset())) as model,
        pytest.raises(UnsupportedError, match="takes no prompt, be it tokens, text or a message"),
    ):
        model.complete(numbered([[5]]), 1, [], 0)


def test_it_has_what_it_declares_and_room_for_the_servers_own_token(tiny: Path, tokenizer: Any) -> None:
    assert ENDPOINT.offers() == {"completes", "scores", "serves"}
    with loaded(tiny, FakeOpenAI(tokenizer, max_model_len=100)) as model:
        assert ENDPOINT.unmet(model) == ()
        assert {name for name in PROTOCOLS if isinstance(model, PROTOCOLS[name])} == {"completes", "scores"}
        assert isinstance(model, Scores)
        assert isinstance(model, Completes)
        assert model.context_length == 98
        assert not model.weight_ledger()
        assert model.running_bytes() == 0


def test_serving_is_what_the_user_does_already(tiny: Path, tokenizer: Any, tmp_path: Path) -> None:
    assert ENDPOINT.serve is not None
    with FakeOpenAI(tokenizer).running() as fake:
        request = LoadRequest(tiny, "float32", "cpu", served=Endpoint(fake.url, "fake"))
        with ENDPOINT.serve(request, EndpointParams(), tmp_path) as endpoint:
            assert endpoint == Endpoint(fake.url, "fake", metrics_url=f"{fake.url}/metrics")
        assert OpenAIClient(endpoint).served() == {"id": "fake"}  # it goes on


def failing(status: int, content: object, times: int = 10**9) -> Callable[[str, int], Answer | None]:
    """Completions fail ``times`` times."""
    left = iter(range(times))
    return lambda path, before: (
        json_answer(content, status) if "compl" in path and next(left, None) is not None else None
    )


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_may_pass_is_asked_again(tiny: Path, tokenizer: Any, status: int) -> None:
    fake = FakeOpenAI(tokenizer, fault=failing(status, {"error": "later"}, times=2))
    with loaded(tiny, fake, retries=2) as model:
        assert len(model.score([[5, 6]], 1)[0].logarithms) == 1
    fake = FakeOpenAI(tokenizer, fault=failing(status, {"error": "later"}))
    with (
        loaded(tiny, fake, retries=1) as model,
        pytest.raises(RunError, match=rf"/v1/completions fails \(HTTP {status}, 2 times\): .*later"),
    ):
        model.complete(numbered([[5]]), 1, [], 0)


def test_nonsense_and_unlike_lengths_are_named(tiny: Path, tokenizer: Any) -> None:
    def nonsense(path: str, before: int) -> Answer | None:
        return (200, b"<html>hello</html>") if "compl" in path else None

    with (
        loaded(tiny, FakeOpenAI(tokenizer, fault=nonsense)) as model,
        pytest.raises(RunError, match=r"answers with something that is not OpenAI's API: '<html>hello</html>'"),
    ):
        model.complete(numbered([[5]]), 1, [], 0)
    for wrong in ({"choices": []}, {"choices": "no"}, {}):
        with (
            loaded(tiny, FakeOpenAI(tokenizer, fault=failing(200, wrong))) as model,
            pytest.raises(RunError, match="answers without choices"),
        ):
            model.complete(numbered([[5]]), 1, [], 0)
    fake = FakeOpenAI(tokenizer)
    with loaded(tiny, fake) as model:
        assert model.scored_by == "prompt_logprobs"
        fake.fault = failing(200, {"choices": [{"text": "x", "prompt_logprobs": [None]}]})
        with pytest.raises(InvalidRunError, match="scored another number of tokens than it was sent"):
            model.score(TEXTS, 2)


@pytest.mark.parametrize("listed", [{"data": "none"}, {"models": []}, {"data": [{"name": "x"}]}])
def test_a_list_of_models_that_is_none_is_named(tokenizer: Any, listed: object) -> None:
    with (
        FakeOpenAI(tokenizer, fault=lambda path, before: json_answer(listed)).running() as fake,
        pytest.raises(RunError, match="lists no models as OpenAI's API does"),
    ):
        OpenAIClient(Endpoint(fake.url, "fake")).served()


def test_a_model_that_the_server_lacks_is_told_with_those_that_it_has(tokenizer: Any) -> None:
    with (
        FakeOpenAI(tokenizer).running() as fake,
        pytest.raises(RunError, match="serves no model 'fakes'; did you mean 'fake'"),
    ):
        OpenAIClient(Endpoint(fake.url, "fakes")).served()


def test_a_dead_address_and_a_slow_server_are_told_from_each_other(tokenizer: Any) -> None:
    with FakeOpenAI(tokenizer).running() as fake:
        url = fake.url
    with pytest.raises(RunError, match=r"/v1/models: nothing listens there, tried 2 times; start the server"):
        OpenAIClient(Endpoint(url, "fake"), retries=1).served()

    given_up = threading.Event()

    def slow(path: str, before: int) -> Answer | None:
        given_up.wait()
        return None

    with FakeOpenAI(tokenizer, fault=slow).running() as fake:
        with pytest.raises(RunError, match=r"no answer within 0\.05 s, tried 2 times; raise timeout"):
            OpenAIClient(Endpoint(fake.url, "fake"), timeout_s=0.05, retries=1).served()
        given_up.set()


def test_only_the_url_is_asked(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a proxy of the environment nor a redirection leads elsewhere."""
    with FakeOpenAI(tokenizer).running() as other, FakeOpenAI(tokenizer).running() as fake:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        monkeypatch.setenv("http_proxy", other.url)
        OpenAIClient(Endpoint(fake.url, "fake")).served()
        fake.fault = lambda path, before: (307, b"")
        with pytest.raises(RunError, match="HTTP 307"):
            OpenAIClient(Endpoint(fake.url, "fake")).served()
        assert not other.asked


def test_the_key_is_sent_and_is_in_no_message(tiny: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QHARNESS_KEY", KEY)
    with loaded(tiny, FakeOpenAI(tokenizer, key=KEY), key="QHARNESS_KEY") as model:
        assert KEY not in repr(model.__dict__)
        assert len(model.score([[5, 6]], 1)) == 1
    with FakeOpenAI(tokenizer, key="another").running() as fake:
        with pytest.raises(RunError, match=r"HTTP 401.*QHARNESS_KEY is not the server's: .*\(the key\)") as caught:
            OpenAIClient(Endpoint(fake.url, "fake", api_key_env="QHARNESS_KEY")).served()
        assert KEY not in repr(caught.value)
        with pytest.raises(RunError, match=r"HTTP 401.*by api_key_env"):
            OpenAIClient(Endpoint(fake.url, "fake")).served()
        monkeypatch.delenv("QHARNESS_KEY")
        with pytest.raises(
            RunError, match="the environment variable QHARNESS_KEY, which holds the server's key, is not set"
        ):
            OpenAIClient(Endpoint(fake.url, "fake", api_key_env="QHARNESS_KEY"))


def test_a_variant_without_a_server_is_a_fault_of_the_harness(tiny: Path) -> None:
    with pytest.raises(HarnessError, match="a variant that no server has"):
        ENDPOINT.load(LoadRequest(tiny, "float32", "cpu"), EndpointParams())
