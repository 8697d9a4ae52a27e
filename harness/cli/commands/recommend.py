"""``qharness recommend``: which variant to ship."""

from __future__ import annotations

from copy import copy
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from harness.cli.collector import never_collected
from harness.cli.options import Results
from harness.errors import ExitCode

if TYPE_CHECKING:
    from harness.figures.ask import LimitOption

Text = Optional[str]  # noqa: UP045 - typer reads it at run time


class RecommendFormat(StrEnum):
    """Output formats of a recommendation."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


class RecommendCommand(TyperCommand):
    """The command with an option for each limit that a figure declares; they are read when the command is used."""

    def get_params(self, ctx: Any) -> list[Any]:
        from harness.plugins import limit_options, objectives

        options = {each.name: each for each in super().get_params(ctx)}
        for name, direction in (("minimize", "lower"), ("maximize", "higher")):
            options[name].help = _listed(list(objectives(direction)), default=STORED_BYTES)  # type: ignore[attr-defined]
        limits = [_option(options["minimize"], keyword, figure.limit) for keyword, figure in limit_options().items()]
        results, *others = options.values()
        return [results, *limits, *others]

    def invoke(self, ctx: Any) -> Any:
        from harness.plugins import limit_options

        ctx.obj = {keyword: ctx.params.pop(f"limit_{keyword}") for keyword in limit_options()}
        return super().invoke(ctx)


STORED_BYTES = "bytes"
"""The objective if the user names none."""


def _option(like: Any, keyword: str, limit: LimitOption) -> Any:
    """An option for a limit, modelled on ``like``, an option that takes text."""
    option = copy(like)
    option.name, option.opts = f"limit_{keyword}", [f"--{limit.name}"]
    option.metavar, option.help = limit.metavar, limit.help
    return option


def _listed(names: list[str], default: str) -> str:
    *first, last = [f"{name} (the default)" if name == default else name for name in names]
    return f"{', '.join(first)} or {last}."


def recommend(
    ctx: typer.Context,
    results: Results,
    minimize: Annotated[Text, typer.Option(metavar="WHAT", help="A figure of which less is better.")] = None,
    maximize: Annotated[Text, typer.Option(metavar="WHAT", help="A figure of which more is better.")] = None,
    at: Annotated[
        Text, typer.Option(metavar="POINT", help="Grid point for speeds: 'batch 1, prompt 128'; default: the first.")
    ] = None,
    at_load: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            metavar="LEVEL",
            help="Measured load for a server's latencies and goodput, such as 8; default: the highest load, and for "
            "goodput the one where it is highest.",
        ),
    ] = None,
    context: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            metavar="TOKENS", help="Prompt and answer length for the memory limit; default: that of the grid point."
        ),
    ] = None,
    batch: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(metavar="N", help="Batch size for the memory limit; default: that of the grid point."),
    ] = None,
    allow_labelled: Annotated[
        bool,
        typer.Option(
            "--allow-labelled", help="Admit variants that were calibrated on the evaluation text or are invalid."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 4 if the choice does not hold within the uncertainty.")
    ] = False,
    output: Annotated[RecommendFormat, typer.Option("--format", help="Output format.")] = RecommendFormat.TABLE,
) -> None:
    """Pick the variant to ship: list those that meet the limits, best first, and why the others were rejected."""
    from harness.api.recommend import RecommendRequest, shown_recommendations
    from harness.cli.render.damage import say_damaged

    request = RecommendRequest(ctx.obj, minimize, maximize, at, at_load, context, batch, allow_labelled)
    with never_collected():
        recommendations, damaged = shown_recommendations(results, request)
        say_damaged(damaged, results)
        if output is RecommendFormat.TABLE:
            from harness.cli.render.recommend import show

            show(recommendations)
        elif output is RecommendFormat.MARKDOWN:
            from harness.report.shown_recommendation import markdown

            typer.echo(markdown(recommendations), nl=False)
        else:
            for each in recommendations:
                typer.echo(each.json_line)
        if any(not each.has_pick and not each.is_unknown for each in recommendations):
            raise typer.Exit(ExitCode.GATE_FAILED)
        if any(not each.has_pick or (strict and not each.holds) for each in recommendations):
            raise typer.Exit(ExitCode.INCONCLUSIVE)
