"""What a machine's check leaves to send: one zip without names, home folders, serial numbers and lists of processes."""

from __future__ import annotations

import re
import shutil
import subprocess
import traceback
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import IO

from harness.acceptance.bench import Bench, CheckResult
from harness.report.write import write_report

SMI_S = 30.0
_IDENTIFYING = re.compile(
    r"serial|uuid|guid|\bpdi\b|board id|host id|bus id|pci device|domain|accounting", re.IGNORECASE
)
"""The lines of nvidia-smi that tell one card, board or machine from another of its kind."""
_UUID = re.compile(
    r"\b(?:(?:GPU|MIG)-[0-9a-f]{4,8}(?:-[0-9a-f]+)*|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\b",
    re.IGNORECASE,
)
"""A UUID of anything, and that of a GPU or a slice also abbreviated, as CUDA_VISIBLE_DEVICES may hold it."""
_BUS = re.compile(r"GPU [0-9A-Fa-f]+:")
"""``GPU 00000000:1B:00.0``, the heading of a card."""
_PROCESSES = "Processes"


def write(out: Path, bench: Bench, findings: Sequence[CheckResult], doctor: str) -> Path:
    """Writes the zip; returns its path. Raises OSError, and leaves no file, if it cannot be written.

    What a report of the records fails with is in the zip in its place.
    """
    texts = {
        "findings.txt": lines(findings),
        "doctor.txt": doctor,
        "versions.txt": "\n".join(_versions()),
        "nvidia-smi.txt": _nvidia_smi(),
    }
    report = bench.folder / "report"
    if bench.records:
        try:
            write_report(bench.records, report, ["html", "md"])
        except Exception:  # noqa: BLE001 - all else is worth sending, and this is a fault to report
            texts["report-failed.txt"] = traceback.format_exc()
    with out.open("xb") as file:
        try:
            _fill(file, bench, texts, (bench.results, report))
        except BaseException:
            out.unlink(missing_ok=True)
            raise
    return out


def _fill(file: IO[bytes], bench: Bench, texts: Mapping[str, str], folders: Sequence[Path]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, _UUID.sub("$UUID", bench.anonymizer.message(text)))
        for folder in folders:
            for each in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(each, str(each.relative_to(bench.folder)))


def lines(findings: Sequence[CheckResult]) -> str:
    """One line for each finding, and their number."""
    width = max((len(each.about) for each in findings), default=0)
    return "\n".join(f"{each.verdict}  {each.about:<{width}}  {each.reason}" for each in findings)


def _versions() -> Iterator[str]:
    """Every installed distribution with its version."""
    found = {str(each.metadata["Name"]).lower(): each.version for each in distributions()}
    yield from (f"{name}=={version}" for name, version in sorted(found.items()))


def _nvidia_smi() -> str:
    """``nvidia-smi -q`` without what identifies the machine, or why there is nothing to show."""
    if shutil.which("nvidia-smi") is None:
        return "there is no nvidia-smi here"
    try:
        ended = subprocess.run(
            ["nvidia-smi", "-q"], capture_output=True, text=True, errors="replace", check=False, timeout=SMI_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi gave no answer: {type(error).__name__}"
    return without_identity(ended.stdout or ended.stderr)


def without_identity(text: str) -> str:
    """nvidia-smi's answer without numbers of cards and boards, and without its list of processes."""
    kept, processes_at = [], None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if processes_at is not None and line.strip() and indent <= processes_at:
            processes_at = None
        name = line.partition(":")[0].strip()
        if name == _PROCESSES:
            processes_at = indent
        if processes_at is None and not _IDENTIFYING.search(name) and not _BUS.match(line):
            kept.append(line)
    return "\n".join(kept)
