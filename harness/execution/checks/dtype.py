"""Checks that a loaded variant computes in the dtype that its row says.

A library may convert a whole model while loading it (auto-round), or the inputs of every quantized layer (gptqmodel and
bitsandbytes, on CPUs whose packed codes only a product in bfloat16 can use). Its figures are then also those of this.
"""

from __future__ import annotations

from collections import Counter

from harness.core.capability import ShowsDtype
from harness.execution.checks.kernels import MANY_ROWS
from harness.execution.context import Context

NARROW = ("float16", "bfloat16")
"""What other dtypes are rounded to. Some architectures keep their states in float32 on purpose: no less than asked."""


def label_dtype(context: Context, model: ShowsDtype) -> None:
    """Labels a model that computes in another dtype than it was asked for, and layers that multiply in another one.

    A dtype among the method's own parameters is asked for too.
    """
    params = context.params()
    asked = context.method().run_dtype(params, context.spec.model.dtype)
    if asked == "auto":
        return
    ran = model.states_dtype
    if ran in NARROW and ran != asked:
        context.label("dtype_changed", ran=ran, asked=asked)
        asked = ran
    known = (asked, *params.model_dump().values())
    quantized = {entry.name.removesuffix(".weight") for entry in model.weight_ledger() if entry.quantized}
    rounded = Counter(
        product.dtype
        for name, product in model.products(MANY_ROWS).items()
        if name in quantized and product.dtype in NARROW and product.dtype not in known
    )
    for dtype, layers in rounded.items():
        if dtype is not None:
            context.label("activations_rounded", layers=layers, to=dtype, declared=asked)
