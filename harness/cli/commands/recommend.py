"""``qharness recommend``: which variant to ship."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.errors import ExitCode

Text = Optional[str]  # noqa: UP045 - typer reads it at run time


class Format(StrEnum):
    """How the answer is written."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


def recommend(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="A results folder.")],
    max_memory: Annotated[Text, typer.Option(metavar="SIZE", help="All that generating takes: 8GiB or 8GB.")] = None,
    max_size: Annotated[Text, typer.Option(metavar="SIZE", help="Stored weights, scales included.")] = None,
    max_perplexity_increase: Annotated[
        Text, typer.Option(metavar="SHARE", help="Against the baseline: 1% or 0.01.")
    ] = None,
    max_kl: Annotated[Text, typer.Option(metavar="NAT", help="Mean divergence from the baseline.")] = None,
    min_agreement: Annotated[Text, typer.Option(metavar="SHARE", help="Top-1 agreement: 95%.")] = None,
    max_accuracy_drop: Annotated[
        Text, typer.Option(metavar="SHARE", help="In every task, in points of its score: 1% is 0.01.")
    ] = None,
    min_decode: Annotated[Text, typer.Option(metavar="TOK/S", help="Speed of decoding.")] = None,
    min_prefill: Annotated[Text, typer.Option(metavar="TOK/S", help="Speed of prefill.")] = None,
    max_energy: Annotated[Text, typer.Option(metavar="J", help="Per decoded token, power at rest taken off.")] = None,
    minimize: Annotated[
        Text, typer.Option(metavar="WHAT", help="bytes (the default), memory, perplexity, kl, cost or energy.")
    ] = None,
    maximize: Annotated[Text, typer.Option(metavar="WHAT", help="decode, prefill or accuracy.")] = None,
    at: Annotated[
        Text, typer.Option(metavar="POINT", help="Where speed counts: 'batch 1, prompt 128'; else the first point.")
    ] = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="TOKENS", help="Prompt and answer that memory is for; else the point's."),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Texts at a time that memory is for; else the point's."),
    ] = None,
    allow_labelled: Annotated[
        bool, typer.Option("--allow-labelled", help="Admit what was calibrated on the evaluation text, or is invalid.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 4 where the choice does not hold within the uncertainty.")
    ] = False,
    output: Annotated[Format, typer.Option("--format", help="How the answer is written.")] = Format.TABLE,
) -> None:
    """Name the variant to ship: those that keep the limits, best first, and why each other one fell."""
    from harness.api.recommend import recommend as recommended

    found = recommended(
        results,
        minimize=minimize,
        maximize=maximize,
        at=at,
        context=context,
        batch=batch,
        allow_labelled=allow_labelled,
        max_memory=max_memory,
        max_size=max_size,
        max_perplexity_increase=max_perplexity_increase,
        max_kl=max_kl,
        min_agreement=min_agreement,
        max_accuracy_drop=max_accuracy_drop,
        min_decode=min_decode,
        min_prefill=min_prefill,
        max_energy=max_energy,
    )
    if output is Format.TABLE:
        from harness.cli.render.recommend import show

        show(found)
    elif output is Format.MARKDOWN:
        from harness.report.recommendation import markdown

        typer.echo(markdown(found), nl=False)
    else:
        from harness.report.recommendation import json_line

        for each in found:
            typer.echo(json_line(each))
    if any(each.pick is None and not each.unknown for each in found):
        raise typer.Exit(ExitCode.GATE_FAILED)
    if any(each.pick is None or (strict and not each.holds) for each in found):
        raise typer.Exit(ExitCode.INCONCLUSIVE)
