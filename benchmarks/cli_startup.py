"""Compares the run time of ``qharness --help`` with ``python -c pass``: ``python benchmarks/cli_startup.py``.

Both are whole processes, run alternately so that a slow phase of the machine affects both; the minima are
compared. Prints the ratio, which docs/measurements/cli-startup.md records.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 30
BAR = 10.0


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    bare = [sys.executable, "-c", "pass"]
    helped = [str(Path(sys.executable).parent / "qharness"), "--help"]
    pairs = [(seconds(bare), seconds(helped)) for _ in range(ROUNDS)]
    bare_s, help_s = (min(times) for times in zip(*pairs, strict=True))
    print(f"python -c pass   {bare_s * 1e3:6.1f} ms")
    print(f"qharness --help  {help_s * 1e3:6.1f} ms")
    print(f"ratio            {help_s / bare_s:6.1f}  (bar {BAR:g})")


if __name__ == "__main__":
    main()
