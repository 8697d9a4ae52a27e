"""Saves logits of the unquantized model as the main stack's libraries compute them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.capability import Logits
from harness.core.engine import LoadRequest, Streaming
from harness.core.job import KeepProbe
from harness.core.model import MAIN_ENGINE
from harness.execution.checkpoints import load_source, some_logits
from harness.execution.checks import reload as probe
from harness.execution.checks.variant import record_streaming
from harness.execution.context import Context, checked
from harness.plugins import engine

if TYPE_CHECKING:
    import torch


def run(job: KeepProbe, context: Context, out: Path) -> None:
    """Saves the source's logits in the main stack, to check that other stacks read the same model."""
    source, streaming = context.source(), context.streaming()
    with context.phase("import"):
        import transformers  # noqa: F401
    with context.phase("probe"):
        if streaming is None:
            kept = some_logits(context, load_source(context, source), source)
        else:
            kept = _streamed_logits(job, context, replace(streaming, passes=1))
        probe.save(kept, out)


def _streamed_logits(job: KeepProbe, context: Context, streaming: Streaming) -> dict[str, torch.Tensor]:
    """The same logits of a model of which one part is in memory at a time."""
    import torch

    source, trusted = context.source(), job.model.trust_remote_code
    request = LoadRequest(
        source,
        job.model.dtype,
        job.conditions.device,
        job.conditions.attention,
        trust_remote_code=trusted,
        streaming=streaming,
    )
    runtime = engine(MAIN_ENGINE)
    model = checked(runtime, runtime.load(request, runtime.params()), Logits)
    ids = probe.tokens(source, model.vocabulary, trusted)
    with torch.inference_mode():
        logits = model.logits(ids)
    record_streaming(context, model)
    model.close()
    return probe.kept(ids, logits)
