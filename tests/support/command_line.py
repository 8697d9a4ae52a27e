"""The ``qharness`` command in a process of its own, of this interpreter and the package that it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMAND = (sys.executable, "-c", "from harness.cli import main; main()")
_PROBE = """
import json, sys
started = []
def note(event, arguments):
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec"):
        started.append(event)
sys.addaudithook(note)
sys.argv = {arguments}
from harness.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
print()
print(json.dumps({{"code": code, "started": started, "imported": sorted(sys.modules)}}))
"""


@dataclass(frozen=True)
class Probed:
    """How a command ended, what it printed, how it started processes, and the modules that were imported by then."""

    code: int
    output: str
    started: tuple[str, ...]
    imported: frozenset[str]


def qharness(
    *arguments: object,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """The command, once it has ended."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd, timeout=timeout)


def probe(*arguments: object, env: Mapping[str, str] | None = None) -> Probed:
    """The command, which also says what it imported and started."""
    code = _PROBE.format(arguments=json.dumps(["qharness", *map(str, arguments)]))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert ended.returncode == 0, ended.stderr
    output, _, last = ended.stdout.removesuffix("\n").rpartition("\n")
    found = json.loads(last)
    return Probed(found["code"], output, tuple(found["started"]), frozenset(found["imported"]))
