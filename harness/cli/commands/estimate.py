"""``qharness estimate``: the memory a model needs, before any weights are downloaded."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from harness.cli.options import AsJson


def estimate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a config.json, a GGUF file, or a hub id.")],
    method: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it at run time
        typer.Option(
            "--method", metavar="METHOD", help="Such as 'rtn bits=4 group_size=64'; may be repeated. Default: all."
        ),
    ] = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--context", metavar="TOKENS", help="Prompt and answer together; default: 4096."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Batch size.")] = 1,
    gpu: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--gpu", metavar="SIZE|NAME", help="Memory to fit into: 24GiB, 24GB, or a GPU such as 'RTX 4090'."
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="DTYPE", help="Dtype of the unquantized parts; auto is the model's own.")
    ] = "auto",
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--revision", metavar="COMMIT", help="Commit of a hub model; default: the newest."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate weights, cache and workspace per method, and whether they fit, from headers or config.json alone."""
    from harness.api.estimate import estimate as make_estimates
    from harness.cli.render.estimate import show_estimates

    show_estimates(*make_estimates(model, method or (), context, batch, gpu, dtype, revision), as_json)
