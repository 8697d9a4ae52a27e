"""A server with OpenAI's API whose model is a rule, so that every answer is known, and which can be told to fail.

Its tokens are those of a tokenizer. After a token the likeliest one is ``successor`` of it, with probability 1/2; all
others share the rest.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, bytes]
KEY = "sk-of-this-test-0123456789"


def json_answer(content: object, status: int = 200) -> Answer:
    return status, json.dumps(content).encode()


@dataclass
class FakeOpenAI:
    """``gives`` names what it offers: ``tokens`` and ``text`` prompts, ``chat``, ``prompt_logprobs``, ``echo``, and
    ``token_ids`` of what it writes, without which it refuses to be asked for them.

    ``fault`` may answer in its place, given the path and how many requests came before. ``key`` is what it wants.
    """

    tokenizer: Any
    model: str = "fake"
    gives: frozenset[str] = frozenset({"tokens", "text", "prompt_logprobs", "echo"})
    fault: Callable[[str, int], Answer | None] = lambda path, before: None
    key: str | None = None
    max_model_len: int | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def successor(self, token: int) -> int:
        return (7 * token + 3) % len(self.tokenizer)

    def logarithm(self, before: int, token: int) -> float:
        likely = token == self.successor(before)
        return math.log(0.5) if likely else math.log(0.5 / (len(self.tokenizer) - 1))

    @contextmanager
    def running(self) -> Iterator[FakeOpenAI]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                before = len(fake.asked)
                fake.asked.append((self.path, body))
                wrong = fake.key is not None and self.headers.get("Authorization") != f"Bearer {fake.key}"
                refusal = f"Incorrect key: {self.headers.get('Authorization')}"
                status, content = (
                    json_answer({"error": refusal}, 401)
                    if wrong
                    else fake.fault(self.path, before) or fake.answer(self.path, body)
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            entry = {"id": self.model} | ({"max_model_len": self.max_model_len} if self.max_model_len else {})
            return json_answer({"data": [entry]})
        if path == "/metrics":
            return 200, b"# TYPE requests counter\nrequests 1\n"
        if body.get("model") != self.model:
            return json_answer({"error": f"no model {body.get('model')}"}, 404)
        if body.get("return_token_ids") and "token_ids" not in self.gives:
            return json_answer({"error": "unknown field"}, 400)
        if path == "/v1/chat/completions" and "chat" in self.gives:
            choice = self.written(self.tokenizer.encode(body["messages"][-1]["content"]), body)
            return json_answer({"choices": [{**choice, "message": {"content": choice["text"]}}]})
        if path != "/v1/completions":
            return json_answer({"error": "no such path"}, 404)
        prompt = body["prompt"]
        if ("tokens" if isinstance(prompt, list) else "text") not in self.gives:
            return json_answer({"error": "prompt of this type"}, 400)
        tokens = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt)
        choice = self.written(tokens, body)
        if "prompt_logprobs" in body and "prompt_logprobs" in self.gives:
            choice["prompt_logprobs"] = [None, *map(self._ranked, tokens, tokens[1:])]
        if body.get("echo") and "echo" in self.gives:
            choice["logprobs"] = self._echoed(tokens)
        return json_answer({"choices": [choice]})

    def written(self, tokens: Sequence[int], body: dict[str, Any]) -> dict[str, Any]:
        """What follows the tokens, until one of the strings ``stop`` comes or ``max_tokens`` are written."""
        written: list[int] = []
        while len(written) < body["max_tokens"]:
            written.append(self.successor((written or tokens)[-1]))
            text = str(self.tokenizer.decode(written))
            for stop in body.get("stop", ()):
                if stop in text:
                    return {"text": text.partition(stop)[0], "finish_reason": "stop"} | self._ids(written)
        return {"text": text, "finish_reason": "length"} | self._ids(written)

    def _ids(self, written: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": list(written)} if "token_ids" in self.gives else {}

    def _ranked(self, before: int, token: int) -> dict[str, Any]:
        best = self.successor(before)
        entry = {str(best): {"logprob": self.logarithm(before, best), "rank": 1}}
        return {str(token): {"logprob": self.logarithm(before, token), "rank": 2}} | entry

    def _echoed(self, tokens: Sequence[int]) -> dict[str, Any]:
        """With the token that is written after the prompt, as OpenAI's API has it."""
        whole = [*tokens, self.successor(tokens[-1])]
        pairs = list(itertools.pairwise(whole))
        tops = [{f"t{self.successor(before)}": self.logarithm(before, self.successor(before))} for before, _ in pairs]
        return {"token_logprobs": [None, *(self.logarithm(*pair) for pair in pairs)], "top_logprobs": [None, *tops]}
