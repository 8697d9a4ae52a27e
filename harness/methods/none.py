"""No quantization: the model as it is, or cast to another float format."""

from __future__ import annotations

from typing import Literal

from harness.core.method import Method, MethodParams


class NoneParams(MethodParams):
    """``dtype`` the model runs in; ``model`` uses that of the recipe's model entry."""

    dtype: Literal["model", "float32", "float16", "bfloat16"] = "model"


def _bits(params: NoneParams, plain_bits: float, width: int) -> float:
    return {"model": plain_bits, "float32": 32.0}.get(params.dtype, 16.0)


NONE = Method(
    name="none",
    version=1,
    summary="the unquantized model, or its weights cast to float32, float16 or bfloat16",
    params=NoneParams,
    bits_per_weight=_bits,
    run_dtype=lambda params, dtype: dtype if params.dtype == "model" else params.dtype,
)
