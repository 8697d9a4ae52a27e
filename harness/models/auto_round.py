"""Checkpoints of auto-round: in the dtype that they are asked for, and which of them load part by part.

After loading, the library converts a whole model, embeddings, norms and head included, if its table of kernels does not
name the model's dtype for one of its layers: on a CPU float32 to float16. Its layers in PyTorch need no such thing.
They multiply in the dtype of their inputs, or convert those and give back what they got (AWQ's layout, by gptqmodel).
What a kernel for GPUs does not multiply is still converted; ``harness.execution.checks.dtype`` labels that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANT_METHOD = "auto-round"
IN_PYTORCH = frozenset({"auto_round:torch", "auto_round:torch_zp", "gptqmodel:awq_torch"})
"""The library's names of its layers in PyTorch, by the layout of their codes: its own, GPTQ's and AWQ's."""
DTYPES = ("float32", "float16", "bfloat16")
LAYOUT, DEFAULT_LAYOUT = "packing_format", "auto_round:auto_gptq"
STREAMED_LAYOUTS = frozenset(
    {
        *("auto", "auto_round:auto_gptq", "auto_round:gptq", "auto_round", "auto_round:gptqmodel"),
        *("auto_round:auto_awq", "auto_round:awq", "auto_round:fp8_static"),
    }
)
"""Layouts of integers and float8 that load part by part, bit by bit as they load whole, by all of their names."""
ROTATIONS = ("rotation_config", "spinquant_config")


def keep_dtype() -> None:
    """From now on in this process, the library leaves a model in its dtype if layers in PyTorch multiply it."""
    from auto_round.inference.backend import BackendInfos

    for name in IN_PYTORCH & BackendInfos.keys():
        BackendInfos[name].compute_dtype = list(DTYPES)


def unstreamed(stored: Mapping[str, Any]) -> str | None:
    """Why a checkpoint with this ``quantization_config`` is not loaded part by part; None if it is."""
    if any(stored.get(name) for name in ROTATIONS):
        return "auto-round sets up this checkpoint's rotations in a model that is in memory as a whole"
    layout, number = str(stored.get(LAYOUT) or DEFAULT_LAYOUT), str(stored.get("data_type") or "int")
    if layout not in STREAMED_LAYOUTS or number.startswith(("mx", "nv")):
        return (
            f"auto-round's checkpoints of {number} in the layout {layout} are not known to load part by part as they "
            "load whole"
        )
    return None
