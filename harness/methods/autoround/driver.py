"""auto-round: one way to drive it with ready token ids, to save what it made, and to read it back.

The library normally takes the name of a data set, drops rows that are too short and looks for padding by itself; here
it gets rows of ids with their masks, and ``seqlen`` is their length, so that it uses every one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.method import QuantizeJob
from harness.models.loading import device_map

PACKAGES = ("auto-round",)
EXTRA = "autoround"
ROWS = 8
"""Rows of calibration text that go through the model together, and into one step of its optimizer: its own default."""
WORD = 32
"""Layers of another width than a multiple of this one are left unquantized by the library, silently."""
PLAIN: Mapping[str, int | str] = {"bits": 16, "data_type": "float", "act_bits": 16}
"""How the library's configuration of a layer says that it is to stay as it is."""


def enable() -> None:
    """Imports what reads the checkpoints and lets its PyTorch layers run in float32.

    They multiply in the dtype of their input, whichever it is; but the library's table of kernels leaves float32
    out, and it would turn the whole model, embeddings included, into float16 after loading.
    """
    from auto_round.inference.backend import BackendInfos

    for name in ("auto_round:torch", "auto_round:torch_zp"):
        dtypes = BackendInfos[name].compute_dtype
        if "float32" not in dtypes:
            dtypes.append("float32")


def prepare(job: QuantizeJob[Any], scheme: str, algorithm: Any, layers: Mapping[str, Mapping[str, Any]]) -> Any:
    """An AutoRound of the job's model and calibration set; ``layers`` have another configuration than the rest.

    It works in float32 whatever the job's dtype is (``amp=False``): in bfloat16, which it prefers, the model that it
    leaves in memory is rounded once more than the checkpoint.
    """
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    calibration = job.calibration_set
    rounding = AutoRound(
        job.load(),
        scheme=scheme,
        alg_configs=algorithm,
        # Demanded of a model in memory, but then used for guessing what is padding, and that by ids alone.
        tokenizer=AutoTokenizer.from_pretrained(job.source, trust_remote_code=job.trust_remote_code),
        dataset=[
            {"input_ids": torch.tensor([row]), "attention_mask": torch.tensor([mask])}
            for row, mask in zip(calibration.tokens, calibration.masks, strict=True)
        ],
        seqlen=calibration.length,
        nsamples=len(calibration.tokens),
        batch_size=min(ROWS, len(calibration.tokens)),
        device_map=device_map(job.device),
        seed=job.seed,
        layer_config={**{name: dict(PLAIN) for name in job.untouched}, **{n: dict(own) for n, own in layers.items()}},
        low_cpu_mem_usage=False,  # it would write to a folder of its own in the current one
        amp=False,
    )
    # Without one, only what repeats at the end of a row counts as padding, whatever its id.
    rounding.model_context.tokenizer = None
    return rounding


def save(rounding: Any, job: QuantizeJob[Any]) -> None:
    """Packs the quantized model in place and writes it in auto-round's own format; the rest has the job's dtype."""
    import torch

    for module in rounding.model_context.model.modules():
        if not hasattr(module, "scale"):  # else it is a matrix to pack, which wants all of its digits
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(getattr(torch, job.dtype))
    rounding.formats = rounding.compress_context.formats = rounding._resolve_format_string("auto_round")
    for chosen in rounding.formats:
        if type(chosen.backend).__name__ == "AutoAWQFormat":
            # 4 bits with zero points go to AWQ's layout, whose packing fails in 0.15.1 (WQLinear_GEMM takes no
            # weight_dtype); auto-round's own layout, which other widths with zero points get, holds them as well.
            chosen.backend = None
    rounding.save_quantized(str(job.out), inplace=True)
