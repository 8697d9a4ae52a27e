"""bitsandbytes LLM.int8() (Dettmers et al., arXiv:2208.07339).

Weights and activations in int8 per row; columns with an activation above ``threshold`` stay in
float16. Which columns those are depends on the batch, so it is run in a fixed layout.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from harness.core.method import Method, MethodParams, Setting


class BnbInt8Params(MethodParams):
    """``threshold`` of an outlier activation; 0 keeps no outlier column."""

    threshold: Annotated[float, Field(ge=0)] = 6.0


def enable() -> None:
    import bitsandbytes  # noqa: F401


def _config(params: BnbInt8Params, setting: Setting) -> object:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=True,
        llm_int8_threshold=params.threshold,
        llm_int8_skip_modules=list(setting.untouched),
    )


BNB_INT8 = Method(
    name="bnb-int8",
    version=1,
    summary="bitsandbytes LLM.int8(): int8 weights and activations, outlier columns in float16",
    params=BnbInt8Params,
    packages=("bitsandbytes",),
    extra="bnb",
    enable=enable,
    kernel="packed",
    load_config=_config,
    bits_per_weight=lambda params, plain_bits, width: 8 + 32 / width,
    batch_dependent=True,
)
