"""neural-compressor's GPTQ: columns rounded one by one, later ones make up for the error (arXiv:2210.17323)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.core.method import Method
from harness.methods.inc import driver as inc


class IncGptqParams(inc.IncParams):
    """``group_size`` counts the input columns that share a scale, or is ``channel``: one scale per output channel.

    ``symmetric``: no zero point but the middle of the grid, which is stored all the same. ``damping`` is added to the
    diagonal of the Hessian, as a part of its mean.
    """

    damping: Annotated[float, Field(gt=0, lt=1)] = 0.01


INC_GPTQ = Method(
    name="inc-gptq",
    version=1,
    summary="neural-compressor's GPTQ, packed when stored, dense when run",
    params=IncGptqParams,
    packages=inc.PACKAGES,
    extra=inc.EXTRA,
    quantize=lambda job: inc.quantize(job, "GPTQConfig", {"percdamp": job.params.damping}, calibrated=True),
    enable=inc.enable,
    calibrated=lambda params: True,
    needs=inc.needs,
    overrides=True,
    kernel="plain",
    loaded="both",
    bits_per_weight=inc.bits_per_weight,
    beside=lambda params, plain_bits, shape: inc.beside(shape),
    run_dtype=lambda params, dtype: inc.DTYPE,
)
