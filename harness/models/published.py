"""Already quantized checkpoints: the contents of their ``quantization_config``, and what loading them requires."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.format import Activations, Codes, Number
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
GROUPS = ("tensor", "channel", "group", "block")
"""What may share a scale of weights."""


def quantization_config(folder: Path) -> dict[str, Any]:
    """The quantization settings in a checkpoint's config.json; empty if there are none."""
    found = headers.read_config(folder).get("quantization_config") or {}
    return found if isinstance(found, dict) else {}


def codes(config: Mapping[str, Any]) -> Codes:
    """How a checkpoint with this ``quantization_config`` stores its weights.

    Only the method is known of other methods, of layers that differ, of blocks that are no squares, and where a value
    is not what its writer defines: what a checkpoint holds is then seen when it is loaded.
    """
    method = str(config.get("quant_method"))
    parse = {"compressed-tensors": _compressed, "gptq": _gptq, "awq": _awq, "fp8": _fp8}.get(method)
    return (parse(config) if parse else None) or Codes(method)


def _compressed(config: Mapping[str, Any]) -> Codes | None:
    """compressed-tensors: ``QuantizationConfig`` of compressed_tensors.quantization, if it has one group of layers."""
    groups = config.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    number, bits = _number_and_bits(weights)
    if number is None or bits is None or not isinstance(group, dict) or not isinstance(weights, dict):
        return None
    shared = weights.get("strategy")
    found: Any = {"tensor_group": "group"}.get(str(shared), shared)
    size = weights.get("group_size")
    if found == "block":
        size = _square(weights.get("block_structure"))
    if found not in GROUPS or (found in ("group", "block") and not isinstance(size, int)):
        return None
    return Codes(
        "compressed-tensors",
        number,
        bits,
        found,
        size if found in ("group", "block") else None,
        asymmetric=weights.get("symmetric") is False,
        scattered=weights.get("actorder") in ("group", "dynamic"),
        activations=_activations(group.get("input_activations")),
    )


def _square(block: Any) -> int | None:
    """The rows of a block that has as many columns; None for any other."""
    if not isinstance(block, list) or len(block) != 2 or block[0] != block[1]:
        return None
    return block[0] if isinstance(block[0], int) and block[0] > 0 else None


def _number_and_bits(args: Any) -> tuple[Number | None, int | None]:
    kind, bits = (args.get("type", "int"), args.get("num_bits")) if isinstance(args, dict) else (None, None)
    number: Number | None = kind if kind in ("int", "float") else None
    return number, bits if isinstance(bits, int) else None


def _activations(args: Any) -> Activations | None:
    number, bits = _number_and_bits(args)
    if number is None or bits is None:
        return None
    shared: Any = {"token": "token", "group": "group", "tensor_group": "group"}.get(str(args.get("strategy")), "tensor")
    return Activations(number, bits, shared, dynamic=bool(args.get("dynamic")))


def _gptq(config: Mapping[str, Any]) -> Codes | None:
    """GPTQ's format, as auto-gptq introduced it. ``dynamic`` gives layers settings of their own."""
    bits, size = config.get("bits"), config.get("group_size")
    dynamic = config.get("dynamic") or {}
    own = not isinstance(dynamic, dict) or any(not each.startswith("-:") for each in dynamic)
    if not isinstance(bits, int) or not isinstance(size, int) or own:
        return None
    asymmetric, scattered = config.get("sym") is False, config.get("desc_act") is True
    return Codes.grouped("gptq", bits, "channel" if size == -1 else size, asymmetric, scattered)


def _awq(config: Mapping[str, Any]) -> Codes | None:
    """AWQ's format, as AutoAWQ introduced it."""
    bits, size = config.get("bits", config.get("w_bit")), config.get("group_size", config.get("q_group_size"))
    if not isinstance(bits, int) or not isinstance(size, int):
        return None
    return Codes.grouped("awq", bits, "channel" if size == -1 else size, asymmetric=config.get("zero_point") is True)


def _fp8(config: Mapping[str, Any]) -> Codes | None:
    """float8 as transformers' ``FineGrainedFP8Config`` and vLLM's ``Fp8Config`` read it: in blocks, or by tensor."""
    dynamic, block = config.get("activation_scheme") != "static", config.get("weight_block_size")
    if block is None:
        return Codes("fp8", "float", 8, "tensor", activations=Activations("float", 8, "tensor", dynamic))
    size = _square(block)
    return Codes("fp8", "float", 8, "block", size, activations=Activations("float", 8, "group")) if size else None


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
