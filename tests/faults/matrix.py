"""The fault matrix: every fault that is made, and what must become of it. docs/reliability.md shows it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import faults
from faults import Make, damaged, disk_full, input_replaced, of_artifact, of_record, plugin, signalled, text, weights

OK, INTERRUPTED, FAILED = 0, 130, 3
LOST = (("quantize", "invalid"), ("quality", "unsupported"))


@dataclass(frozen=True)
class Fault:
    """One fault, made in a sweep of two runs: one quantizes, one measures what it made.

    ``recorded`` is what the results hold after the fault, by kind of run; no entry means no record. ``remade`` are the
    kinds of the runs that the next ``qharness run`` executes, after which figures and run ids must equal an undisturbed
    sweep's, each planned run must have one successful record, and no process, file or lock may be left. ``message`` is
    what the command must say. ``unmended`` names what the harness does wrong; such a row must fail.
    """

    name: str
    what: str
    make: Make
    exit_code: int
    recorded: tuple[tuple[str, str], ...]
    remade: tuple[str, ...] = ()
    message: str = ""
    slow: bool = False
    unmended: str = ""


def _hit(status: str) -> tuple[tuple[str, str], ...]:
    """The run that quantizes ends so; the other has nothing to measure."""
    return (("quantize", status), ("quality", "unsupported"))


BOTH = ("quantize", "quality")
WELL = (("quantize", "ok"), ("quality", "ok"))

MATRIX = (
    Fault("sigint", "Ctrl-C", signalled(signal.SIGINT), INTERRUPTED, (), BOTH, "interrupted"),
    Fault("sigint-twice", "Ctrl-C, twice at once", signalled(signal.SIGINT, 2), INTERRUPTED, (), BOTH),
    Fault("sigterm", "SIGTERM", signalled(signal.SIGTERM), INTERRUPTED, (), BOTH, "interrupted"),
    Fault("sighup", "the terminal closes (SIGHUP)", signalled(signal.SIGHUP), INTERRUPTED, (), BOTH, "interrupted"),
    Fault("worker-dies", "the worker is killed", plugin("die"), FAILED, _hit("crashed"), BOTH, "ended by signal 9"),
    Fault(
        "hang", "a library hangs (time limit)", plugin("hang", limits={"time": "3s"}), FAILED, _hit("timeout"), BOTH,
        "time limit of 3 s",
    ),
    Fault(
        "hang-deaf", "a library hangs, and ignores SIGTERM", plugin("hang_deaf", limits={"time": "3s"}), FAILED,
        _hit("timeout"), BOTH,
    ),
    Fault(
        "memory-limit", "memory runs out (the recipe's limit)",
        plugin("allocate", limits={"memory": f"{faults.LIMIT_BYTES}B"}), FAILED, _hit("out_of_memory"), BOTH,
    ),
    Fault(
        "memory-cgroup", "memory runs out (a control group's limit)", faults.out_of_cgroup_memory, FAILED,
        _hit("out_of_memory"), BOTH, "killed by the kernel",
    ),
    Fault("exit", "a library calls os._exit(0)", plugin("leave"), FAILED, _hit("crashed"), BOTH, "left no outcome"),
    Fault("sys-exit", "a library calls sys.exit(0)", plugin("leave_politely"), FAILED, _hit("crashed"), BOTH),
    Fault("stdout", "a library prints on stdout what is no text", plugin("print_on_stdout"), OK, WELL),
    Fault("flood", "a library prints 1 GB", faults.flood, OK, WELL, slow=True),
    Fault("daemon", "a library starts a daemon", plugin("start_daemon"), OK, WELL),
    Fault("daemon-files", "a daemon that keeps the worker's files open", plugin("start_daemon_with_files"), OK, WELL),
    Fault("locale", "a library changes the locale and the working folder", plugin("change_locale"), OK, WELL),
    Fault(
        "closed-files", "a library closes all files", plugin("close_files"), FAILED, _hit("failed"), BOTH,
    ),
    Fault("clock-forward", "the clock jumps a year ahead", faults.clock_jumps(faults.A_YEAR_S), OK, WELL),
    Fault("clock-back", "the clock jumps a year back", faults.clock_jumps(-faults.A_YEAR_S), OK, WELL),
    Fault(
        "weights-change", "the weights change", input_replaced(weights, faults.other_content), FAILED,
        _hit("invalid"), BOTH, "than when it was hashed",
    ),
    Fault("weights-vanish", "the weights vanish", input_replaced(weights, faults.nothing), FAILED, _hit("invalid"), BOTH),
    Fault("weights-fifo", "the weights become a FIFO", input_replaced(weights, os.mkfifo), FAILED, _hit("invalid"), BOTH),
    Fault(
        "text-changes", "the text changes", input_replaced(text, faults.other_content), FAILED,
        (("quantize", "ok"), ("quality", "invalid")), ("quality",), "than when it was hashed",
    ),
    Fault(
        "text-vanishes", "the text vanishes", input_replaced(text, faults.nothing), FAILED,
        (("quantize", "ok"), ("quality", "invalid")), ("quality",),
    ),
    Fault(
        "text-fifo", "the text becomes a FIFO", input_replaced(text, os.mkfifo), FAILED,
        (("quantize", "ok"), ("quality", "invalid")), ("quality",),
    ),
    Fault("results-removed", "the results folder is removed", faults.results_removed, OK, WELL),
    Fault(
        "results-full", "the disk of the results is full", disk_full(lambda bench: bench.results, 0), 74, (), ("quality",),
        "kept",
    ),
    Fault("results-read-only", "the results become read-only", faults.read_only, 74, (), ("quality",), "kept"),
    Fault(
        "cache-full", "the disk of the cache is full", disk_full(lambda bench: bench.cache, 0), FAILED,
        _hit("failed"), BOTH,
    ),
    Fault(
        "temporary-full", "the disk of the temporary folder is full", disk_full(lambda bench: bench.temporary, 0), FAILED,
        _hit("failed"), BOTH,
    ),
    Fault(
        "record-cut", "a record is cut in half between two runs", damaged(of_record("record.json"), faults.cut), OK, WELL,
    ),
    Fault(
        "record-edited", "a digit of a record is edited", damaged(of_record("record.json"), faults.edit_a_digit), OK, WELL,
    ),
    Fault(
        "evidence-flipped", "a bit of the evidence flips", damaged(of_record("evidence.parquet"), faults.flip_a_bit), OK,
        WELL,
    ),
    Fault("log-flipped", "a bit of a log flips", damaged(of_record("log.txt"), faults.flip_a_bit), OK, WELL),
    Fault(
        "outcome-cut", "the outcome in a cache folder is cut in half",
        damaged(of_artifact("outcome.json"), faults.cut, lose="quality"), OK, WELL,
    ),
    Fault(
        "artifact-flipped", "a bit of a quantized checkpoint flips in the cache",
        damaged(of_artifact("model.safetensors"), faults.flip_a_bit, lose="quality"), OK, WELL,
    ),
    Fault("same-results", "two sweeps on the same results", faults.two_on_the_same_results, OK, WELL),
    Fault("same-cache", "two sweeps on the same cache", faults.two_on_the_same_cache, OK, WELL),
)  # fmt: skip
