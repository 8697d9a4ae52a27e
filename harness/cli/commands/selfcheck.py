"""``qharness selfcheck``: the acceptance test of this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from harness.cli.options import CacheFolder
from harness.errors import ExitCode
from harness.report.terminal import say

if TYPE_CHECKING:
    from harness.acceptance.bench import CheckResult


def selfcheck(
    on_gpu: Annotated[bool, typer.Option("--gpu", help="Check the NVIDIA GPU, not the processor.")] = False,
    minutes: Annotated[
        float, typer.Option("--minutes", min=0.1, max=600, help="Stop after about this many minutes.")
    ] = 8.0,
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it at run time
        typer.Option("--out", metavar="FILE", help="The zip to write; default: named after the time, in this folder."),
    ] = None,
    cache: CacheFolder = None,
) -> None:
    """Check that qharness measures correctly on this machine; exit with code 1 if a check fails.

    Writes a zip with findings, records and versions, to attach to an issue. It names no user, home folder or serial
    number.
    """
    from harness.api.selfcheck import selfcheck as check
    from harness.cli.render.plan import doctor_lines

    def show(finding: CheckResult) -> None:
        say(f"{finding.verdict}  {finding.about}: {finding.reason}")

    file = out or Path(f"qharness-selfcheck-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.zip")
    checked = check(
        file,
        on_gpu,
        minutes,
        cache,
        doctor="\n".join(doctor_lines()),
        on_finding=show,
        on_run=lambda title: say(f"      {title}", error=True),
    )
    verdicts = [each.verdict for each in checked.findings]
    say(f"{verdicts.count('PASS')} passed, {verdicts.count('FAIL')} failed, {verdicts.count('SKIP')} skipped; {file}")
    if not checked.passed:
        say("next: attach the file to an issue", error=True)
        raise typer.Exit(ExitCode.GATE_FAILED)
