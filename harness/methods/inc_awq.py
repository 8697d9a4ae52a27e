"""neural-compressor's AWQ (Lin et al., arXiv:2306.00978): columns scaled by how large their inputs are, then clipped.

Each layer keeps the factors of its input and multiplies by them while running; nothing is folded into other layers.
"""

from __future__ import annotations

from harness.contracts import Method
from harness.libraries import inc

FACTOR_BITS = 32


def _bits(params: inc.IncParams, plain_bits: float, width: int) -> float:
    """The factors are as many as columns: of a square matrix, one for every ``width`` weights."""
    return inc.bits_per_weight(params, plain_bits, width) + FACTOR_BITS / width


INC_AWQ = Method(
    name="inc-awq",
    version=1,
    summary="neural-compressor's AWQ, factors applied while running, packed when stored, dense when run",
    params=inc.IncParams,
    packages=inc.PACKAGES,
    extra=inc.EXTRA,
    quantize=lambda job: inc.quantize(job, "AWQConfig", {}, calibrated=True),
    enable=inc.enable,
    calibrated=lambda params: True,
    needs=inc.needs,
    overrides=True,
    kernel="plain",
    bits_per_weight=_bits,
    run_dtype=lambda params, dtype: inc.DTYPE,
)
