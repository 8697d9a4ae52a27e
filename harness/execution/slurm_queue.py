"""submitit's jobs on Slurm, whose states are those of the controller's queue.

submitit itself asks ``sacct``, which needs an accounting database. Without one, as on many small clusters, a job that
has ended would be waited for forever.
"""

from __future__ import annotations

import os
import subprocess
import time

from submitit import SlurmExecutor as SubmititExecutor
from submitit import SlurmJob
from submitit.slurm.slurm import SlurmInfoWatcher

ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
"""The states of jobs that will not run again (https://slurm.schedmd.com/squeue.html, job state codes)."""
FORGOTTEN = "no longer in the queue"
"""The state of a job that ended so long ago that the controller does not list it."""
MAX_DELAY_S = 30
"""How long after the last look the next one is due; the first ones come sooner."""
PATIENCE_S = 30.0
"""How long the controller may take to answer."""


class QueueWatcher(SlurmInfoWatcher):  # type: ignore[misc]
    """Looks at all jobs at once. If the controller does not answer, what was known before stays."""

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Unlike submitit's, by which a preempted job still runs and one that is configured has ended."""
        self.get_info(job_id, mode)
        return job_id in self._finished

    def update(self) -> None:
        self._last_status_check = time.time()
        command = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%i|%T"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout
        except (OSError, subprocess.SubprocessError):
            return
        states = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
        for job_id in self._registered - self._finished:
            state = states.get(job_id, FORGOTTEN)
            self._info_dict[job_id] = {"State": state}
            if state in ENDED or state == FORGOTTEN:
                self._finished.add(job_id)


class QueueJob(SlurmJob):  # type: ignore[misc]
    watcher = QueueWatcher(delay_s=MAX_DELAY_S)


class QueueExecutor(SubmititExecutor):  # type: ignore[misc]
    job_class = QueueJob
