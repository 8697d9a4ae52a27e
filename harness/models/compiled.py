"""Which quantized layers run on CUDA kernels that a library compiles when a model first runs.

It takes nvcc, ninja and a C++ compiler (``torch.utils.cpp_extension.load``). Where one of them is absent, these layers
do not fall back to another kernel: they fail. The rules are those of gptqmodel 7.6 (``MarlinLinear``,
``AwqMarlinLinear``: what its automatic choice takes first on a GPU), auto-round 0.15, which prefers gptqmodel's Marlin
where it is installed, and optimum-quanto 0.2.7 (``quanto::unpack``, ``MarlinF8QBytesTensor``). They were read, and not
seen on a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from harness.core.format import Codes

GPTQMODEL, QUANTO = "gptqmodel", "optimum-quanto"
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "nvcc": "NVIDIA's CUDA toolkit, of the version that torch was built for",
        "ninja": "pip install ninja",
        "c++": "a C++ compiler, Debian: apt install g++",
    }
)
"""Where the programs that compile kernels come from."""
HALVES = ("float16", "bfloat16")
MARLIN_GROUPS = (32, 64, 128)
MARLIN_CAPABILITY = (8, 0)
"""Marlin also runs on 7.5, in float16 and for GPTQ alone; that is left to the library."""


def compiled_by(codes: Codes, dtype: str, capability: tuple[int, int]) -> str | None:
    """The package that compiles the kernels of these codes for a model that runs in ``dtype``; None if none does.

    None also where it is not known for certain.
    """
    if codes.quant_method in ("gptq", "awq", "auto-round"):
        return GPTQMODEL if dtype in HALVES and capability >= MARLIN_CAPABILITY and _is_marlin(codes) else None
    if codes.quant_method == "quanto" and _is_compiled_quanto(codes, dtype, capability):
        return QUANTO
    return None


def _is_marlin(codes: Codes) -> bool:
    grouped = codes.group == "channel" or (codes.group == "group" and codes.group_size in MARLIN_GROUPS)
    if codes.quant_method == "awq":
        return grouped and codes.bits == 4
    return grouped and codes.bits in (4, 8) and not codes.asymmetric


def _is_compiled_quanto(codes: Codes, dtype: str, capability: tuple[int, int]) -> bool:
    """int2 and int4 are unpacked by a compiled kernel, unless torch's own one multiplies int4 in bfloat16."""
    if codes.number == "float":
        return dtype in HALVES and capability >= MARLIN_CAPABILITY
    return codes.bits == 2 or (codes.bits == 4 and dtype in ("float32", "float16"))


def uncompiled(package: str, absent: Sequence[str]) -> str:
    """What is absent to compile a package's kernels, and where it comes from."""
    sources = "; ".join(f"{name}: {SOURCES[name]}" for name in absent)
    return (
        f"{package} compiles its CUDA kernels when a model first runs, which needs {' and '.join(absent)} ({sources})"
    )
