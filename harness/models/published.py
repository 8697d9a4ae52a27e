"""Already quantized checkpoints: the contents of their ``quantization_config``, and what loading them requires."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.format import Codes
from harness.core.model import ModelRef
from harness.core.site import Site
from harness.models import headers

READERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gptq": ("gptqmodel", "optimum"),
        "awq": ("gptqmodel",),
        "auto-round": ("auto-round",),
        "bitsandbytes": ("bitsandbytes",),
        "compressed-tensors": ("compressed-tensors",),
        "fp8": (),
        "mxfp4": (),
        "quanto": ("optimum-quanto",),
        "quark": ("amd-quark",),
        "torchao": ("torchao",),
        "qharness-rtn": (),
    }
)
"""The supported quant_method values, and the packages that transformers needs for each."""


def quantization_config(folder: Path) -> dict[str, Any]:
    """The quantization settings in a checkpoint's config.json; empty if there are none."""
    found = headers.read_config(folder).get("quantization_config") or {}
    return found if isinstance(found, dict) else {}


def codes(config: Mapping[str, Any]) -> Codes:
    """How a checkpoint with this ``quantization_config`` stores its weights; only its method where that is unknown."""
    return Codes(str(config.get("quant_method")))


def shown(config: Mapping[str, Any]) -> str:
    """A quantization config in one line: the method, then every scalar value."""
    short = {key: value for key, value in config.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in short.items())


def readers(ref: ModelRef) -> tuple[str, ...]:
    """The packages that determine what a quantized checkpoint computes when transformers loads it."""
    return READERS.get(ref.native_quantization or "", ()) if ref.kind in ("directory", "hub") else ()


def missing(method: str, site: Site) -> str | None:
    """What the site lacks to load a checkpoint of that quant_method, and the command that installs it, or None."""
    absent = [package for package in READERS[method] if site.version(package) is None]
    return (
        f"{', '.join(absent)} is not installed; a {method} checkpoint needs it: pip install 'qharness[all]'"
        if absent
        else None
    )
