"""Already quantized checkpoints: the contents of their ``quantization_config``, and what loading them requires."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.core.format import Activations, Codes, Number
from harness.core.model import ModelRef
from harness.core.site import Machine, Site
from harness.models import auto_round, compressed, headers

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

LOADING_VERSIONS: Mapping[str, int] = MappingProxyType({"auto-round": 2})  # 1 computed in the library's dtype
"""By quant_method, for those that were once loaded in another way than now."""

STREAMED = frozenset(
    {
        *("gptq", "awq", "auto-round", "bitsandbytes", "compressed-tensors"),
        *("fp8", "mxfp4", "qharness-rtn", "torchao"),
    }
)
"""The quant_method values whose checkpoints load part by part, bit by bit as they load whole: each has a test."""


@dataclass(frozen=True)
class HubKernel:
    """A kernel on the hub with which transformers multiplies a checkpoint's codes on a GPU; otherwise it unpacks them.

    ``capability`` is the GPU's lowest compute capability for it. ``triton`` is the oldest release of triton, None if
    transformers does not ask for one. ``required`` says that transformers fails on such a GPU without the package
    ``kernels``, where it unpacks other checkpoints.
    """

    repository: str
    version: int
    capability: tuple[int, int]
    triton: tuple[int, int] | None = None
    required: bool = False


HUB_KERNELS: Mapping[str, HubKernel] = MappingProxyType(
    {
        "fp8": HubKernel("kernels-community/finegrained-fp8", 4, (8, 9), required=True),
        "mxfp4": HubKernel("kernels-community/gpt-oss-triton-kernels", 1, (7, 5), triton=(3, 4)),
    }
)
"""By quant_method: ``_HUB_KERNEL_MAPPING``, ``quantizer_finegrained_fp8.py`` and ``quantizer_mxfp4.py`` of
transformers 5.17."""
STREAMED_ON_CPU = frozenset({*HUB_KERNELS, auto_round.QUANT_METHOD})
"""What loads part by part and is multiplied with other kernels on a GPU, which were never tried part by part."""
KERNELS_FROM, KERNELS_BELOW = (0, 16), (0, 17)
"""The releases of the package ``kernels`` that transformers 5.17 uses (``KERNELS_MIN_VERSION`` and the maximum)."""
INSTALL_KERNELS = "pip install 'kernels>=0.16,<0.17'"
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


def versions(ref: ModelRef) -> Mapping[str, int]:
    """The version of how a checkpoint of this format is loaded, where that has changed; empty for all others."""
    found = ref.native_quantization or ""
    return {found: LOADING_VERSIONS[found]} if found in LOADING_VERSIONS else {}


def missing(method: str, site: Site) -> str | None:
    """What the site lacks to load a checkpoint of that quant_method, and the command that installs it, or None."""
    absent = [package for package in READERS[method] if site.version(package) is None]
    return (
        f"{', '.join(absent)} is not installed; a {method} checkpoint needs it: pip install 'qharness[all]'"
        if absent
        else None
    )


def hub_kernel(config: Mapping[str, Any], machine: Machine, site: Site) -> HubKernel | None:
    """The kernel from the hub that transformers multiplies this checkpoint's codes with there; None without one."""
    return None if _unused(config, machine, site) else HUB_KERNELS.get(str(config.get("quant_method")))


def missing_kernels(config: Mapping[str, Any], machine: Machine, site: Site) -> str | None:
    """Why transformers fails to multiply this checkpoint's codes there, and the command that helps; None if it can."""
    kernel = HUB_KERNELS.get(str(config.get("quant_method")))
    if kernel is None or not kernel.required or _unpacked_anyway(config, kernel, machine):
        return None
    reason = _without_kernels(site)
    return reason and f"transformers multiplies this checkpoint on this GPU with a kernel from the hub, and {reason}"


def unstreamed(config: Mapping[str, Any], device: str) -> str | None:
    """Why a checkpoint with this ``quantization_config`` is not loaded part by part there; None if it is."""
    method = str(config.get("quant_method"))
    if method not in STREAMED:
        return f"checkpoints quantized by {method} are not known to load part by part as they load whole"
    if method == auto_round.QUANT_METHOD and (reason := auto_round.unstreamed(config)):
        return reason
    return unstreamed_on(method, device)


def unstreamed_on(method: str, device: str) -> str | None:
    """Why what that quant_method stores is not loaded part by part there, if it is elsewhere."""
    if method in STREAMED_ON_CPU and device != "cpu":
        return f"checkpoints quantized by {method} are known to load part by part as they load whole only on a CPU"
    return None


def unpacking(config: Mapping[str, Any], machine: Machine, site: Site) -> str | None:
    """A note that transformers unpacks this checkpoint while loading it there, with the reason; None if it does not.

    Only of methods in ``HUB_KERNELS``.
    """
    reason = None if missing_kernels(config, machine, site) else _unused(config, machine, site)
    return reason and f"transformers unpacks {config.get('quant_method')} into dense matrices while loading: {reason}"


def becomes_dense(config: Mapping[str, Any], machine: Machine, site: Site) -> bool:
    """Whether transformers has dense matrices in memory there, in place of this checkpoint's codes."""
    method = str(config.get("quant_method"))
    if method in HUB_KERNELS:
        return hub_kernel(config, machine, site) is None
    return method == compressed.QUANT_METHOD


def _unused(config: Mapping[str, Any], machine: Machine, site: Site) -> str | None:
    """Why a kernel that the hub has for the checkpoint's method is not used; None if it is, or there is none."""
    kernel = HUB_KERNELS.get(str(config.get("quant_method")))
    if kernel is None:
        return None
    reason = _unpacked_anyway(config, kernel, machine)
    if reason is not None:
        return reason
    if kernel.triton is not None and not _at_least(site.version("triton"), kernel.triton):
        return f"it needs triton {_dotted(kernel.triton)} or later"
    return _without_kernels(site)


def _unpacked_anyway(config: Mapping[str, Any], kernel: HubKernel, machine: Machine) -> str | None:
    """Why a checkpoint is unpacked whatever is installed; None if it is not."""
    if config.get("dequantize") is True:
        return "its quantization_config says so"
    if machine.device != "cuda":
        return "it multiplies the codes on a GPU only"
    if machine.capability is not None and machine.capability < kernel.capability:
        has, needs = _dotted(machine.capability), _dotted(kernel.capability)
        return f"it multiplies the codes from compute capability {needs} on; this GPU has {has}"
    return None


def _without_kernels(site: Site) -> str | None:
    """What is wrong with the package ``kernels``, and the command that helps; None if nothing is."""
    version = site.version("kernels")
    if _at_least(version, KERNELS_FROM) and not _at_least(version, KERNELS_BELOW):
        return None
    fault = "is not installed" if version is None else f"{version} does not suit it"
    return f"kernels {fault}; {INSTALL_KERNELS}"


def _at_least(version: str | None, wanted: tuple[int, int]) -> bool:
    from packaging.version import Version

    return version is not None and Version(version).release[:2] >= wanted


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
