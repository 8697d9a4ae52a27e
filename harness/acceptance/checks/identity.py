"""What the machine is, whether torch can use its GPU, and whether every spelling of a GPU means the same GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.acceptance import visible
from harness.acceptance.bench import Bench, CheckResult, failed, judged, passed, skipped
from harness.host.gpu import absence, visible_uuids
from harness.host.machine import fingerprint
from harness.host.visible import NUMBERED_AS_NVML, VARIABLE

ABBREVIATED_CHARACTERS = len("GPU-01234567")
ASK_S = 20.0
"""How long the driver may take to list its GPUs: the first process to use a GPU waits for it to wake up."""


def identity(bench: Bench) -> Iterator[CheckResult]:
    """The machine names its processor, its memory and its GPU."""
    found = fingerprint()
    needed = ("cpu", "cores", "memory_bytes", *(("gpu", "gpu_memory_bytes", "driver") if bench.on_gpu else ()))
    missing = [name for name in needed if not found.hardware.get(name)]
    parts = [f"{found.hardware.get('cpu')}, {found.hardware.get('cores')} cores"]
    if bench.on_gpu:
        sentences = {
            "gpu": "{}",
            "driver": "driver {}",
            "gpu_capability": "compute capability {}",
            "gpu_power_limit_w": "power limit {:.0f} W",
        }
        parts += [text.format(found.hardware[name]) for name, text in sentences.items() if name in found.hardware]
    parts += [f"torch {found.software.get('torch', 'missing')}"]
    reason = ", ".join(parts)
    yield judged("machine", not missing, f"{reason}; not known: {', '.join(missing)}" if missing else reason)


def preflight(bench: Bench) -> Iterator[CheckResult]:
    """Torch can use the GPU, and multiplies each dtype correctly."""
    checked = bench.preflight
    if not bench.on_gpu:
        yield skipped("torch on the GPU", "only the processor is checked; --gpu checks the GPU")
    elif checked is None:
        yield failed("torch on the GPU", f"{absence()}; without --gpu the processor is checked")
    elif checked.problem is not None:
        yield failed("torch on the GPU", checked.problem)
    else:
        works = [dtype for dtype, product in checked.torch.products.items() if product.raised is None]
        lacks = f"; not {', '.join(checked.lacking)}" if checked.lacking else ""
        yield passed("torch on the GPU", f"torch {checked.torch.version} multiplies {', '.join(works)}{lacks}")


def spellings(bench: Bench) -> Iterator[CheckResult]:
    """For each way to name GPUs in CUDA_VISIBLE_DEVICES, the driver and qharness see the same GPUs."""
    about = "GPU spellings"
    uuids = visible_uuids() if bench.on_gpu else ()
    if not uuids:
        yield skipped(about, "no GPU is in use")
        return
    answers = {each: _ask(each, min(ASK_S, bench.left_s)) for each in _spellings(uuids)}
    silent = [answer for answer in answers.values() if isinstance(answer, str)]
    if len(silent) == len(answers):
        yield skipped(about, f"CUDA could not be asked: {silent[0]}")
        return
    places = {uuid.partition("-")[2]: f"GPU {place}" for place, uuid in enumerate(uuids)}
    wrong = [
        f"{_named(each)}: {answer}"
        if isinstance(answer, str)
        else f"{_named(each)}: CUDA sees {_listed(answer.driver, places)}, qharness {_listed(answer.harness, places)}"
        for each, answer in answers.items()
        if isinstance(answer, str) or answer.driver != answer.harness
    ]
    yield judged(about, not wrong, "; ".join(wrong) or f"{len(answers)} spellings mean the same to CUDA and qharness")


@dataclass(frozen=True)
class _Visible:
    """UUIDs without their prefix, in the order of CUDA's numbers."""

    driver: Sequence[str]
    harness: Sequence[str]


def _spellings(uuids: Sequence[str]) -> tuple[str | None, ...]:
    """The values to try; None leaves the variable away. An index names no MIG slice."""
    first = uuids[0]
    if first.startswith("MIG-"):
        return first, ""
    return None, first, first[:ABBREVIATED_CHARACTERS], "0", "", "0,0", "0,9999", "9999,0", "none", "-1"


def _named(spelling: str | None) -> str:
    """A spelling as it may be published: a UUID identifies the card."""
    if spelling is None:
        return "variable not set"
    if spelling.startswith(("GPU-", "MIG-")):
        return "abbreviated UUID" if len(spelling) == ABBREVIATED_CHARACTERS else "UUID"
    return repr(spelling)


def _listed(uuids: Sequence[str], places: Mapping[str, str]) -> str:
    return " and ".join(places.get(uuid, "another GPU") for uuid in uuids) or "none"


def _ask(spelling: str | None, within_s: float) -> _Visible | str:
    """The GPUs that a process with this value sees; else why it gave no answer."""
    if within_s <= 0:
        return "no time was left to ask"
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    variables |= NUMBERED_AS_NVML | ({} if spelling is None else {VARIABLE: spelling})
    try:
        ended = subprocess.run(
            [sys.executable, "-P", "-m", visible.__name__],
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=within_s,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {within_s:.0f} s"
    if ended.returncode != 0:
        return (ended.stderr.strip().splitlines() or ["no message"])[-1]
    return _Visible(**json.loads(ended.stdout))
