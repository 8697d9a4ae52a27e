"""Which kernels multiply: by the libraries' own rules, and on a GPU by what the profiler sees.

Many kernels change with the number of rows, so a performance run looks at each pass of its grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.core.capability import Decodes, KernelFamily, LoadedModel, Logits, Product
from harness.core.identity import DecodeMode, Scalar
from harness.core.workload import GridCell, ThroughputWorkload
from harness.execution.checks import reload as probe
from harness.execution.context import Context
from harness.models.kernels import corrected, observed
from harness.models.scope import in_decoder
from harness.numerics.prompts import random_tokens

if TYPE_CHECKING:
    import torch

SLOWNESS: Mapping[KernelFamily, int] = {"packed": 0, "dequantize": 1, "plain": 2}
MAX_KERNELS = 6
"""How many of the longest-running kernels to record; the rest are norms, copies and similar."""
MANY_ROWS = 1 << 14
"""More than any kernel's limit for packed codes."""
Products = Mapping[str, Product]


@dataclass(frozen=True)
class Pass:
    """A prefill at a point of the grid, or one of the decode steps after it."""

    phase: Literal["prefill", "decode"]
    cell: GridCell

    @property
    def rows(self) -> int:
        """The tokens that each layer multiplies at once."""
        return self.cell.batch_size * (self.cell.prompt_tokens if self.phase == "prefill" else 1)

    @property
    def mode(self) -> DecodeMode:
        return self.cell.decode_mode if self.phase == "decode" else "eager"

    @property
    def place(self) -> Mapping[str, Scalar]:
        return {
            "phase": self.phase,
            "batch_size": self.cell.batch_size,
            "prompt_tokens": self.cell.prompt_tokens,
        }

    def __str__(self) -> str:
        return f"{self.phase} at batch {self.cell.batch_size}, prompt {self.cell.prompt_tokens}"


def record_kernels(context: Context, model: LoadedModel) -> None:
    """Records how the decoder's linear layers multiply a single row; labels those slower than the method's own.

    Layers that are slower for some numbers of rows only are labelled by the performance run, at points of its grid.
    """
    few, many = (_of_decoder(model.products(rows)) for rows in (1, MANY_ROWS))
    context.fact("kernels", **_counted(few))
    if {product.family for product in few.values()} == {"plain"} and any(e.quantized for e in model.weight_ledger()):
        context.label("unpacked_once")
    expected = context.method().kernel
    for (family, where), layers in _fallbacks((few, many), expected).items():
        if len(where) == 2 and expected is not None:
            context.label("kernel_fell_back", layers=layers, family=family, expected=expected)


def grid_products(context: Context, model: Decodes, workload: ThroughputWorkload) -> Mapping[Pass, Products]:
    """How the layers multiply in each pass of the grid; recorded and labelled for a quantized variant.

    By the library's rule; on a GPU corrected by the kernels that ran, except in compiled decoding, which would have to
    be compiled once more. Call it after everything that is timed: see ``record_cuda_kernels``.
    """
    passes = [Pass(phase, cell) for cell in workload.cells for phase in ("prefill", "decode")]
    ruled = {each: model.products(each.rows, each.mode) for each in passes}
    if context.spec.method.stage == "none":
        return ruled
    names: dict[Pass, tuple[str, ...]] = {}
    if _is_profiled(context):
        for cell in workload.cells:
            names |= _profiled(model, cell, context.spec.variant.seed)
    products = {each: corrected(ruled[each], observed(names.get(each, ()))) for each in passes}
    counts = {each: _counted(_of_decoder(products[each])) for each in passes}
    if names or len({tuple(sorted(count.items())) for count in counts.values()}) > 1:
        for each, count in counts.items():
            context.fact("kernels_at", names=names.get(each, ())[:MAX_KERNELS], **each.place, **count)
    expected = context.method().kernel
    for (family, where), layers in _fallbacks([_of_decoder(products[each]) for each in passes], expected).items():
        at = {} if len(where) == len(passes) else {"at": _described([passes[index] for index in where], passes)}
        if expected is not None:
            context.label("kernel_fell_back", layers=layers, family=family, expected=expected, **at)
    return products


def record_cuda_kernels(context: Context, model: Logits) -> None:
    """Records the CUDA kernels that take the longest on the probe; nothing on a CPU.

    Call it after everything that is timed: once a process has been profiled, CUPTI stays attached to it and slows down
    every later launch of a kernel.
    """
    if context.spec.method.stage != "none" and _is_profiled(context):
        _probe_logits(context, model)  # warm-up: compilation and tuning stay out of the profile
        names = _kernel_names(lambda: _probe_logits(context, model), model.sync)
        context.fact("cuda_kernels", names=names[:MAX_KERNELS])


def _is_profiled(context: Context) -> bool:
    """Whether torch can profile the device; its build in an engine's own stack may have no CUDA."""
    import torch

    return context.spec.device.startswith("cuda") and torch.cuda.is_available()


def _profiled(model: Decodes, cell: GridCell, seed: int) -> Mapping[Pass, tuple[str, ...]]:
    """The CUDA kernels of the passes at a point; its shapes have run before, so nothing is compiled or tuned here."""
    import torch

    tokens = random_tokens(model.vocabulary, cell.batch_size, cell.prompt_tokens, seed).to(model.device)
    kept: list[tuple[torch.Tensor, Any]] = []
    with torch.inference_mode(), model.decoder("eager", tokens, 1) as decoder:
        names = {Pass("prefill", cell): _kernel_names(lambda: kept.append(decoder.prefill(tokens)), model.sync)}
        if cell.decode_mode == "eager":
            logits, cache = kept.pop()
            token = logits.argmax(dim=-1, keepdim=True)
            names[Pass("decode", cell)] = _kernel_names(lambda: decoder.decode(token, cache), model.sync)
    return names


def _probe_logits(context: Context, model: Logits) -> object:
    import torch

    with torch.inference_mode():
        return model.logits(probe.tokens(context.source(), model.vocabulary, context.spec.model.trust_remote_code))


def _kernel_names(work: Callable[[], object], sync: Callable[[], None]) -> tuple[str, ...]:
    """The CUDA kernels of a piece of work, those with the most time on the device first."""
    from torch.profiler import ProfilerActivity, profile

    sync()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        work()
        sync()
    events = sorted(trace.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)
    return tuple(event.key for event in events if event.self_device_time_total > 0)


def _of_decoder(products: Products) -> Products:
    return {name: product for name, product in products.items() if in_decoder(f"{name}.weight", 2)}


def _counted(products: Products) -> dict[str, int]:
    """The number of layers of each kernel family."""
    return dict(Counter(str(product.family) for product in products.values()))


def _fallbacks(
    passes: Sequence[Products], expected: KernelFamily | None
) -> Mapping[tuple[KernelFamily, tuple[int, ...]], int]:
    """The number of layers by the slower family that they multiply in, and the indices of the passes in which they do.

    Dense layers are not among them: coverage counts those.
    """
    found: Counter[tuple[KernelFamily, tuple[int, ...]]] = Counter()
    for name in passes[0] if expected is not None else ():
        slow: dict[KernelFamily, list[int]] = {}
        for index, products in enumerate(passes):
            family = products[name].family
            if family != "plain" and SLOWNESS[family] > SLOWNESS[expected]:  # type: ignore[index]
                slow.setdefault(family, []).append(index)
        found.update((family, tuple(where)) for family, where in slow.items())
    return found


def _described(some: Sequence[Pass], every: Sequence[Pass]) -> tuple[str, ...]:
    """The passes by name; only the phase where it is all of a phase."""
    shown: list[str] = []
    for phase in ("prefill", "decode"):
        own = [each for each in some if each.phase == phase]
        whole = len(own) == sum(each.phase == phase for each in every)
        shown += [f"every {phase}"] if whole else [str(each) for each in own]
    return tuple(shown)
