"""What NVIDIA's data sheets say of its GPUs: memory bandwidth, and dense products per second by dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

TERA = 1e12
GIGA = 1e9
HALF, INT8, FP8 = "bfloat16", "int8", "float8_e4m3fn"
GEFORCE = 0.2
"""The clock margin of GeForce cards: boards of other makers are sold with up to some 10% more than NVIDIA's."""


@dataclass(frozen=True)
class DataSheet:
    """Of one product: bytes per second, and dense operations per second by torch's name of the dtype.

    A data sheet that counts with sparsity states twice these rates. GeForce cards have theirs with accumulation in
    float32, as torch multiplies. ``clock_margin`` is how far the clock may exceed that of the rates, as a fraction: a
    data centre's GPU never does, a GeForce card raises it as far as power and heat allow.
    """

    product: str
    bandwidth_byte_per_s: float
    op_per_s: Mapping[str, float] = field(default_factory=dict)
    clock_margin: float = 0.0


def _sheet(product: str, gigabyte_per_s: float, margin: float = 0.0, **tera: float) -> DataSheet:
    names = {"half": HALF, "int8": INT8, "fp8": FP8}
    rates = {names[name]: rate * TERA for name, rate in tera.items()}
    return DataSheet(product, gigabyte_per_s * GIGA, rates, margin)


SHEETS = (
    (r"\bB200\b", _sheet("B200", 8000, half=2250, int8=4500, fp8=4500)),
    (r"\bH200 NVL", _sheet("H200 NVL", 4800, half=835, int8=1671, fp8=1671)),
    (r"\bH200\b", _sheet("H200 SXM", 4800, half=989, int8=1979, fp8=1979)),
    (r"H100 NVL", _sheet("H100 NVL", 3900, half=835, int8=1671, fp8=1671)),
    (r"H100 PCIe", _sheet("H100 PCIe", 2000, half=756, int8=1513, fp8=1513)),
    (r"H100 80GB HBM3", _sheet("H100 SXM", 3350, half=989, int8=1979, fp8=1979)),
    (r"A100.*80GB", _sheet("A100 80GB", 2039, half=312, int8=624)),
    (r"A100.*40GB", _sheet("A100 40GB", 1555, half=312, int8=624)),
    (r"L40S\b", _sheet("L40S", 864, half=362, int8=733, fp8=733)),
    (r"\bL4\b", _sheet("L4", 300, half=121, int8=242, fp8=242)),
    (r"\bA10\b", _sheet("A10", 600, half=125, int8=250)),
    (r"RTX 5090\b", _sheet("RTX 5090", 1792, GEFORCE, half=209.5, int8=838, fp8=419)),
    (r"RTX 4090\b", _sheet("RTX 4090", 1008, GEFORCE, half=165.2, int8=660.6, fp8=330.3)),
    (r"RTX 3090\b(?! Ti)", _sheet("RTX 3090", 936, GEFORCE, half=71, int8=284)),
)
"""By a part of the name that NVML gives them. Slices (MIG) and laptops' chips have other rates."""


def data_sheet(name: str) -> DataSheet | None:
    """The sheet of a GPU by NVML's name of it; None if it is not known here."""
    if re.search(r"\bMIG\b|Laptop|Max-Q|\bD\b", name):
        return None
    return next((sheet for pattern, sheet in SHEETS if re.search(pattern, name)), None)
