"""Asks torch itself whether it can use cuda:0: ``python cuda_probe.py ANSWER`` writes a JSON object to that file.

It runs by its path in interpreters that do not have the harness: it needs the standard library and torch alone.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

SIZE = 64
"""Rows and columns; ``_int_mm`` needs more than 16 rows and multiples of 8, ``_scaled_mm`` multiples of 16."""
MAX_MESSAGE = 300

Rows = list[list[int]]


def facts() -> dict[str, Any]:
    """What torch says; ``error`` is its message where cuda:0 cannot be used."""
    try:
        torch: Any = import_module("torch")
    except Exception as error:  # noqa: BLE001 - whatever an import raises is the answer
        return {"error": _message(error)}
    published = getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", {})
    here = "aarch64" if platform.machine().lower() == "aarch64" else "x86_64"
    answer: dict[str, Any] = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "available": bool(torch.cuda.is_available()),
        "architectures": list(torch.cuda.get_arch_list()),
        "builds": {cuda: [f"sm_{each}" for each in sorted(by[here])] for cuda, by in published.items() if here in by},
        "error": None,
        "products": {},
    }
    if torch.version.cuda is None:
        return answer
    try:
        torch.cuda.init()
        properties = torch.cuda.get_device_properties(0)
    except Exception as error:  # noqa: BLE001 - torch's message says why the GPU cannot be used
        return answer | {"error": _message(error)}
    answer |= {"capability": [properties.major, properties.minor], "uuid": str(properties.uuid)}
    return answer | {"products": products(torch, "cuda:0")}


def products(torch: Any, device: str) -> dict[str, dict[str, Any]]:
    """One small product per dtype: torch's message if it ``raised``, and whether the result was ``correct``.

    Every entry is an integer of -2 to 2, so every dtype holds the products, at most 256, exactly: nothing is rounded.
    """
    left, right = operands()
    expected = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in right] for row in left]
    one = [1.0]

    def plain(dtype: Any) -> Any:
        a, b = (torch.tensor(rows, dtype=dtype).to(device) for rows in (left, right))
        return a @ b.t()

    def int8() -> Any:
        a, b = (torch.tensor(rows, dtype=torch.int8).to(device) for rows in (left, right))
        return torch._int_mm(a, b.t())

    def float8() -> Any:
        narrow = torch.float8_e4m3fn
        a, b = (torch.tensor(rows, dtype=torch.float32).to(narrow).to(device) for rows in (left, right))
        scale = torch.tensor(one, dtype=torch.float32).to(device)
        return torch._scaled_mm(a, b.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)

    tries: dict[str, Callable[[], Any]] = {
        "float32": lambda: plain(torch.float32),
        "float16": lambda: plain(torch.float16),
        "bfloat16": lambda: plain(torch.bfloat16),
        "int8": int8,
        "float8": float8,
    }
    return {dtype: _tried(multiply, expected) for dtype, multiply in tries.items()}


def operands() -> tuple[Rows, Rows]:
    """The left matrix, and the transpose of the right one; neither is symmetric."""
    span = range(SIZE)
    left = [[(i * i + 3 * i * j + j) % 5 - 2 for j in span] for i in span]
    return left, [[(2 * i + i * j * j + 1) % 5 - 2 for i in span] for j in span]


def _tried(multiply: Callable[[], Any], expected: Rows) -> dict[str, Any]:
    try:
        return {"raised": None, "correct": multiply().cpu().tolist() == expected}
    except Exception as error:  # noqa: BLE001 - a dtype that this GPU cannot multiply is an answer
        return {"raised": _message(error), "correct": False}


def _message(error: BaseException) -> str:
    return ((str(error).strip() or type(error).__name__).splitlines()[0])[:MAX_MESSAGE]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts()), encoding="utf-8")
