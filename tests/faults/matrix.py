"""The fault matrix: every fault that is made, and what must become of it. docs/explanation/reliability.md shows it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
from faults import (
    Make,
    clock_jumps,
    damaged,
    disk_full,
    edit_a_digit,
    flip_a_bit,
    input_replaced,
    of_artifact,
    of_record,
    out_of_time,
    plugin,
    results_removed,
    signalled,
)
from kills import Victim

RUNS = ("quality none", "quantize unruly", "quality unruly")
"""The runs of the sweep that a fault is made in: the baseline, the one that it hits, and one that needs the latter."""
BASELINE, QUANTIZE, QUALITY = RUNS
OK, FAILED, IO_ERROR, INTERRUPTED = 0, 3, 74, 130
MEMORY = {"memory": "2GiB"}
ALL_OK = ("ok", "ok", "ok")


@dataclass(frozen=True)
class Fault:
    """One fault, made in a sweep of three runs.

    ``recorded`` is what the results hold after the fault, for each of RUNS: a status, or None where there is no record.
    ``remade`` are the runs that the next ``qharness run`` executes, after which figures and run ids must equal an
    undisturbed sweep's, each planned run must have one successful record, and no process, file or lock may be left.
    ``message`` is what the command must say. ``again`` are runs that rightly succeed twice, because what the first
    attempt made is lost. ``unmended`` names what the harness does wrong; such a row must fail.
    """

    name: str
    what: str
    make: Make
    exit_code: int
    recorded: tuple[str | None, str | None, str | None]
    remade: tuple[str, ...] = ()
    message: str = ""
    again: tuple[str, ...] = ()
    slow: bool = False
    unmended: str = ""

    @property
    def command(self) -> str:
        """What makes this fault alone."""
        marker = "-m slow " if self.slow else ""
        return f"pytest tests/faults {marker}-k '[{self.name}]'"


@dataclass(frozen=True)
class Kill:
    """A row of tests/faults/test_kills.py; ``name`` is the victim."""

    name: Victim
    what: str

    @property
    def command(self) -> str:
        """What makes all kills of this victim."""
        return f"pytest tests/faults/test_kills.py -m '' -k {self.name}"


KILLS = (
    Kill("parent", "the sweep"),
    Kill("worker", "a worker"),
    Kill("both", "the sweep and its worker at once"),
)


def _hit(name: str, what: str, make: Make, status: str, message: str = "", **others: Any) -> Fault:
    """A fault that costs the run that quantizes, and the one that needs it."""
    return Fault(name, what, make, FAILED, ("ok", status, "unsupported"), (QUANTIZE, QUALITY), message, **others)


def _harmless(name: str, what: str, make: Make, message: str = "", **others: Any) -> Fault:
    return Fault(name, what, make, OK, ALL_OK, (), message, **others)


def _interrupt(name: str, what: str, make: Make, message: str = "interrupted", **others: Any) -> Fault:
    return Fault(name, what, make, INTERRUPTED, ("ok", None, None), (QUANTIZE, QUALITY), message, **others)


def _unwritten(name: str, what: str, make: Make, **others: Any) -> Fault:
    """The run that quantizes ends well, and its record cannot be written: it is kept elsewhere."""
    return Fault(name, what, make, IO_ERROR, ("ok", None, None), (QUALITY,), "kept", **others)


def _text(name: str, what: str, how: Callable[[Path], object], message: str = "", **others: Any) -> Fault:
    """The text is read by the run that measures, and was read by the one that measured the baseline."""
    make = input_replaced(faults.text, how)
    return Fault(name, what, make, FAILED, ("invalid", "ok", "invalid"), (BASELINE, QUALITY), message, **others)


def _weights(name: str, what: str, how: Callable[[Path], object], message: str = "", **others: Any) -> Fault:
    make = input_replaced(faults.weights, how)
    return Fault(name, what, make, FAILED, ("invalid", "invalid", "unsupported"), RUNS, message, **others)


MATRIX = (
    _interrupt("sigint", "Ctrl-C", signalled(signal.SIGINT), slow=True),
    _interrupt("sigint-twice", "Ctrl-C, twice at once", signalled(signal.SIGINT, 2)),
    _interrupt("sigterm", "SIGTERM", signalled(signal.SIGTERM)),
    _interrupt("sighup", "the terminal closes (SIGHUP)", signalled(signal.SIGHUP), slow=True),
    _hit("worker-dies", "the worker is killed", plugin("die"), "crashed", "ended by signal 9", slow=True),
    _hit("hang", "a library hangs", out_of_time("hang", "3s"), "timeout", "time limit of 3 s", slow=True),
    _hit("hang-deaf", "a library hangs and ignores SIGTERM", out_of_time("hang_deaf", "3s"), "timeout"),
    _hit("memory-limit", "memory runs out (the recipe's limit)", plugin("allocate", limits=MEMORY), "out_of_memory"),
    _hit(
        "memory-cgroup",
        "memory runs out (a control group's limit)",
        faults.out_of_cgroup_memory,
        "out_of_memory",
        "killed by the kernel",
    ),
    _hit("exit", "a library calls os._exit(0)", plugin("leave"), "crashed", "left no outcome"),
    _hit("sys-exit", "a library calls sys.exit(0)", plugin("leave_politely"), "failed", "ended the process", slow=True),
    _harmless("stdout", "a library prints what is no text on stdout", plugin("print_on_stdout"), slow=True),
    _harmless("flood", "a library prints 1 GB", faults.flood, slow=True),
    _harmless("daemon", "a library starts a daemon", plugin("start_daemon"), slow=True),
    _harmless("daemon-files", "a daemon keeps the worker's files open", plugin("start_daemon_with_files")),
    _harmless("locale", "a library changes the locale and the working folder", plugin("change_locale"), slow=True),
    _hit("closed-files", "a library closes all files", plugin("close_files"), "failed", slow=True),
    _harmless("clock-forward", "the clock jumps a year ahead", clock_jumps(faults.A_YEAR_S), slow=True),
    _harmless("clock-back", "the clock jumps a year back", clock_jumps(-faults.A_YEAR_S)),
    _weights("weights-change", "the weights change", faults.other_content, "than when it was hashed", slow=True),
    _weights("weights-vanish", "the weights vanish", faults.nothing, "gone", slow=True),
    _weights("weights-fifo", "the weights become a FIFO", os.mkfifo),
    _text("text-changes", "the text changes", faults.other_content, "than when it was hashed", slow=True),
    _text("text-vanishes", "the text vanishes", faults.nothing, "gone", slow=True),
    _text("text-fifo", "the text becomes a FIFO", os.mkfifo, slow=True),
    Fault("results-removed", "the results are removed", results_removed, OK, (None, "ok", "ok"), (BASELINE,)),
    _unwritten("results-full", "the disk of the results is full", disk_full(lambda bench: bench.results, 0)),
    _unwritten(
        "results-nearly-full",
        "the same, in the middle of a write",
        disk_full(lambda bench: bench.results, 4 * 2**10),
        slow=True,
    ),
    _unwritten("results-read-only", "the results become read-only", faults.read_only),
    _hit("cache-full", "the disk of the cache is full", disk_full(lambda bench: bench.cache, 0), "failed", slow=True),
    Fault(
        "temporary-full",
        "the disk of the temporary folder is full",
        disk_full(lambda bench: bench.temporary, 0),
        FAILED,
        ("ok", "failed", "unsupported"),
        (QUALITY,),  # the artifact was published before the outcome could not be written
    ),
    Fault(
        "states-full",
        "the disk of the temporary folder has no room for the states of a streamed model",
        faults.states_without_room,
        FAILED,
        ("ok", "ok", "failed"),
        (QUALITY,),
        "no room for the states of suspended windows",
    ),
    Fault(
        "disk-too-slow",
        "the disk of a streamed model is too slow for the time limit",
        faults.disk_too_slow,
        OK,
        ("ok", "ok", "unsupported"),
        (QUALITY,),
        "limits.time is 600 s; raise the limit, or put the checkpoint on a faster disk",
    ),
    _harmless(
        "record-cut", "half of a record is lost", damaged(of_record("record.json"), faults.cut), "damaged", slow=True
    ),
    _harmless(
        "record-edited",
        "a digit of a record is edited",
        damaged(of_record("record.json"), edit_a_digit),
        "damaged",
    ),
    _harmless(
        "evidence-flipped",
        "a bit of a record's evidence flips",
        damaged(of_record("evidence.parquet"), flip_a_bit),
        "damaged",
        slow=True,
    ),
    _harmless("log-flipped", "a bit of a log flips", damaged(of_record("log.txt"), flip_a_bit), "damaged", slow=True),
    _harmless(
        "outcome-cut",
        "half of an outcome in the cache is lost",
        damaged(of_artifact("outcome.json"), faults.cut, lose_quality=True),
        message="damaged",
        again=(QUANTIZE,),
        slow=True,
    ),
    _harmless(
        "artifact-flipped",
        "a bit of a quantized checkpoint in the cache flips",
        damaged(of_artifact("model.safetensors"), flip_a_bit, lose_quality=True),
        message="damaged",
        again=(QUANTIZE,),
    ),
    _harmless("same-results", "another sweep starts on the same results", faults.two_on_the_same_results),
    _harmless("same-cache", "another sweep quantizes the same on the same cache", faults.two_on_the_same_cache),
)
