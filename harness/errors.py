"""The tree of errors and their exit codes.

HarnessError                 70  an internal error of the harness
├── UsageError                2  the command or its input is wrong; nothing was written
│   ├── RecipeError              a recipe: file, line, key, what was expected
│   ├── SourceError              a model or a text that cannot be found or may not be loaded
│   └── ResultsError             a results folder or a record that cannot be read (NewerRecordError: newer format)
├── StorageError             74  a disk refused what had to be written: full, read-only, gone, broken
└── RunError                     one run of a sweep produced no figures; it becomes a record
    ├── UnsupportedError         this machine, library or model cannot do it, and never could
    ├── DamagedError             what it needs from the cache is damaged or missing, and the next sweep makes it again
    └── InvalidRunError          it ran, but its figures mean nothing (NaN, nothing was quantized; UndrivenError: a load
                                 that the client could not drive, whose lower levels do mean something)
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from enum import IntEnum
from typing import NoReturn


class ExitCode(IntEnum):
    """Exit codes of the process."""

    OK = 0
    GATE_FAILED = 1
    USAGE = 2
    RUNS_FAILED = 3
    INCONCLUSIVE = 4
    INTERNAL = 70
    STORAGE = 74
    INTERRUPTED = 130


class HarnessError(Exception):
    """Base of every deliberate error of the harness."""

    exit_code = ExitCode.INTERNAL


class UsageError(HarnessError):
    """The command line or its input is wrong."""

    exit_code = ExitCode.USAGE


class RecipeError(UsageError):
    """A recipe is wrong; the message names file, line and key."""


class SourceError(UsageError):
    """A model or a text cannot be found, or may not be loaded."""


class ResultsError(UsageError):
    """A results folder or a record in it cannot be read."""


class NewerRecordError(ResultsError):
    """A record was written by a newer harness than this one."""


class StorageError(HarnessError):
    """Something could not be written; of a finished run the message says where it is kept (EX_IOERR of sysexits)."""

    exit_code = ExitCode.STORAGE


class RunError(HarnessError):
    """One run cannot produce figures. The sweep records it and continues."""

    exit_code = ExitCode.RUNS_FAILED


class UnsupportedError(RunError):
    """This combination of model, method, library and machine is impossible."""


class DamagedError(RunError):
    """An artifact that a run needs is not what was written to the cache, or is not there."""


class InvalidRunError(RunError):
    """The run ended, but its figures are meaningless."""


class UndrivenError(InvalidRunError):
    """The load generator could not send a load as it was asked for; the levels below it are measured."""


def reason_of(error: BaseException) -> str:
    """What an error says: of an OSError what the system says, without the path, which messages name by themselves."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def first_line_of(error: BaseException) -> str:
    """The first line of what an error says, or its type: messages of libraries may be long, or empty."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` with the closest known word, or the list of known words."""
    names = sorted(known)
    near = get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def refuse_unknown(kind: str, word: str, known: Iterable[str]) -> NoReturn:
    """Raises UsageError for a name that is not among the known ones."""
    raise UsageError(f"unknown {kind} {word!r}{did_you_mean(word, known)}")
