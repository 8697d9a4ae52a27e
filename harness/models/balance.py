"""Which outputs AWQ may scale in a mixture's layer: those that only known linear layers read.

AWQ multiplies columns of weights before it rounds them, and divides what the layers read by the same factors, in the
module before. The model computes the same only if all readers are multiplied and only products stand between. Libraries
know that of dense models. Of mixtures they leave out the router, which reads what the experts read and would choose
others; or they divide what up projections give, to which gpt-oss adds 1 before it multiplies.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SHIFTED = frozenset({"gpt_oss"})
"""The types whose experts limit what up projections give, and add to it."""
_READER = re.compile(r"mlp\.((experts\.\d+|shared_experts)\.)?(gate_proj|up_proj)")
_DOWN = re.compile(r"mlp\.((experts\.\d+|shared_experts)\.)?down_proj")
_ROUTERS = ("mlp.gate", "mlp.router")


@dataclass(frozen=True)
class Balance:
    """Dividing the channels that ``source`` gives and multiplying the columns that read them changes nothing.

    ``readers`` are linear layers, ``router`` also reads them and is never quantized (empty: there is none). ``block``
    computes with all of them (empty: there is one reader). Names are those below a decoder layer.
    """

    source: str
    readers: tuple[str, ...]
    router: str = ""
    block: str = ""


def balances(layer: Any, model_type: str) -> Iterator[Balance]:
    """Those of a decoder layer whose experts are linear layers, or which has none, of a type in ``scope.TRIED``."""
    names = [name for name, _ in layer.named_modules()]
    yield from _of_attention(layer, {name.removeprefix("self_attn.") for name in names})
    readers = tuple(name for name in names if _READER.fullmatch(name))
    router = next((name for name in _ROUTERS if name in names), "")
    yield Balance("post_attention_layernorm", readers, router, "mlp")
    if model_type not in _SHIFTED:
        for name in names:
            if _DOWN.fullmatch(name):
                yield Balance(name.replace("down_proj", "up_proj"), (name,))


def _of_attention(layer: Any, names: set[str]) -> Iterator[Balance]:
    first = ("q_proj", "q_a_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa")
    readers = tuple(f"self_attn.{name}" for name in first if name in names)
    yield Balance("input_layernorm", readers, block="self_attn")
    for latent in ("q", "kv"):
        if f"{latent}_a_layernorm" in names:
            yield Balance(f"self_attn.{latent}_a_layernorm", (f"self_attn.{latent}_b_proj",))
    if "v_proj" in names and layer.self_attn.v_proj.out_features == layer.self_attn.o_proj.in_features:
        yield Balance("self_attn.v_proj", ("self_attn.o_proj",))
