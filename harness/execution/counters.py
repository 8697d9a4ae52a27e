"""What a server counts while it is under load, from the page that it shows in Prometheus' text format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from types import MappingProxyType

import urllib3

EVERY_S = 0.5
TIMEOUT_S = 5.0
MAX_PAGE_BYTES = 2**24
OK = 200
_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{[^}]*\})?\s+(\S+)", re.MULTILINE)

COUNTERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "preemptions": ("vllm:num_preemptions_total", "vllm:num_preemptions"),
        "prefix_cache_queries": ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries"),
        "prefix_cache_hits": ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits"),
    }
)
"""By our name, the names that servers give to what only grows."""
GAUGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "cache_use": ("vllm:kv_cache_usage_perc", "llamacpp:kv_cache_usage_ratio"),
        "running": ("vllm:num_requests_running", "llamacpp:requests_processing"),
        "waiting": ("vllm:num_requests_waiting", "llamacpp:requests_deferred"),
    }
)
"""By our name, the names of what rises and falls; a share lies between 0 and 1."""
SHARES = frozenset(GAUGES["cache_use"])


@dataclass
class Counted:
    """By our names: how far each counter rose in the meantime, and the highest of each gauge that was seen."""

    risen: dict[str, float] = field(default_factory=dict)
    highest: dict[str, float] = field(default_factory=dict)


@contextmanager
def counting(url: str | None) -> Iterator[Counted]:
    """Reads the page before, after, and every half second between; what it does not have is not counted."""
    found = Counted()
    if url is None:
        yield found
        return
    before, ended = read(url), Event()

    def watch() -> None:
        while not ended.wait(EVERY_S):
            _note(found, read(url))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        after = read(url)
        _note(found, after)
        for name, names in COUNTERS.items():
            first, last = _value(before, names), _value(after, names)
            if first is not None and last is not None:
                found.risen[name] = last - first


def read(url: str) -> dict[str, float]:
    """The samples of a page, summed over their labels, and of shares the largest; empty if it cannot be read.

    No redirection is followed, and no proxy of the environment used: only the server itself is asked.
    """
    try:
        page = urllib3.request("GET", url, redirect=False, retries=False, timeout=TIMEOUT_S, preload_content=False)
        with page:
            text = page.read(MAX_PAGE_BYTES).decode("utf-8", "replace") if page.status == OK else ""
    except (OSError, urllib3.exceptions.HTTPError):
        return {}
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        try:
            number = float(value)
        except ValueError:
            continue
        if math.isfinite(number):
            known = sums.get(name, 0.0)
            sums[name] = max(known, number) if name in SHARES else known + number
    return sums


def _note(found: Counted, page: Mapping[str, float]) -> None:
    for name, names in GAUGES.items():
        value = _value(page, names)
        if value is not None:
            found.highest[name] = max(value, found.highest.get(name, value))


def _value(page: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    return next((page[name] for name in names if name in page), None)
