"""The expert audit of calibrated methods: how many calibration tokens each expert of a mixture sees.

Counted with the unquantized model's own routers over the calibration set's token ids, once per model and set: the
counts stay in the cache, because all calibrated methods of a model share them.
"""

from __future__ import annotations

import gc
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from harness.core.capability import Routed
from harness.core.engine import LoadRequest, Streaming
from harness.core.identity import Scalar, full_digest
from harness.core.method import CalibrationSet
from harness.core.model import model_identity
from harness.core.protocols import STARVED_TOKENS
from harness.core.record import Measurement
from harness.core.site import EXPERT_TOKENS, MAX_SEALED_BYTES
from harness.errors import ResultsError, UnsupportedError, first_line_of
from harness.execution.checkpoints import load_source
from harness.execution.context import Context
from harness.host.machine import installed_version
from harness.models.headers import read_directory
from harness.models.loading import device_map
from harness.models.scope import holds_experts, module_name
from harness.storage.folder_seal import read_sealed_json, with_seal

if TYPE_CHECKING:
    import torch

VERSION = 1
"""Increased whenever the way of counting changes."""
MOST_NAMES = 8


@dataclass(frozen=True)
class ExpertTokens:
    """``tokens`` of each expert by its block; ``shares`` are those of one expert of the block in the model's weights.

    A token counts once for every expert that it goes to.
    """

    tokens: Mapping[str, Sequence[int]]
    shares: Mapping[str, float]


def audit_experts(context: Context, source: Path, calibration: CalibrationSet) -> None:
    """Records the calibration tokens of each expert, and labels the model if some see none or hardly any.

    Nothing if no experts are quantized. An error becomes a fact, so that quantizing goes on.
    """
    scope = set(context.modules().scope)
    experts = (name for name, shape in context.shapes.items() if holds_experts(name, len(shape)))
    if scope.isdisjoint(name.removesuffix(".weight") for name in experts):
        return
    try:
        seen = _kept_or_counted(context, source, calibration)
    except Exception as error:  # noqa: BLE001 - becomes a fact
        context.fact("experts_not_counted", reason=first_line_of(error))
        return
    finally:
        _free()
    names = [f"{block}: {number}" for block, tokens in seen.tokens.items() for number in range(len(tokens))]
    counts = [count for tokens in seen.tokens.values() for count in tokens]
    protocol: dict[str, Scalar] = {
        "calibration_sha256": calibration.sha256,
        "tokens": sum(calibration.lengths),
        "starved": STARVED_TOKENS,
    }
    context.add(
        [
            Measurement(
                metric="expert_tokens",
                version=VERSION,
                unit="token",
                direction="neither",
                evidence="exact",
                values=tuple(map(float, counts)),
                item_ids=tuple(names),
                protocol=protocol,
            )
        ]
    )
    context.fact("experts_seen", experts=len(counts), least=min(counts), median=int(median(counts)), most=max(counts))
    _label(context, seen, dict(zip(names, counts, strict=True)))


def _label(context: Context, seen: ExpertTokens, counts: Mapping[str, int]) -> None:
    lacking = sorted((count, name) for name, count in counts.items() if count < STARVED_TOKENS)
    if lacking:
        dead = sum(count == 0 for count, _ in lacking)
        context.label(
            "experts_not_calibrated",
            dead=dead,
            starved=len(lacking) - dead,
            least=STARVED_TOKENS,
            experts=len(counts),
            share=sum(seen.shares[name.rpartition(": ")[0]] for _, name in lacking),
            names=tuple(name for _, name in lacking[:MOST_NAMES]),
        )


def record_rounded(context: Context, modules: Collection[str]) -> None:
    """Records the modules of the scope that a library only rounded to nearest, and labels the variant."""
    given, sizes = {module_name(name) for name in modules}, context.modules().sizes
    names = tuple(name for name in sizes if name in given)
    if not names:
        return
    weights = tuple(float(sizes[name]) for name in names)
    context.add([Measurement("rounded_weights", VERSION, "weight", "neither", "exact", weights, item_ids=names)])
    share = sum(weights) / sum(map(math.prod, context.shapes.values()))
    first = names[:MOST_NAMES]
    context.label("rounded_to_nearest", modules=len(names), of=len(sizes), share=share, names=first)


def _kept_or_counted(context: Context, source: Path, calibration: CalibrationSet) -> ExpertTokens:
    """The counts from the cache if they are there, otherwise by running the model."""
    key = full_digest(
        [
            *(VERSION, model_identity(context.spec.model), calibration.sha256),
            *(installed_version("torch"), installed_version("transformers")),
        ]
    )
    path = context.cache.root / EXPERT_TOKENS / f"{key}.json"
    with suppress(ResultsError):
        kept = read_sealed_json(path, MAX_SEALED_BYTES)
        return ExpertTokens(kept["tokens"], kept["shares"])
    with context.phase("experts"):
        counted = _counted(context, source, calibration)
    with suppress(OSError):  # then the next run counts again
        entry = with_seal({"tokens": dict(counted.tokens), "shares": dict(counted.shares)})
        context.cache.disk.write_whole(path, json.dumps(entry).encode())
    return counted


def _counted(context: Context, source: Path, calibration: CalibrationSet) -> ExpertTokens:
    """Runs the unquantized model over the calibration set, without its padding, one sample at a time."""
    streaming = context.streaming(passes=2)  # one to see which routers can be read
    opened = _in_parts(context, source, streaming) if streaming else _whole(context, source)
    with opened as (model, run):
        return _tokens(context, model, run, calibration)


def _tokens(context: Context, model: Any, run: Run, calibration: CalibrationSet) -> ExpertTokens:
    import torch

    from harness.models.routers import expert_parameters, readable_blocks, watching_routers

    tokens: dict[str, torch.Tensor] = {}

    def states(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        return found

    def decode(samples: Iterable[torch.Tensor]) -> None:
        deque(run([partial(states, ids.to(device_map(context.spec.device))) for ids in samples]), maxlen=0)

    def count(block: str, routed: Routed) -> None:
        found = torch.bincount(routed.chosen.flatten(), minlength=routed.scores.shape[-1]).cpu()
        tokens[block] = tokens[block] + found if block in tokens else found

    readable_blocks(model, model.config.get_text_config().vocab_size, lambda ids: decode([ids]))
    with torch.inference_mode(), watching_routers(model, count):
        decode(torch.tensor([sample]) for sample in calibration.texts)
    parameters = sum(each.numel() for each in model.parameters())
    blocks = expert_parameters(model)
    shares = {block: blocks[block] / len(tokens[block]) / parameters for block in blocks}
    return ExpertTokens({block: tokens[block].tolist() for block in blocks}, shares)


Run = Callable[[Sequence[Callable[[], "torch.Tensor"]]], Iterator["torch.Tensor"]]
"""Makes forward passes of a model and yields their results, in order."""


@contextmanager
def _whole(context: Context, source: Path) -> Iterator[tuple[Any, Run]]:
    _check_memory(context, source)
    yield load_source(context, source).eval(), lambda calls: (call() for call in calls)


@contextmanager
def _in_parts(context: Context, source: Path, streaming: Streaming) -> Iterator[tuple[Any, Run]]:
    """With one decoder layer in memory at a time, and the checkpoint's files open meanwhile."""
    from harness.models.streaming.forwards import Forwards, states_budget
    from harness.models.streaming.parts import Parts

    model, attention = context.spec.model, context.spec.job.conditions.attention
    request = LoadRequest(
        source,
        model.dtype,
        context.spec.device,
        attention,
        trust_remote_code=model.trust_remote_code,
        streaming=streaming,
    )
    with closing(Parts(request)) as parts:
        yield parts.model, Forwards(parts, states_budget(streaming, parts)).run


def _check_memory(context: Context, source: Path) -> None:
    """Raises UnsupportedError if the unquantized model would not fit, so that the system does not end the run."""
    import torch

    wanted = context.spec.model.dtype
    dtype = read_directory(source).dtype if wanted == "auto" else wanted
    needed = getattr(torch, str(dtype)).itemsize * sum(map(math.prod, context.shapes.values()))
    free = context.free_bytes()
    if free is not None and needed > free:
        raise UnsupportedError(f"it takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _free() -> None:
    """Gives back what the model took, before the method loads it again."""
    import torch

    gc.collect()  # the modules of a model refer to one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
