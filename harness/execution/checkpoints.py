"""What jobs share: loading the unquantized checkpoint, computing some logits, copying its tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.execution.checks import reload as probe
from harness.execution.context import Context
from harness.models.completeness import names_checked, refuse_reshaped, refuse_unlike
from harness.models.headers import TOKENIZER_FILES
from harness.models.loading import attention_option, checkpoint_class, device_map, refuse_offloaded

if TYPE_CHECKING:
    import torch


def load_source(context: Context, source: Path, **options: Any) -> Any:
    """The source as an unquantized transformers model; works with transformers 4.51 and 5.

    ``options`` go to ``from_pretrained``. Raises SourceError for a checkpoint that is unlike its config.json.
    """
    import torch

    spec, attention = context.spec, context.spec.job.conditions.attention
    arguments = {"device_map": device_map(spec.device, spec.job.conditions.gpus), **options}
    arguments |= attention_option(attention)
    with names_checked(source, refuse_unlike):
        model, read = checkpoint_class(source, spec.model.trust_remote_code).from_pretrained(
            source,
            torch_dtype=spec.model.dtype if spec.model.dtype == "auto" else getattr(torch, spec.model.dtype),
            use_safetensors=True,
            trust_remote_code=spec.model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by their names
            **arguments,
        )
    refuse_reshaped(read["mismatched_keys"])  # transformers 4 says only now what it filled in
    refuse_unlike(read["missing_keys"], read["unexpected_keys"])
    refuse_offloaded(model, spec.job.conditions.gpus)
    return model


def some_logits(context: Context, model: Any, source: Path) -> dict[str, torch.Tensor]:
    """Some logits of a transformers model and their tokens, to check later loads against."""
    vocabulary = model.config.get_text_config().vocab_size
    return probe.evaluate(model, probe.tokens(source, vocabulary, context.spec.model.trust_remote_code))


def copy_tokenizer(source: Path, out: Path, code: bool = False) -> None:
    """Copies the source's tokenizer files byte for byte, so that no library's rewriting changes the tokens.

    With ``code`` also copies the Python files of a checkpoint's own tokenizer.
    """
    for pattern in (*TOKENIZER_FILES, *(["*.py"] if code else [])):
        for file in source.glob(pattern):
            shutil.copy(file, out / file.name)
