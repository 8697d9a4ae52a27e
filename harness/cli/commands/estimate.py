"""``qharness estimate``: what a model will take, before anything of it is fetched."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from harness.cli.options import AsJson


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, a GGUF file, or a hub id.")],
    method: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--method", metavar="METHOD", help="Such as 'rtn bits=4 group_size=64'; may be repeated. Absent: all."
        ),
    ] = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--context", metavar="TOKENS", help="Prompt and answer together; 4096 where absent."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Texts at a time.")] = 1,
    gpu: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--gpu", metavar="SIZE|NAME", help="What it must fit: 24GiB, 24GB, or a GPU such as 'RTX 4090'."),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="What is unquantized is in: auto is the model's own.")
    ] = "auto",
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--revision", metavar="COMMIT", help="Of a hub model; its newest where absent."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Reckon weights, cache and workspace per method, and whether they fit: from headers or config.json alone."""
    from harness.api.estimate import estimate as make_estimates
    from harness.cli.render.estimate import show_estimates

    show_estimates(*make_estimates(model, method or (), context, batch, gpu, dtype, revision), as_json)
