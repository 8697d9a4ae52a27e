"""The lock of a results folder: one sweep at a time, and a killed one does not hold it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import ResultsError
from harness.storage.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from harness.storage.store import Store
with Store(Path(sys.argv[1])).locked("sweep"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ResultsError, match="another 'qharness run' is writing here"), Store(tmp_path).locked("sweep"):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with Store(tmp_path).locked("sweep"):
        pass
