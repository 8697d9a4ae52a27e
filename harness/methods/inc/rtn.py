"""neural-compressor's round to nearest: integer weights without calibration."""

from __future__ import annotations

from harness.core.method import Method
from harness.methods.inc import driver as inc

INC_RTN = Method(
    name="inc-rtn",
    version=1,
    summary="neural-compressor's round to nearest, packed when stored, dense when run",
    params=inc.IncParams,
    packages=inc.PACKAGES,
    extra=inc.EXTRA,
    quantize=lambda job: inc.quantize(job, "RTNConfig", {}, calibrated=False),
    enable=inc.enable,
    needs=inc.needs,
    overrides=True,
    kernel="plain",
    loaded="both",
    bits_per_weight=inc.bits_per_weight,
    beside=lambda params, plain_bits, shape: inc.beside(shape),
    run_dtype=lambda params, dtype: inc.DTYPE,
)
