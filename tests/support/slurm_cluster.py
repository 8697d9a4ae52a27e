"""A real Slurm of a test's own: munged, slurmctld and two slurmd of this machine, on loopback, in one folder."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
COMMANDS = ("sbatch", "srun", "squeue", "scancel", "sinfo")
NODES = ("n1", "n2")
START_S = 300.0
"""How long the daemons may take until both nodes are idle."""
END_S = 120.0
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
"""
"""Without an accounting database, as many small clusters are: sacct answers nothing there."""


@dataclass(frozen=True)
class Slurm:
    """The cluster. ``variables`` are those with which commands find it."""

    variables: Mapping[str, str]

    def ask(self, *command: str) -> list[str]:
        """The lines that one of Slurm's commands prints. Raises CalledProcessError if it fails."""
        ended = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=True, timeout=END_S)
        return ended.stdout.splitlines()

    def jobs(self) -> list[str]:
        """The ids of all jobs that have not ended, in the order in which they were submitted."""
        return sorted(self.ask("squeue", "--noheader", "--format=%i"), key=int)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """The cluster, with all of its files in a folder. Skips the test where Slurm is absent or cannot be started."""
    missing = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=_path()) is None]
    if missing:
        pytest.skip(f"needs Slurm, and there is no {missing[0]}: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("needs root: Slurm's daemons start jobs as other users")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700, parents=True)
    key = folder / "munge" / "key-file"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(3)), encoding="utf-8")
    made = Slurm({**os.environ, "PATH": _path(), "SLURM_CONF": str(configuration)})
    with ExitStack() as daemons:
        files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        for name, command in {
            "munged": ["munged", "--foreground", "--force", *(f"--{each}={folder}/munge/{each}" for each in files)],
            "slurmctld": ["slurmctld", "-D", "-c"],
            **{node: ["slurmd", "-D", "-N", node] for node in NODES},
        }.items():
            log = daemons.enter_context((folder / f"{name}.log").open("wb"))
            daemons.enter_context(_daemon(command, made.variables, log.fileno()))
        _wait_until_idle(made, folder)
        yield made
        for job in made.jobs():
            made.ask("scancel", "--signal=KILL", job)


def _path() -> str:
    """Daemons are in folders that a user's PATH may lack."""
    return os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/sbin"))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        opened = [sockets.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in opened]


@contextmanager
def _daemon(command: Sequence[str], variables: Mapping[str, str], log: int) -> Iterator[None]:
    process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_idle(made: Slurm, folder: Path) -> None:
    """Skips the test, with the ends of the daemons' logs, if the nodes do not come up."""
    limit_s = time.monotonic() + START_S
    states: list[str] = []
    while states != ["idle"] * len(NODES):
        if time.monotonic() > limit_s:
            ends = [path.read_text(errors="replace")[-300:] for path in sorted(folder.glob("*.log"))]
            pytest.skip(f"Slurm does not start here: {states}: {ends}")
        time.sleep(0.2)
        try:
            states = made.ask("sinfo", "--noheader", "--Node", "--format=%t")
        except subprocess.SubprocessError:
            states = []
