"""Saves logits of the unquantized model as the main stack's libraries compute them."""

from __future__ import annotations

from pathlib import Path

from harness.core.job import KeepProbe
from harness.execution.checkpoints import load_source, some_logits
from harness.execution.checks import reload as probe
from harness.execution.context import Context


def run(job: KeepProbe, context: Context, out: Path) -> None:
    """Saves the source's logits in the main stack, to check that other stacks read the same model."""
    with context.phase("import"):
        import transformers  # noqa: F401
    with context.phase("probe"):
        probe.save(some_logits(context, load_source(context, context.source()), context.source()), out)
