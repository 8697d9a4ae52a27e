"""Quantization-aware training (Jacob et al., arXiv:1712.05877) by torchao: a short fine-tune through fake quantization.

The matrices in scope are trained on the calibration set's next tokens: the forward pass uses rounded weights, and the
backward pass ignores the rounding (the straight-through estimator of Bengio et al., arXiv:1308.3432). Everything else
stays unchanged. The result is stored as ``torchao-intx`` stores it: symmetric integers, one byte per weight.

It learns the calibration text itself, not the unquantized model: with few rows or many steps it memorizes them, its
loss there drops below the unquantized model's, and text it has not seen gets worse. Judge it on held-out text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from harness.core.format import Codes
from harness.core.method import CalibrationSet, GroupSize, Method, MethodParams, Needs, QuantizeJob, Setting, Steps
from harness.recipe.fields import BatchSize

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label of a position that the loss ignores."""


class QatParams(MethodParams):
    """``bits`` of a weight, each stored in one byte, and ``group_size``, the input columns that share a scale.

    Trains for ``steps`` steps of AdamW without weight decay at a constant ``learning_rate``, each on ``batch_size``
    rows of the calibration set, or on more rows if not every row would be seen. The rows are reshuffled with the
    recipe's seed after each pass over them. Training runs in float32, whatever the model's dtype, and takes 16 bytes
    per trained weight.
    """

    bits: Literal[8, 4, 3, 2] = 4
    group_size: GroupSize = 32
    steps: Steps = 100
    batch_size: BatchSize = 4
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4


def quantize(job: QuantizeJob[QatParams]) -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.qat import QATConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    from harness.methods.torchao import driver as torchao
    from harness.models.scope import decoder_linears

    params, model = job.params, job.load()
    names = {name for name, _ in decoder_linears(model, job.untouched)}
    plain = {name: parameter.dtype for name, parameter in model.named_parameters()}
    base = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{params.bits}"), granularity=PerGroup(params.group_size)
    )
    quantize_(model.float(), QATConfig(base, step="prepare"), filter_fn=lambda module, name: name in names)
    losses = _train(model, {f"{name}.weight" for name in names}, job.calibration_set, params, job.seed)
    job.note("training_loss_first", losses[0])
    job.note("training_loss_last", losses[-1])
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(plain[name])
        parameter.requires_grad_(False)
    quantize_(model, QATConfig(base, step="convert"), filter_fn=lambda module, name: name in names)
    config: Any = torchao.wrap(base, Setting(job.dtype, job.device, job.untouched))
    model.config.quantization_config = config
    model.hf_quantizer = TorchAoHfQuantizer(config, pre_quantized=True)  # it makes safetensors of torchao's tensors
    model.save_pretrained(job.out)
    return model


def _train(model: Any, trained: set[str], texts: CalibrationSet, params: QatParams, seed: int) -> list[float]:
    """Trains the parameters of those names in place; returns the mean loss of each step in nats per token."""
    import torch

    weights = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
        if name in trained:
            weights.append(parameter)
    tokens = torch.tensor([list(row) for row in texts.tokens], device=model.device)
    masks = torch.tensor(texts.masks, device=model.device)
    labels = tokens.masked_fill(masks == 0, IGNORED)
    optimizer = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=0.0)
    model.train()
    losses = []
    with torch.enable_grad():
        for rows in _batches(len(tokens), params.batch_size, params.steps, seed):
            output = model(input_ids=tokens[rows], attention_mask=masks[rows], labels=labels[rows], use_cache=False)
            output.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(output.loss.detach()))
    model.eval()
    return losses


def _batches(rows: int, size: int, steps: int, seed: int) -> list[torch.Tensor]:
    """Row numbers of each step: permutations of all rows, cut into ``size`` rows, or more if needed to cover all."""
    import torch

    size = max(size, -(-rows // steps))
    generator = torch.Generator().manual_seed(seed)
    rounds = -(-size * steps // rows)
    order = torch.cat([torch.randperm(rows, generator=generator) for _ in range(rounds)])
    return [order[start : start + size] for start in range(0, size * steps, size)]


QAT = Method(
    name="qat",
    version=1,
    summary="torchao quantization-aware training on the calibration set, then integers per group, one byte per weight",
    leaves_experts_because="it trains linear layers, and makes none of experts before it trains",
    params=QatParams,
    packages=("torchao",),
    extra="torchao",
    quantize=quantize,
    calibrated=lambda params: True,
    passes=lambda params, samples: 3.0 * params.batch_size * params.steps / samples,
    kernel="dequantize",
    needs=lambda params: Needs(input_divisor=params.group_size),
    codes=lambda params: Codes.grouped("torchao", params.bits, params.group_size),
    bits_per_weight=lambda params, plain_bits, width: 8 + (plain_bits + 8) / params.group_size,
)
