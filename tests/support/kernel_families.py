"""How the layers of a loaded model multiply, counted."""

from __future__ import annotations

from collections import Counter

from harness.core.capability import KernelFamily, LoadedModel


def families(model: LoadedModel, rows: int = 1) -> Counter[KernelFamily]:
    """The number of layers of each kernel family, if that many rows are multiplied at once."""
    return Counter(product.family for product in model.products(rows).values())
