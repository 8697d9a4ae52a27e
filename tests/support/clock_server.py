"""An OpenAI-compatible server with planted latencies: what each answer takes, and when, is known exactly.

It keeps when it received each request and when it sent each token, by the clock that a client on this machine reads.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

MODEL = "clock"
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Answer:
    """``first_s``: from the request to the first token; ``gap_s``: from one sending to the next.

    Each sending has ``burst`` tokens, each in an event of its own or, ``together``, in one event. Without ``tokens`` it
    has as many as the request asks for. A ``status`` other than 200 is sent at once.
    """

    first_s: float = 0.01
    gap_s: float = 0.005
    tokens: int | None = None
    burst: int = 1
    together: bool = False
    status: int = 200


@dataclass
class Served:
    """One request as the server saw it, in seconds of ``time.perf_counter``."""

    number: int
    prompt: str
    received_s: float
    sent_s: list[float] = field(default_factory=list)


Plan = Callable[[int, int], Answer]
"""The answer to a request, by its number and by how many requests are being answered, itself included."""


class ClockServer:
    """``url`` is without ``/v1``; ``served`` are the requests in the order of their arrival.

    ``reused`` counts the requests on a connection that had carried one already. A connection ends with its first
    answer if the client asks for that.
    """

    def __init__(self, plan: Plan, metrics: Callable[[], str] | None = None) -> None:
        self.url = ""
        self.served: list[Served] = []
        self.reused = 0
        self._plan, self._metrics = plan, metrics
        self._active = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """All requests of one connection."""
        last, asked = False, False
        try:
            while not last and (line := (await reader.readline()).decode()):
                _, path, _ = line.split()
                body, last = await self._body(reader)
                fields = ("Connection: close",) if last else ()
                if path.endswith("/completions"):
                    self.reused += asked
                    asked = True
                    await self._complete(json.loads(body), writer, fields)
                else:
                    await self._page(path, writer, fields)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _body(self, reader: asyncio.StreamReader) -> tuple[bytes, bool]:
        """The content of a request, and whether its connection ends with the answer."""
        length, last = 0, False
        while (line := (await reader.readline()).decode().strip()) != "":
            name, _, value = line.lower().partition(":")
            length = int(value) if name == "content-length" else length
            last = last or (name, value.strip()) == ("connection", "close")
        return await reader.readexactly(length), last

    async def _page(self, path: str, writer: asyncio.StreamWriter, fields: Sequence[str]) -> None:
        pages = {"/health": "", "/v1/models": json.dumps({"data": [{"id": MODEL, "root": MODEL, "object": "model"}]})}
        if self._metrics is not None:
            pages["/metrics"] = self._metrics()
        found = pages.get(path)
        _head(writer, 200 if found is not None else 404, f"Content-Length: {len(found or '')}", *fields)
        writer.write((found or "").encode())
        await writer.drain()

    async def _complete(self, request: dict[str, object], writer: asyncio.StreamWriter, fields: Sequence[str]) -> None:
        seen = Served(len(self.served), str(request["prompt"]), time.perf_counter())
        self.served.append(seen)
        self._active += 1
        try:
            answer = self._plan(seen.number, self._active)
            if answer.status != 200:
                _head(writer, answer.status, "Content-Length: 0", *fields)
                await writer.drain()
                return
            tokens = answer.tokens or int(str(request["max_tokens"]))
            _head(writer, 200, "Content-Type: text/event-stream", "Transfer-Encoding: chunked", *fields)
            await self._stream(answer, tokens, seen, writer)
            usage = {"prompt_tokens": len(seen.prompt.split()), "completion_tokens": tokens}
            _event(writer, json.dumps({"choices": [], "usage": usage}))
            _event(writer, "[DONE]")
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        finally:
            self._active -= 1

    async def _stream(self, answer: Answer, tokens: int, seen: Served, writer: asyncio.StreamWriter) -> None:
        """Deadlines are absolute: a late sending does not delay the next."""
        for index, start in enumerate(range(0, tokens, answer.burst)):
            due = seen.received_s + answer.first_s + index * answer.gap_s
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            count = min(answer.burst, tokens - start)
            seen.sent_s += [time.perf_counter()] * count  # before a client can have read it
            for _ in range(1 if answer.together else count):
                text = " a" * (count if answer.together else 1)
                _event(writer, json.dumps({"model": MODEL, "choices": [{"index": 0, "text": text}]}))
            await writer.drain()


def _head(writer: asyncio.StreamWriter, status: int, *fields: str) -> None:
    first = f"HTTP/1.1 {status} {'OK' if status == 200 else 'Service Unavailable'}"
    writer.write("\r\n".join([first, *fields, "", ""]).encode())


def _event(writer: asyncio.StreamWriter, data: str) -> None:
    content = f"data: {data}\n\n".encode()
    writer.write(b"%x\r\n%s\r\n" % (len(content), content))


@contextmanager
def clock_server(plan: Plan, metrics: Callable[[], str] | None = None) -> Iterator[ClockServer]:
    """A server on a free port of this machine, in a thread of its own."""
    server, loop, ready = ClockServer(plan, metrics), asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        listening.close()
        kept = asyncio.all_tasks() - {asyncio.current_task()}  # connections that their clients did not end
        for each in kept:
            each.cancel()
        await asyncio.gather(*kept, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(300), "the server did not start"
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
