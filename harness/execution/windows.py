"""Cuts a run's text into the windows to score."""

from __future__ import annotations

from harness.core.capability import LoadedModel
from harness.core.metric import Windows
from harness.core.workload import PerplexityWorkload
from harness.errors import UnsupportedError
from harness.execution.context import Context


def cut_windows(context: Context, workload: PerplexityWorkload, model: LoadedModel) -> Windows:
    """The windows of a text, in the model's own tokens; of a generated text, the tokens that the baseline wrote.

    Raises UnsupportedError if the model has no tokenizer.
    """
    from harness.text import generated
    from harness.text.kept_windows import kept_or_cut

    if workload.generation is not None:
        with context.phase("text"):
            return generated.read(context.cache.needed(context.spec, "write"))
    if model.tokenizer is None:
        raise UnsupportedError("perplexity needs a tokenizer, and the checkpoint holds none")
    with context.phase("text"):
        return kept_or_cut(context.cache, workload, model.tokenizer)
