"""What a site of many sweeps costs: ``python benchmarks/site.py``.

Each sweep is a copy of ``results/example``: all are of one model, whose page is then as long as it gets. The site is
built, built again after nothing changed, and built again with one more sweep. Each build is a process of its own. CPU
time counts user and system; it hardly depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "results" / "example"
QHARNESS = str(Path(sys.executable).parent / "qharness")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, nargs="+", default=[10, 100, 1_000])
    asked = parser.parse_args()
    print("| sweeps | build | CPU, s | wall, s | peak, MiB | site, MB |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for count in asked.sweeps:
        with tempfile.TemporaryDirectory() as temporary:
            results, out = Path(temporary) / "results", Path(temporary) / "site"
            for number in range(count):
                shutil.copytree(EXAMPLE, results / f"sweep-{number:05}")
            show(count, "first", results, out)
            show(count, "nothing changed", results, out)
            shutil.copytree(EXAMPLE, results / f"sweep-{count:05}")
            show(count, "one more sweep", results, out)


def show(count: int, build: str, results: Path, out: Path) -> None:
    begun = time.perf_counter()
    process = subprocess.Popen(
        [QHARNESS, "site", *map(str, sorted(results.iterdir())), "--out", str(out)], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"qharness site exited with {os.waitstatus_to_exitcode(status)}")
    wall_s, cpu_s = time.perf_counter() - begun, used.ru_utime + used.ru_stime
    size_mb = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    print(
        f"| {count:,} | {build} | {cpu_s:.1f} | {wall_s:.1f} | {used.ru_maxrss / 1024:.0f} | {size_mb:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
