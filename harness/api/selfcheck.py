"""``qharness selfcheck``: the acceptance test of this machine, and a zip of what it found."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.acceptance import archive
from harness.acceptance.bench import Bench, CheckResult, failed, skipped
from harness.acceptance.checks.faults import memory, sharing
from harness.acceptance.checks.identity import identity, preflight, spellings
from harness.acceptance.checks.quality import quality
from harness.acceptance.checks.speed import bounds, decode, own_speeds
from harness.acceptance.checks.storage import cache, storage
from harness.core.owner import current_owner
from harness.errors import HarnessError, StorageError, UsageError, reason_of
from harness.execution.debris import clear
from harness.host.machine import cache_folder, choose
from harness.host.preflight import preflight as ask_torch


@dataclass(frozen=True)
class MachineCheck:
    """``share`` is the most of the whole time that it may take; ``runs`` says that it needs a device to run on."""

    name: str
    share: float
    find: Callable[[Bench], Iterator[CheckResult]]
    runs: bool = True


CHECKS = (
    MachineCheck("machine", 0.05, identity, runs=False),
    MachineCheck("torch on the GPU", 0.05, preflight, runs=False),
    MachineCheck("GPU spellings", 0.2, spellings),
    MachineCheck("key-value cache", 0.4, cache),
    MachineCheck("own speeds", 0.05, own_speeds),
    MachineCheck("stored bytes", 0.6, storage),
    MachineCheck("decoding", 0.5, decode),
    MachineCheck("bounds", 0.1, bounds),
    MachineCheck("divergence and reload", 0.4, quality),
    MachineCheck("memory", 0.3, memory),
    MachineCheck("sharing", 0.2, sharing),
)
"""In their order: later ones read what earlier ones measured."""


@dataclass(frozen=True)
class MachineReport:
    """All findings, and the zip to send."""

    findings: tuple[CheckResult, ...]
    archive: Path

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(each.verdict != "FAIL" for each in self.findings)


def selfcheck(
    out: Path,
    on_gpu: bool = False,
    minutes: float = 8.0,
    cache_root: Path | None = None,
    *,
    doctor: str = "",
    on_finding: Callable[[CheckResult], None] = lambda finding: None,
    on_run: Callable[[str], None] = lambda title: None,
) -> MachineReport:
    """Checks this machine's processor, or its first GPU, for about ``minutes`` at most; writes a zip to ``out``.

    ``doctor`` is what ``qharness doctor`` says, for the zip. ``on_finding`` gets each finding at once, ``on_run``
    the title of each run that begins. A check that fails in an unforeseen way is a finding too.
    Raises UsageError for a file that exists, or a file or cache folder that cannot be written, and StorageError if
    writing the file failed in the end.
    """
    if out.exists():
        raise UsageError(f"{out} exists; name another file with --out")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UsageError(f"{out} cannot be written: name a file in a folder of yours with --out")
    root = (cache_root or cache_folder()).absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{root}: {reason_of(error)}; name a folder that can be made with --cache") from None
    if not os.access(root, os.W_OK):
        raise UsageError(f"{root} cannot be written: name a folder of yours with --cache")
    clear([root])
    over_s = time.monotonic() + 60 * minutes
    checked = ask_torch(root) if on_gpu else None
    usable = not on_gpu or (checked is not None and checked.problem is None)
    machine = choose("cuda" if on_gpu else "cpu", root) if usable else None
    if machine is not None:
        machine = replace(machine, uuids=machine.uuids[:1])  # unlike GPUs do not agree to the last bit
    findings = []
    with tempfile.TemporaryDirectory(
        prefix=".selfcheck-", suffix=f"-{current_owner()}.part", dir=root, ignore_cleanup_errors=True
    ) as folder:
        bench = Bench(Path(folder), on_gpu, machine, checked, on_run, over_s=over_s)
        for finding in _findings(bench, minutes):
            findings.append(replace(finding, reason=bench.anonymizer.message(finding.reason)))
            on_finding(findings[-1])
        try:
            return MachineReport(tuple(findings), archive.write(out, bench, findings, doctor))
        except OSError as error:
            raise StorageError(f"{out} could not be written: {reason_of(error)}") from error


def _findings(bench: Bench, minutes: float) -> Iterator[CheckResult]:
    for check in CHECKS:
        left_s = bench.over_s - time.monotonic()
        if check.runs and bench.chosen is None:
            yield skipped(check.name, "torch cannot use the GPU")
        elif left_s <= 0:
            yield skipped(check.name, f"the {minutes:g} minutes are over; give it more with --minutes")
        else:
            bench.ends_s = time.monotonic() + min(left_s, check.share * 60 * minutes)
            try:
                yield from check.find(bench)
            except HarnessError as error:
                yield failed(check.name, str(error))
            except Exception as error:  # noqa: BLE001 - the others' findings are worth sending, and this is one
                yield failed(check.name, f"internal error, {type(error).__name__}: {error}")
