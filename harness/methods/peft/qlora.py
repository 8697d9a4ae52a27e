"""QLoRA (Dettmers et al., arXiv:2305.14314): a low-rank adapter trained on top of a frozen NF4 model.

It uses peft and bitsandbytes. The adapter is trained in float32 on the calibration set's next tokens, on every matrix
in scope. Compared with ``bnb-nf4``, its three results show what training recovers and what later steps cost:
dequantizing alone restores nothing, and merging moves the adapter into 16-bit matrices of the original size.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.core.engine import LoadRequest
from harness.core.format import Codes
from harness.core.method import Beside, Method, MethodParams, QuantizeJob, Steps
from harness.methods.bitsandbytes import bitsandbytes as bnb
from harness.models.loading import device_map, load_transformers

ALPHA = 16
"""The adapter's product is scaled by ALPHA over its rank, as in the paper."""
GRADIENT_NORM = 0.3
BATCH = 4
MAX_RANK = 2**16
"""More than the width of any matrix has no use."""
IGNORED = -100
"""The label of a position that the loss ignores."""
ADAPTER = "adapter"
"""The checkpoint's folder for the adapter; the quantized base lies beside it."""


class QLoraParams(MethodParams):
    """``result`` is what is stored and run.

    ``adapter``: the NF4 model with a separate adapter. ``merged``: the adapter added to the dequantized matrices, in
    the model's dtype, which is what most people publish; nothing in it is quantized. ``dequantized``: the NF4 model's
    matrices in the model's dtype, without training.

    The adapter has rank ``rank``. It is trained for ``steps`` steps of AdamW without weight decay at a constant
    ``learning_rate``, each on 4 rows of the calibration set, or on more if not every row would be seen.
    ``double_quant`` stores the scales of NF4 in 8 bits, as in the paper.
    """

    result: Literal["adapter", "merged", "dequantized"] = "adapter"
    rank: Annotated[int, Field(gt=0, le=MAX_RANK)] = 16
    steps: Steps = 100
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    double_quant: bool = False


def enable() -> None:
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401


def quantize(job: QuantizeJob[QLoraParams]) -> Any:
    import torch
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    result, dtype = job.params.result, getattr(torch, job.dtype)
    if result == "dequantized":
        return _plain(job, _nf4(job).dequantize(dtype=dtype))
    base = _nf4(job)
    if result == "adapter":
        base.save_pretrained(job.out)  # before the first forward pass: a CPU kernel may repack the codes
    trained = get_peft_model(base, _lora(job))
    _train(job, trained)
    if result == "adapter":
        trained.peft_config["default"].base_model_name_or_path = ".."
        trained.save_pretrained(job.out / ADAPTER, save_embedding_layers=False)
        return trained.base_model.model.eval()
    learned = get_peft_model_state_dict(trained, save_embedding_layers=False)
    # peft would round a merged matrix to NF4 once more, so the adapter moves to a dequantized copy of the base
    target = get_peft_model(_nf4(job).dequantize(dtype=dtype), _lora(job))
    set_peft_model_state_dict(target, learned)
    return _plain(job, target.merge_and_unload())


def read(request: LoadRequest) -> Any:
    """Loads a plain checkpoint, or an NF4 one with the adapter beside it; for inference, not for training."""
    model = load_transformers(request)
    if (request.path / ADAPTER).exists():
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request.path / ADAPTER).base_model.model
    return model.eval()


def _nf4(job: QuantizeJob[QLoraParams]) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        job.source,
        dtype=job.dtype,
        device_map=device_map(job.device),
        use_safetensors=True,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=job.params.double_quant,
            bnb_4bit_compute_dtype=job.dtype,
            llm_int8_skip_modules=list(job.untouched),
        ),
    )


def _lora(job: QuantizeJob[QLoraParams]) -> Any:
    """peft's configuration; each model needs a new one, because peft writes into it."""
    from peft import LoraConfig

    return LoraConfig(r=job.params.rank, lora_alpha=ALPHA, target_modules=list(job.scope), task_type="CAUSAL_LM")


def _plain(job: QuantizeJob[QLoraParams], model: Any) -> Any:
    model.save_pretrained(job.out)
    return model.eval()


def _train(job: QuantizeJob[QLoraParams], model: Any) -> None:
    """Trains the adapter on next tokens; padding and the first token of a row are not targets."""
    import torch

    texts, params = job.calibration_set, job.params
    tokens = torch.tensor(texts.tokens, device=model.device)
    masks = torch.tensor(texts.masks, device=model.device)
    batch = max(BATCH, math.ceil(len(tokens) / params.steps))
    batch = min(batch, len(tokens))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=params.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(job.seed)
    order: list[int] = []
    losses = []
    model.train()
    for _ in range(params.steps):
        while len(order) < batch:
            order += torch.randperm(len(tokens), generator=generator).tolist()
        rows, order = order[:batch], order[batch:]
        labels = tokens[rows].masked_fill(masks[rows] == 0, IGNORED)
        loss = model(input_ids=tokens[rows], attention_mask=masks[rows], labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    job.note("training_loss_first", losses[0])
    job.note("training_loss_last", losses[-1])
    job.note("training_rows", batch * params.steps)


def _bits(params: QLoraParams, plain_bits: float, width: int) -> float:
    """NF4 with its scales, or plain weights."""
    return bnb.four_bits_per_weight(params.double_quant) if params.result == "adapter" else plain_bits


def _beside(params: QLoraParams, plain_bits: float, shape: tuple[int, int]) -> Beside:
    """NF4's tables and the float32 adapter, which has its own folder on disk."""
    if params.result != "adapter":
        return Beside()
    stored = bnb.tables(params.double_quant, shape) + 4 * params.rank * sum(shape)
    return Beside(memory=stored, disk=stored)


QLORA = Method(
    name="qlora",
    version=1,
    summary="a low-rank adapter trained on an NF4 model: kept separate, or merged into 16-bit weights",
    leaves_experts_because="its adapters stand beside linear layers, and it makes none of experts before it trains",
    params=QLoraParams,
    packages=("peft", "bitsandbytes"),
    extra="qlora",
    enable=enable,
    quantize=quantize,
    offloads=True,
    read=read,
    calibrated=lambda params: params.result != "dequantized",
    passes=lambda params, samples: 3.0 * BATCH * params.steps / samples,
    stores_codes=lambda params: params.result == "adapter",
    kernel=None,  # codes for one result, dense matrices for the others
    codes=lambda params: Codes("bitsandbytes"),
    bits_per_weight=_bits,
    beside=_beside,
)
