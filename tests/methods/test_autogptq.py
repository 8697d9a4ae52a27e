"""AutoGPTQ: what can be seen of it without CUDA, which it wants for quantizing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.core.method import CalibrationSet, QuantizeJob
from harness.methods.autogptq import autogptq
from harness.methods.autogptq.autogptq import AutoGptqParams
from harness.plugins import method

pytestmark = pytest.mark.heavy


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of unsigned numbers as rows of int32 words, the lowest bits of a word first: GPTQ's layout, bit by bit."""
    words = []
    for row in numbers.tolist():
        whole = sum(number << (bits * place) for place, number in enumerate(row))
        parts = [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(len(row) * bits // 32)]
        words.append([part - 2**32 if part >= 2**31 else part for part in parts])
    return torch.tensor(words, dtype=torch.int32)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_packed_layers_are_unpacked(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs, group = 32, 64, 32
    codes = torch.randint(2**bits, (outputs, inputs), generator=generator)
    zeros = torch.randint(1, 2**bits, (inputs // group, outputs), generator=generator)
    scales = torch.rand(inputs // group, outputs, generator=generator)
    order = torch.randperm(inputs, generator=generator) // group  # as with desc_act
    packed = SimpleNamespace(
        qweight=pack(codes, bits).t().contiguous(), qzeros=pack(zeros - 1, bits), scales=scales, g_idx=order.int()
    )
    expected = (codes - zeros[order].t()) * scales[order].t()
    assert torch.equal(autogptq.dense(packed, bits), expected)


def test_padding_is_no_calibration_text() -> None:
    texts = CalibrationSet([[5, 6, 7], [8, 9, 0]], [3, 2], "")
    job = QuantizeJob(
        AutoGptqParams(), Path("in"), Path("out"), "cuda", "float16", 0, lambda: None, texts, untouched=()
    )
    assert autogptq._examples(job) == [
        {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]},
        {"input_ids": [8, 9], "attention_mask": [1, 1]},
    ]


@pytest.mark.parametrize(("attention", "given"), [(None, {}), ("eager", {"attn_implementation": "eager"})])
def test_it_loads_its_source_with_the_recipes_attention(
    attention: str | None, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library hands what it does not know itself to transformers (``model_init_kwargs`` in 0.7.1)."""

    class LoadingError(Exception):
        """The library, which is not here, would load now."""

    seen = []

    def load(source: str, config: object, **options: object) -> None:
        seen.append(options)
        raise LoadingError

    modeling = SimpleNamespace(_base=None)
    library = SimpleNamespace(
        AutoGPTQForCausalLM=SimpleNamespace(from_pretrained=load), BaseQuantizeConfig=SimpleNamespace, modeling=modeling
    )
    monkeypatch.setitem(sys.modules, "auto_gptq", library)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "auto_gptq.modeling", modeling)  # type: ignore[arg-type]
    job = QuantizeJob(
        AutoGptqParams(), Path("in"), Path("out"), "cuda", "float16", 0, lambda: None, attention=attention
    )
    with pytest.raises(LoadingError):
        autogptq.quantize(job)
    assert seen == [{"torch_dtype": torch.float16, **given}]


def test_what_it_needs_and_stores() -> None:
    chosen = method("autogptq")
    params = chosen.params.model_validate({"group_size": 64})
    assert chosen.needs(params).device == "cuda"
    assert chosen.needs(params).input_divisor == 64
    assert chosen.bits_per_weight(params, 16, 1024) == 4 + 20 / 64
    assert chosen.beside(params, 16, (512, 1024)).disk == 4 * 1024, "the group of each column"
    assert chosen.stack == "autogptq"
