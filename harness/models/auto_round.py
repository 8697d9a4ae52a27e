"""Checkpoints of auto-round in the dtype that they are asked for.

After loading, the library converts a whole model, embeddings, norms and head included, if its table of kernels does not
name the model's dtype for one of its layers: on a CPU float32 to float16. Its layers in PyTorch need no such thing.
They multiply in the dtype of their inputs, or convert those and give back what they got (AWQ's layout, by gptqmodel).
What a kernel for GPUs does not multiply is still converted; ``harness.execution.checks.dtype`` labels that.
"""

from __future__ import annotations

QUANT_METHOD = "auto-round"
IN_PYTORCH = frozenset({"auto_round:torch", "auto_round:torch_zp", "gptqmodel:awq_torch"})
"""The library's names of its layers in PyTorch, by the layout of their codes: its own, GPTQ's and AWQ's."""
DTYPES = ("float32", "float16", "bfloat16")


def keep_dtype() -> None:
    """From now on in this process, the library leaves a model in its dtype if layers in PyTorch multiply it."""
    from auto_round.inference.backend import BackendInfos

    for name in IN_PYTORCH & BackendInfos.keys():
        BackendInfos[name].compute_dtype = list(DTYPES)
