"""``qharness formats``: the number formats, and what each would do to one tensor of a checkpoint."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Optional

import typer

from harness.cli.options import AsJson
from harness.errors import UsageError


class Observing(StrEnum):
    """How the range of an integer format is chosen."""

    MIN_MAX = "min-max"
    PERCENTILE = "percentile"
    MSE = "mse"
    KL = "kl"


def formats(
    name: Annotated[
        Optional[str],  # noqa: UP045 - typer reads it at run time
        typer.Argument(
            metavar="FORMAT", help="Show one format in full: 'fp8-e4m3', 'NF4', 'int4'.", show_default=False
        ),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="MODEL", help="A local checkpoint: a folder, a .gguf file, or package:NAME/FILE.gguf."),
    ] = None,
    tensor: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME", help="A tensor to round, such as model.layers.0.self_attn.q_proj."),
    ] = None,
    group_size: Annotated[int, typer.Option(min=1, help="Columns that share a scale in the integer formats.")] = 64,
    observer: Annotated[
        Observing, typer.Option("--range", help="How the integer formats choose their range.")
    ] = Observing.MIN_MAX,
    as_json: AsJson = False,
) -> None:
    """Show the number formats, one format with its values, or the error of each on a tensor."""
    from harness.cli.render import formats as console_formats
    from harness.numerics.formats import FORMATS, find

    chosen = find(name) if name else None
    if (model is None) != (tensor is None):
        raise UsageError(
            "--tensor needs --model, the checkpoint to read it from"
            if model is None
            else "--model needs --tensor, the name of the tensor to round"
        )
    if model is None or tensor is None:
        if chosen:
            console_formats.show_one(chosen, as_json)
        else:
            console_formats.show_all(FORMATS, as_json)
        return
    from harness.models.tensor import read
    from harness.numerics.trial import trials

    found = read(model, tensor)
    tried = trials(found.values, (chosen,) if chosen else FORMATS, group_size, observer.value)
    console_formats.show_trials(found, list(tried), observer.value, as_json)
