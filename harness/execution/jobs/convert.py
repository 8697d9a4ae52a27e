"""Writes the unquantized model in its engine's own format."""

from __future__ import annotations

from pathlib import Path

from harness.core.capability import Logits
from harness.core.engine import LoadRequest
from harness.core.job import ConvertModel
from harness.execution.checkpoints import copy_tokenizer
from harness.execution.checks import reload as probe
from harness.execution.context import Context, checked
from harness.plugins import engine

CONVERTED_KL = 0.01
"""Nats per token allowed for another engine's arithmetic: its products round inputs to the weights' dtype."""


def run(job: ConvertModel, context: Context, out: Path) -> None:
    """Writes the unquantized model in its engine's own format and compares its logits there with transformers'.

    Raises InvalidRunError if they differ by more than another program's rounding explains.
    """
    runtime = engine(job.variant.engine)
    assert runtime.convert is not None
    dtype = context.method().run_dtype(context.params(), job.model.dtype)
    with context.phase("import"):
        runtime.imports()
    with context.phase("convert"):
        note = runtime.convert(context.source(), out, dtype)
    if note is not None:
        context.fact("converted_tokenizer", remark=note)
    copy_tokenizer(context.source(), out)
    with context.phase("probe"):
        request = LoadRequest(out, dtype, job.conditions.device, job.conditions.attention)
        model = checked(runtime, runtime.load(request, runtime.params()), Logits)
        what = f"the model converted for {runtime.name} is another one"
        found = probe.compare(context.cache.needed(context.spec, "probe"), model.logits, what, CONVERTED_KL)
        model.close()
    context.fact("conversion_difference", **found.figures)
