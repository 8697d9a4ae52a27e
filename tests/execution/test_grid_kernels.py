"""Which kernels multiply at each point of a grid: recorded, labelled, and counted in the bytes that unpacking moves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.core.capability import Product
from harness.core.label import FACTS, LABELS
from harness.core.workload import GridCell, ThroughputWorkload
from harness.execution.checks import kernels as checks
from harness.execution.checks.kernels import Pass, grid_products, record_kernels

pytestmark = pytest.mark.heavy

NAMES = [f"model.layers.{index}.mlp.{part}_proj" for index in range(2) for part in ("up", "down")]
GRID = ThroughputWorkload((1, 32), (8, 64), new_tokens=4, warmup=0, iterations=1)
FUSED, UNPACKING = "gemm_4bit_simt<float>", "kDequantizeBlockwise<float>"
DENSE = "ampere_sgemm_32x128_tn"


class Model:
    """Layers that multiply packed codes at the rows that ``packed`` accepts; the head is dense."""

    vocabulary, device = 100, "cpu"

    def __init__(self, packed: Any, quantized: bool = True) -> None:
        self._packed, self._quantized = packed, quantized

    def products(self, rows: int, mode: str = "eager") -> Mapping[str, Product]:
        family: Any = "packed" if self._packed(rows) or mode == "compiled" else "dequantize"
        return dict.fromkeys(NAMES, Product(family, "bfloat16")) | {"lm_head": Product("plain", "bfloat16")}

    def weight_ledger(self) -> tuple[Any, ...]:
        return (SimpleNamespace(quantized=self._quantized),)

    def prefill(self, tokens: torch.Tensor) -> tuple[torch.Tensor, Any]:
        return torch.zeros(len(tokens), self.vocabulary), "cache"

    def decode(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]:
        assert cache == "cache"
        assert tokens.shape[1] == 1
        return torch.zeros(len(tokens), self.vocabulary), "cache"

    @contextmanager
    def decoder(self, mode: str, prompt: torch.Tensor, new_tokens: int) -> Iterator[Model]:
        assert mode == "eager"
        yield self

    def sync(self) -> None: ...


class Findings:
    """A run's context, with what is recorded in it."""

    def __init__(self, device: str = "cpu", kernel: str | None = "packed", stage: str = "on_load") -> None:
        variant, method = SimpleNamespace(seed=0), SimpleNamespace(stage=stage)
        self.spec = SimpleNamespace(device=device, variant=variant, method=method)
        self.facts: list[tuple[str, dict[str, Any]]] = []
        self.labels: list[dict[str, Any]] = []
        self.method = lambda: SimpleNamespace(kernel=kernel)

    def fact(self, code: Any, /, **arguments: Any) -> None:
        FACTS[code].check(arguments)
        self.facts.append((code, arguments))

    def label(self, code: Any, /, **arguments: Any) -> None:
        assert code == "kernel_fell_back"
        LABELS[code].check(arguments)
        self.labels.append(arguments)


def fell_back(layers: int = 4, **at: tuple[str, ...]) -> dict[str, Any]:
    return {"layers": layers, "family": "dequantize", "expected": "packed", **at}


def measured(context: Any, model: Any, workload: ThroughputWorkload = GRID) -> dict[str, set[str]]:
    """The families of the decoder's layers in each pass."""
    products = grid_products(context, model, workload)
    return {
        str(each): {product.family for name, product in found.items() if name in NAMES}
        for each, found in products.items()
    }


def test_each_pass_has_the_kernel_of_its_rows() -> None:
    """Few rows unpack, as int8 inputs on a GPU do below 17: decoding at batch 1, not at 32, and prefill of 8 tokens."""
    context = Findings()
    found = measured(context, Model(lambda rows: rows > 16))
    unpacked = {place for place, families in found.items() if families == {"dequantize"}}
    assert unpacked == {"prefill at batch 1, prompt 8", "decode at batch 1, prompt 8", "decode at batch 1, prompt 64"}
    assert context.labels == [
        fell_back(at=("prefill at batch 1, prompt 8", "decode at batch 1, prompt 8", "decode at batch 1, prompt 64"))
    ]
    assert len(context.facts) == 8
    code, arguments = context.facts[1]
    place = {"phase": "decode", "batch_size": 1, "prompt_tokens": 8}
    assert (code, arguments) == ("kernels_at", {**place, "names": (), "dequantize": 4})


def test_a_phase_that_falls_back_at_every_point_is_named_alone() -> None:
    context = Findings()
    measured(context, Model(lambda rows: rows <= 4))
    assert context.labels == [
        fell_back(at=("every prefill", "decode at batch 32, prompt 8", "decode at batch 32, prompt 64"))
    ]


def test_layers_that_fall_back_everywhere_are_labelled_as_in_a_quality_run() -> None:
    performance, quality = Findings(), Findings()
    model: Any = Model(lambda rows: False)
    measured(performance, model)
    context: Any = quality
    record_kernels(context, model)
    assert performance.labels == quality.labels == [fell_back()]
    assert (performance.facts, quality.facts) == ([], [("kernels", {"dequantize": 4})])


@pytest.mark.parametrize("limit", [16, 1024])
def test_a_quality_run_leaves_what_depends_on_the_rows_to_the_performance_run(limit: int) -> None:
    for packed in (lambda rows: rows > limit, lambda rows: rows <= limit):
        context: Any = Findings()
        record_kernels(context, Model(packed))
        assert context.labels == []


@pytest.mark.parametrize(("kernel", "stage"), [("dequantize", "on_load"), (None, "on_load"), ("packed", "none")])
def test_a_method_that_unpacks_by_design_and_the_baseline_are_not_labelled(kernel: Any, stage: str) -> None:
    context = Findings(kernel=kernel, stage=stage)
    measured(context, Model(lambda rows: rows <= 4))
    assert context.labels == []


def test_what_the_profiler_saw_outweighs_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule says packed everywhere; the profiler sees prefill unpack at batch 32, and no telling name elsewhere."""
    seen = {"prefill at batch 32, prompt 8": (DENSE, UNPACKING), "decode at batch 1, prompt 8": (FUSED, DENSE)}
    order = iter(
        [
            f"{phase} at batch {batch}, prompt {prompt}"
            for batch in (1, 32)
            for prompt in (8, 64)
            for phase in ("prefill", "decode")
        ]
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def names(work: Any, sync: Any) -> tuple[str, ...]:
        work()
        return seen.get(next(order), (DENSE,))

    monkeypatch.setattr(checks, "_kernel_names", names)
    context = Findings(device="cuda")
    found = measured(context, Model(lambda rows: True))
    assert found.pop("prefill at batch 32, prompt 8") == {"dequantize"}
    assert set(map(frozenset, found.values())) == {frozenset({"packed"})}
    assert context.labels == [fell_back(at=("prefill at batch 32, prompt 8",))]
    assert dict(context.facts[1][1])["names"] == (FUSED, DENSE)
    assert len(context.facts) == 8


def test_compiled_decoding_is_not_profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have to be compiled once more; its kernels are those of the rule."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    profiled: list[object] = []

    def names(work: Any, sync: Any) -> tuple[str, ...]:
        profiled.append(work())
        return (UNPACKING,)

    monkeypatch.setattr(checks, "_kernel_names", names)
    compiled = ThroughputWorkload((1,), (8,), new_tokens=4, warmup=0, iterations=1, decode_mode="compiled")
    found = measured(Findings(device="cuda"), Model(lambda rows: True), compiled)
    assert found == {"prefill at batch 1, prompt 8": {"dequantize"}, "decode at batch 1, prompt 8": {"packed"}}
    assert len(profiled) == 1


def test_an_engine_whose_torch_has_no_cuda_follows_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    context = Findings(device="cuda")
    assert set.union(*measured(context, Model(lambda rows: True)).values()) == {"packed"}
    assert context.facts == []


def test_rows_of_a_pass() -> None:
    cell = GridCell(batch_size=3, prompt_tokens=10, new_tokens=4, decode_mode="compiled")
    prefill, decode = Pass("prefill", cell), Pass("decode", cell)
    assert (prefill.rows, prefill.mode, decode.rows, decode.mode) == (30, "eager", 3, "compiled")
