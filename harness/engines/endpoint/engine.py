"""The engine endpoint: a model on a server that the user runs, asked by OpenAI's API.

It gets the same token ids as every other engine, by the tokenizer of the recipe's model, if the server takes tokens;
else the text of them. What the server can do is found out by asking it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.capability import Endpoint, Product, Prompt, StoredTensor, TokenScores
from harness.core.engine import Engine, EngineParams, LoadRequest
from harness.core.format import SERVED_FORMAT
from harness.core.identity import DecodeMode
from harness.errors import HarnessError, InvalidRunError, RunError, UnsupportedError
from harness.libraries.openai_api import OpenAIClient, RefusedRequestError, numbers
from harness.models.headers import read_directory
from harness.models.loading import load_tokenizer
from harness.recipe.fields import Seconds
from harness.tasks.sampling import request_seed

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
Way = Literal["tokens", "text", "chat"]
"""How a prompt is sent: as token ids, as their text, or as the text of a user's message."""
ScoredBy = Literal["prompt_logprobs", "echo"]
"""vLLM's own field, or OpenAI's old one: the prompt comes back with the logarithms of its tokens' probabilities."""
SAMPLING = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p"})
MOST_STOPS = 4
"""Of OpenAI's API. The text is cut at all of them when it has come."""
PROBE = "The quick brown fox"
SHORT: Mapping[str, Any] = {"max_tokens": 1, "temperature": 0}
TOKENS = {"return_token_ids": True}
WAYS: tuple[Way, ...] = ("tokens", "text", "chat")
SCORED_BY: tuple[ScoredBy, ...] = ("prompt_logprobs", "echo")


class EndpointParams(EngineParams):
    """``concurrency`` requests are open at once, each for at most ``timeout``.

    A request that fails for reasons that may pass is sent ``retries`` more times, at growing intervals.
    """

    concurrency: Annotated[int, Field(gt=0, le=1024)] = 8
    timeout: Seconds = 600.0
    retries: Annotated[int, Field(ge=0, le=20)] = 3


@dataclass(frozen=True)
class ServedAnswer:
    """The text after a prompt without the string that stopped it, its tokens if the server returns them, and whether
    the limit ended it."""

    text: str
    tokens: tuple[int, ...] | None
    truncated: bool


class EndpointModel:
    """A model elsewhere. It has no weights here, so that nothing is known of its bytes, its memory and its kernels."""

    def __init__(self, client: OpenAIClient, tokenizer: Any, context: int | None, at_once: int) -> None:
        self._client = client
        self._at_once = at_once
        self.tokenizer = tokenizer
        self.vocabulary = len(tokenizer)
        self.device = "cpu"
        self.attention = "the server's own"
        self.threads = 0
        self.cache_description: str | None = None
        self.context_length = context

    def weight_ledger(self) -> Sequence[StoredTensor]:
        return ()

    def running_bytes(self) -> int:
        return 0

    def kernels(self) -> Mapping[str, int]:
        return {}

    def products(self, rows: int, mode: DecodeMode = "eager") -> Mapping[str, Product]:
        return {}

    def sync(self) -> None:
        """Every answer is waited for."""

    def close(self) -> None:
        self._client.close()

    def complete(
        self, prompts: Sequence[Prompt], new_tokens: int, stops: Sequence[str], seed: int, **settings: Any
    ) -> list[list[int]]:
        """Where the server returns no token ids, they are those of its text: a text that ended by itself also gets the
        end token, and one that the limit ended is filled up, so that it is as long as the limit."""
        body = {"max_tokens": new_tokens, "stop": list(stops)[:MOST_STOPS], **sampling(settings), **self._returned}
        way = self.way  # asked once, before the threads

        def ask(index: int) -> list[int]:
            own = {**body, "seed": request_seed(seed, prompts[index].number)}
            return self._tokens(self._written(way, prompts[index].tokens, own), new_tokens)

        return self._each(ask, len(prompts), self._at_once)

    def score(self, texts: Sequence[Sequence[int]], together: int) -> list[TokenScores]:
        scored_by = self.scored_by  # asked once, before the threads

        def ask(index: int) -> TokenScores:
            tokens = list(texts[index])
            found = self._scores(scored_by, tokens)
            if found is None or len(found.logarithms) != len(tokens) - 1:
                raise InvalidRunError(f"{self._client.endpoint.url} scored another number of tokens than it was sent")
            return found

        return self._each(ask, len(texts), min(together, self._at_once))

    @cached_property
    def way(self) -> Way:
        """The first way that the server takes. Raises UnsupportedError, with its reasons, if it takes none."""
        refused = []
        for way in WAYS:
            try:
                self._written(way, self._probe, SHORT)
            except RefusedRequestError as error:
                refused.append(str(error))
            else:
                return way
        raise UnsupportedError(f"the server takes no prompt, be it tokens, text or a message: {'; '.join(refused)}")

    @cached_property
    def _returned(self) -> Mapping[str, bool]:
        """vLLM's field that asks for the tokens of the answer, where the server takes it."""
        try:
            self._written(self.way, self._probe, {**SHORT, **TOKENS})
        except RefusedRequestError:
            return {}
        return TOKENS

    @cached_property
    def scored_by(self) -> ScoredBy:
        """The first field that the server follows. Raises UnsupportedError if it follows none."""
        refused = ["its answers to both hold none"]
        for way in SCORED_BY:
            try:
                found = self._scores(way, self._probe)
            except RefusedRequestError as error:
                refused.append(str(error))
                continue
            if found is not None and len(found.logarithms) == len(self._probe) - 1:
                return way
        raise UnsupportedError(
            "its API gives no log-likelihoods of a prompt, neither by prompt_logprobs nor by echo with logprobs "
            f"({refused[-1]}): choose tasks that generate their answers, or serve the model with vLLM"
        )

    @property
    def _probe(self) -> list[int]:
        return list(self.tokenizer.encode(PROBE))

    def _written(self, way: Way, tokens: Sequence[int], body: Mapping[str, Any]) -> ServedAnswer:
        if way == "chat":
            message = {"role": "user", "content": self._message(tokens)}
            choice = self._client.choice(CHAT, messages=[message], **body)
            answer = choice.get("message")
            text = answer.get("content") if isinstance(answer, dict) else None
        else:
            prompt = list(tokens) if way == "tokens" else self.tokenizer.decode(self._unled(tokens))
            choice = self._client.choice(COMPLETIONS, prompt=prompt, **body)
            text = choice.get("text")
        if not isinstance(text, str):
            raise RunError(f"{self._client.endpoint.url} answers a completion without a text")
        found = choice.get("token_ids")
        exact = tuple(found) if isinstance(found, list) and all(type(each) is int for each in found) else None
        return ServedAnswer(text, exact, choice.get("finish_reason") == "length")

    def _unled(self, tokens: Sequence[int]) -> list[int]:
        """Without the special tokens that a tokenizer puts before each text, as the server's does."""
        led = self.tokenizer.encode("")
        lead = next((at for at, token in enumerate(led) if led[: at + 1] != list(tokens[: at + 1])), len(led))
        return list(tokens[lead:])

    def _message(self, tokens: Sequence[int]) -> str:
        """The text of a user's message, which the server puts into its own template.

        Raises UnsupportedError if it already is in one.
        """
        own = self._unled(tokens)
        if not set(own).isdisjoint(self.tokenizer.all_special_ids):
            raise UnsupportedError(
                "the server takes chat messages only and puts each into its chat template, and this prompt is in one "
                "already: leave out chat_template, or use a server that takes tokens or text"
            )
        return str(self.tokenizer.decode(own))

    def _tokens(self, written: ServedAnswer, new_tokens: int) -> list[int]:
        if written.tokens is not None:
            return list(written.tokens)
        tokens = [int(token) for token in self.tokenizer.encode(written.text, add_special_tokens=False)]
        end = self.tokenizer.eos_token_id
        if not written.truncated:
            return tokens if end is None else [*tokens, end]
        fillers = [each for each in self.tokenizer.all_special_ids if each != end]
        fillers = fillers or self.tokenizer.encode(" ", add_special_tokens=False)
        return tokens + fillers[:1] * (new_tokens - len(tokens))

    def _scores(self, scored_by: ScoredBy, tokens: list[int]) -> TokenScores | None:
        """The scores of all tokens but the first, None if the answer does not hold them."""
        body = {"prompt": tokens, **SHORT}
        if scored_by == "prompt_logprobs":
            return _of_prompt(self._client.choice(COMPLETIONS, **body, prompt_logprobs=1).get(scored_by), tokens)
        return _of_echo(self._client.choice(COMPLETIONS, **body, echo=True, logprobs=1).get("logprobs"), len(tokens))

    def _each(self, ask: Any, count: int, at_once: int) -> list[Any]:
        """The answers in order. After an error no further request is sent."""
        with ThreadPoolExecutor(at_once) as threads:
            waiting = [threads.submit(ask, index) for index in range(count)]
            try:
                return [each.result() for each in waiting]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise


def _of_prompt(entries: Any, tokens: Sequence[int]) -> TokenScores | None:
    """vLLM's: for each token what it and the likeliest one got, by token id, with the ranks."""
    if not isinstance(entries, list) or len(entries) != len(tokens):
        return None
    own = [entry.get(str(token)) for entry, token in zip(entries[1:], tokens[1:], strict=True) if entry]
    if len(own) != len(tokens) - 1 or not all(isinstance(each, dict) for each in own):
        return None
    logarithms = [each.get("logprob") for each in own]
    if not numbers(logarithms):
        return None
    return TokenScores(tuple(map(float, logarithms)), tuple(each.get("rank") == 1 for each in own))


def _of_echo(found: Any, count: int) -> TokenScores | None:
    """OpenAI's: the prompt's tokens, of which the first has no probability, and then what was written."""
    if not isinstance(found, dict):
        return None
    logarithms, tops = found.get("token_logprobs"), found.get("top_logprobs")
    if not isinstance(logarithms, list) or not isinstance(tops, list) or min(len(logarithms), len(tops)) < count:
        return None
    own, best = logarithms[1:count], tops[1:count]
    if not numbers(own) or not all(isinstance(each, dict) and each and numbers(list(each.values())) for each in best):
        return None
    likeliest = (value >= max(each.values()) for value, each in zip(own, best, strict=True))
    return TokenScores(tuple(map(float, own)), tuple(likeliest))


def sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' generation settings as fields of the API. Raises UnsupportedError for others."""
    other = sorted(settings.keys() - SAMPLING)
    if other:
        raise UnsupportedError(f"a server is not asked for {', '.join(other)}; it knows {', '.join(sorted(SAMPLING))}")
    if not settings.get("do_sample"):
        return {"temperature": 0}
    return {name: value for name, value in settings.items() if name != "do_sample"}


def imports() -> None:
    import urllib3  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401


def load(request: LoadRequest, params: EndpointParams) -> EndpointModel:
    """Asks the server for its model. Raises RunError if it does not answer, or lacks the model."""
    client = OpenAIClient(_served(request), params.timeout, params.retries, params.concurrency)
    listed = client.served()
    tokenizer = load_tokenizer(request)
    if tokenizer is None:
        raise UnsupportedError("a server is asked in text, and the recipe's model has no tokenizer")
    return EndpointModel(client, tokenizer, _context(request, listed), params.concurrency)


def _context(request: LoadRequest, listed: Mapping[str, Any]) -> int | None:
    """The longest text: a server must have room for the token that it writes, and for the one that is scored last."""
    own, told = read_directory(request.path).context_length, listed.get("max_model_len")
    known = [each for each in (own, told) if isinstance(each, int) and each > 2]
    return min(known) - 2 if known else None


@contextmanager
def serve(request: LoadRequest, params: EndpointParams, folder: Path) -> Iterator[Endpoint]:
    """The user's own server, which goes on. See ``Serves``."""
    endpoint = _served(request)
    client = OpenAIClient(endpoint, params.timeout, params.retries)
    client.served()
    yield replace(endpoint, metrics_url=client.metrics_url())


def _served(request: LoadRequest) -> Endpoint:
    if request.served is None:
        raise HarnessError("the engine endpoint was to load a variant that no server has")
    return request.served


ENDPOINT = Engine(
    name="endpoint",
    version=1,
    writing_version=2,  # 1 gave samples of consecutive seeds the same noise, and left special tokens out of texts
    summary="a server with OpenAI's API that you run: answers, log-likelihoods if it gives them, load",
    capabilities=frozenset({"completes", "scores"}),
    reads=(SERVED_FORMAT,),
    imports=imports,
    load=load,
    params=EndpointParams,
    packages=("transformers", "tokenizers"),
    serve=serve,
    remote=True,
)
