"""Runs a sweep and then every command that prints or writes results, in one process, on a machine of a planted name.

``python private_sweep.py HOST``: this process takes the name in a namespace of its own where the system lets it, and
else puts it in HOSTNAME. What each command prints goes to a file in the folder ``output``. The workers are forked (see
warm_workers.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from warm_workers import Workers

CLONE_NEWUTS = 0x04000000
COMMANDS = (
    "run recipes/recipe.yaml",
    "run recipes/recipe.yaml --json",
    "run recipes/wrong.yaml",
    "plan recipes/recipe.yaml",
    "plan recipes/recipe.yaml --json",
    "report results/private --format html,md,csv,parquet,model-card,github",
    "baseline set kept results/private",
    "baseline list",
    "compare kept {absolute} --all",
    "compare kept {absolute} --format json",
    "compare kept {absolute} --format junit",
    "compare kept {absolute} --format markdown",
    "history {absolute} --format markdown",
    "history kept {absolute} --format json",
    "history {absolute} --format csv",
    "recommend results/private",
    "recommend results/private --format json",
    "recommend {absolute}/nowhere",
    "export mlflow results/private --tracking-uri mlruns",
    "verify {absolute}",
    "verify {absolute} --json",
    "verify {cache} --read-data",
    "repair {absolute} --json",
    "doctor",
    "stack list",
)


def take_name(host: str) -> bool:
    """Whether this process, and no other, now runs on a machine of this name."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
        return False
    socket.sethostname(host)
    return True


def main(host: str) -> None:
    if not take_name(host):
        os.environ["HOSTNAME"] = host
    from harness.cli.app import main as qharness
    from harness.execution import starter
    from harness.host.machine import cache_folder

    workers = Workers()
    os.environ[starter.VARIABLE] = starter.SPAWN
    starter.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": workers.start})
    Path("output").mkdir()
    for number, command in enumerate(COMMANDS):
        words = shlex.split(command.format(absolute=Path("results/private").absolute(), cache=cache_folder()))
        printed = io.StringIO()
        sys.argv = ["qharness", *words]
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                qharness()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        Path("output", f"{number:02}-{words[0]}.txt").write_text(
            f"{command}\nexit {code}\n{printed.getvalue()}", encoding="utf-8"
        )
    workers.close()


if __name__ == "__main__":
    main(sys.argv[1])
