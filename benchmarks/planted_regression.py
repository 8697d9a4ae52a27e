"""Whether the alarm finds weights that are disturbed by 1%: ``python benchmarks/planted_regression.py FOLDER``.

A method from a package outside, benchmarks/planted, is installed in release 1.0 and swept twice, then in release 1.1,
which disturbs the weights, and swept once. FOLDER receives the three results, and ``qharness compare`` is printed
of the first two (nothing changed) and of the first and the third (the planted regression).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-m", "harness"]
SWEEPS = {"base": "1.0", "again": "1.0", "worse": "1.1"}
"""The names of the results, and the release that each was made with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.absolute()
    for name, release in SWEEPS.items():
        site = _installed(folder / "site" / release, release)
        _qharness("run", HERE / "planted" / "recipe.yaml", "--results", folder / name, site=site)
    for head in ("again", "worse"):
        print(f"\ncompare base {head}", flush=True)
        code = _qharness("compare", folder / "base", folder / head, "--all", site=folder / "site" / "1.0")
        print(f"exit code {code}", flush=True)


def _installed(site: Path, release: str) -> Path:
    """A folder for PYTHONPATH that contains the package as an installer would leave it."""
    info = site / f"planted-{release}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: planted\nVersion: {release}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[qharness.methods]\nplanted = planted:PLANTED\n", encoding="utf-8")
    shutil.copy(HERE / "planted" / "planted.py", site)
    return site


def _qharness(*arguments: object, site: Path) -> int:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], env={**os.environ, "PYTHONPATH": path}, check=False
    ).returncode


if __name__ == "__main__":
    main()
