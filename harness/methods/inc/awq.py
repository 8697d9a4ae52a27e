"""neural-compressor's AWQ (Lin et al., arXiv:2306.00978): columns scaled by how large their inputs are, then clipped.

Each layer keeps the factors of its input and multiplies by them while running; nothing is folded into other layers.
"""

from __future__ import annotations

from harness.core.method import Method
from harness.methods.inc import driver as inc

FACTOR_BYTES = 4
"""Of each column."""


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
    loaded="both",
    bits_per_weight=inc.bits_per_weight,
    beside=lambda params, plain_bits, shape: inc.beside(shape, FACTOR_BYTES),
    run_dtype=lambda params, dtype: inc.DTYPE,
)
