"""Runs specs on nodes that Slurm gives: each job, submitted by submitit, is one node, where an agent serves the sweep.

A job of its own for each run would wait in the queue each time, and speeds of one model would be measured on whichever
nodes came. Here a job is a pilot: it holds its node until the sweep ends, and the sweep's schedule places runs on it.
The cache folder must be one that the nodes share with this machine, and so must be the models, the texts and the
environment. A job that ends, is cancelled or runs out of time is a lost node.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Protocol, TypeVar

from harness.core.inputs import Input
from harness.core.owner import current_owner
from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import Node, Speeds
from harness.errors import ResultsError, UsageError
from harness.execution import agent, fetch
from harness.execution.agent import AgentSettings, Beating, RemoteAgent
from harness.execution.cluster import (
    ClusterSite,
    NodeReport,
    paths_read,
    refuse_absent,
    refuse_unreadable,
    writing_to,
)
from harness.execution.executor import RunLost
from harness.execution.executors import ExecutorChoice
from harness.execution.fetch import HubContent
from harness.execution.interrupt import uninterrupted
from harness.execution.local import LocalSite
from harness.stacks import Stacks
from harness.storage.json_codec import encode

DEFAULTS: Mapping[str, int | bool | str] = {"time": 240, "exclusive": True, "no_requeue": True}
"""What sbatch is given unless ``--slurm`` says otherwise: minutes; nobody else on the node, for speeds; and that a job
whose node failed is not started again, since its runs are made elsewhere."""
TAKEN = frozenset(
    (
        *("array", "array_parallelism", "no_requeue", "ntasks", "ntasks_per_node", "requeue", "wrap"),
        *("error", "open_mode", "output", "stderr_to_stdout"),
        *("additional_parameters", "num_gpus", "setup", "signal_delay_s", "srun_args", "teardown", "use_srun"),
    )
)
"""What would start an agent twice, or hide its log; and parameters of submitit that are no options of sbatch."""
JOB_CHECK_S = 2.0
"""How often a job's state is looked at; Slurm is asked more and more seldom (``slurm_queue.py``)."""
JOB_END_S = 10.0
"""How long a job whose agent has ended may take to end."""
LOG_CHARACTERS = 400
T = TypeVar("T")
_DURATION = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


class Job(Protocol):
    """As much of ``submitit.Job`` as is used here."""

    @property
    def state(self) -> str: ...

    def done(self) -> bool: ...

    def cancel(self, check: bool = True) -> None: ...

    def stderr(self) -> str | None: ...


class Submitter(Protocol):
    """As much of ``submitit.Executor`` as is used here."""

    def submit(self, function: Callable[[str, str], None], *arguments: str) -> Job: ...


def open_slurm(choice: ExecutorChoice, site: LocalSite, report: Callable[[str], None]) -> SlurmExecutor:
    """Submits one job for each of ``choice.nodes`` nodes and waits until all of them report.

    Raises UsageError if this machine cannot submit jobs, if the cache folder takes no files, if Slurm refuses the
    options or a job ends before it reports, and if the nodes are unlike.
    """
    options = parse_options(choice.slurm)
    return SlurmExecutor(site, choice.nodes or 1, partial(_submitter, options), report, _limit_s(options))


def parse_options(given: Sequence[str]) -> dict[str, int | bool | str]:
    """Options of sbatch by their long name with underscores, from ``key=value``. Raises UsageError for anything else.

    ``time`` becomes minutes, as submitit wants it.
    """
    options: dict[str, int | bool | str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        name = name.removeprefix("--").replace("-", "_")
        if not equals or not re.fullmatch(r"[a-z][a-z_]*", name) or not value.isprintable():
            raise UsageError(f"--slurm {pair}: give an option of sbatch as key=value, such as partition=gpu")
        if name == "nodes":
            raise UsageError("--slurm nodes=…: each job is one node; give their number by --nodes")
        if name in TAKEN:
            raise UsageError(f"--slurm {name}=…: qharness itself decides that")
        if value in ("true", "false"):
            options[name] = value == "true"
        elif name == "time":
            options[name] = _minutes(value)
        else:
            options[name] = value  # also digits: 00421 may be an account's name
    return options


def _minutes(text: str) -> int:
    """Minutes from a time as sbatch writes it: minutes, m:s, h:m:s, days-h, days-h:m or days-h:m:s."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"--slurm time={text}: give minutes, hours:minutes:seconds or days-hours, as for sbatch")
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        seconds = int(match["days"]) * 86400 + first * 3600 + second * 60 + third
    elif match["third"] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return -(-seconds // 60)


def _limit_s(options: Mapping[str, int | bool | str]) -> float | None:
    """How long a job may run; None if the options leave that to the partition, or set no limit (0)."""
    minutes = {**DEFAULTS, **options}["time"]
    return 60.0 * minutes if not isinstance(minutes, bool | str) and minutes else None


def _submitter(options: Mapping[str, int | bool | str], folder: Path) -> Submitter:
    """submitit's executor for Slurm. Raises UsageError if there is none here, or for an option of a wrong type."""
    try:
        from harness.execution.slurm_queue import QueueExecutor
    except ImportError:
        raise UsageError("--executor slurm needs submitit: pip install 'qharness[slurm]'") from None
    missing = [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise UsageError(f"--executor slurm: there is no {missing[0]} here; run it where Slurm jobs are submitted")
    # -P: nothing in the folder where the command was given may take the place of a package
    executor = QueueExecutor(folder, max_num_timeout=0, python=f"{quote(sys.executable)} -P")
    wanted = {name: value for name, value in {**DEFAULTS, **options}.items() if value is not False}
    known = QueueExecutor._valid_parameters()
    others = {name.replace("_", "-"): value for name, value in wanted.items() if name not in known}
    # without srun the agent has all that the job has; srun would give it the cores of one task
    given = {"job_name": "qharness", **{name: value for name, value in wanted.items() if name in known}}
    executor.update_parameters(**given, additional_parameters=others, use_srun=False)
    submitter: Submitter = executor
    return submitter


@dataclass
class _Job:
    """A node's job, whose state is looked at now and then."""

    job: Job
    _looked_s: float = 0.0
    _state: str | None = None

    def find_end(self) -> str | None:
        """How the job has ended; None while it may run."""
        now = time.monotonic()
        if self._state is None and now - self._looked_s > JOB_CHECK_S:
            self._looked_s = now
            if self.job.done():
                self._state = f"its job has ended ({self.job.state.lower()})"
        return self._state

    def end(self, patience_s: float) -> None:
        """Cancels the job unless it ends by itself within so many seconds."""
        limit_s = time.monotonic() + patience_s
        while not self.job.done():
            if time.monotonic() >= limit_s:
                self.job.cancel(check=False)
                return
            time.sleep(agent.POLL_S)

    @property
    def last_words(self) -> str:
        """The end of what the job printed, for a message."""
        lines = (self.job.stderr() or "").strip().splitlines()
        return f"; its log ends with: {lines[-1][-LOG_CHARACTERS:]}" if lines else ""


class SlurmExecutor:
    """Runs specs by agents on the nodes of jobs. Leaves nothing in the queue once it is closed."""

    def __init__(
        self,
        here: LocalSite,
        count: int,
        make_submitter: Callable[[Path], Submitter],
        report: Callable[[str], None] = lambda message: None,
        limit_s: float | None = None,
    ) -> None:
        """Submits ``count`` jobs and waits for their nodes, of which ``report`` is told. Raises as ``open_slurm``.

        A job ends after ``limit_s``, if that is known.
        """
        self._cache = cache = here.artifacts.root.absolute()
        self._spool = cache / f".spool-{current_owner()}.part"
        with writing_to(cache):
            self._spool.mkdir(mode=0o700, parents=True)
        self._agents: dict[str, RemoteAgent] = {}
        self._jobs: dict[str, _Job] = {}
        self._beating = Beating(self._spool / agent.BEAT)
        try:
            pythons = {stack: str(python) for stack, python in here.stacks.pythons.items()}
            settings = encode(AgentSettings(str(cache), pythons, here.stacks.device))
            with writing_to(cache):
                (self._spool / agent.SETTINGS).write_text(settings, encoding="utf-8")
            self._submit(count, make_submitter(self._spool / "jobs"))
            reports = self._wait_for(RemoteAgent.read_report, report)
            device = ClusterSite(here, reports, self._ask_anew, self._time_node).machine("auto").device
        except BaseException:
            self.close()
            raise
        self._lent_s = {
            name: None if limit_s is None else limit_s - each.known_for_s for name, each in self._agents.items()
        }
        self.stacks: Stacks = replace(here.stacks, device=device)
        self.site = ClusterSite(replace(here, stacks=self.stacks), reports, self._ask_anew, self._time_node)

    def nodes(self, device: str) -> tuple[Node, ...]:
        self.site.machine(device)
        return tuple(replace(node, lent_s=self._lent_s[node.name]) for node in self.site.nodes())

    def refuse_unseen(self, specs: Sequence[RunSpec]) -> None:
        """Nodes fetch nothing, so they must also see what was fetched here from a hub."""
        paths = paths_read(specs, shared_downloads=True)
        refuse_absent(self._ask_all(lambda each: each.ask_for(paths), RemoteAgent.read_absent))

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        """Here. Then each node must be able to read the data sets."""
        fetched = fetch.fetch(specs, self.site)
        data = HubContent.data_of(specs)
        if not data.is_empty:
            refuse_unreadable(self._ask_all(lambda each: each.ask_to_read(data), RemoteAgent.read_problem))
        return fetched

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        try:
            return self._agents[node.name].run(spec, inputs, on_phase)
        except RunLost as lost:
            if lost.for_good:  # it may still live and only be cut off
                self._jobs[node.name].job.cancel(check=False)
            raise

    def device_of(self, spec: RunSpec) -> str:
        """Only its agent knows; who watches sees the node."""
        return ""

    def stop(self) -> None:
        for each in self._agents.values():
            each.stop()

    def close(self) -> None:
        with uninterrupted():
            self.stop()
            for name, each in self._agents.items():
                self._jobs[name].end(JOB_END_S if each.has_reported and each.wait_for_end() else 0.0)
            self._beating.close()
            shutil.rmtree(self._spool, ignore_errors=True)

    def _submit(self, count: int, submitter: Submitter) -> None:
        for number in range(1, count + 1):
            name = f"node-{number}"
            with writing_to(self._cache):
                (self._spool / name).mkdir()
            try:
                self._jobs[name] = _Job(submitter.submit(agent.serve, str(self._spool), name))
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                raise UsageError(f"--executor slurm: the job of {name} was not accepted: {error}") from error
            self._agents[name] = RemoteAgent(self._spool / name, self._jobs[name].find_end)

    def _ask_all(self, ask: Callable[[RemoteAgent], None], read: Callable[[RemoteAgent], T | None]) -> dict[str, T]:
        """What every node answers, by its name. Raises as ``_wait_for``, and if the cache takes no question."""
        with writing_to(self._cache):
            for each in self._agents.values():
                ask(each)
        return self._wait_for(read)

    def _wait_for(
        self, read: Callable[[RemoteAgent], T | None], report: Callable[[str], None] = lambda message: None
    ) -> dict[str, T]:
        """What is read of every node, by its name. Raises UsageError if a job ends before its node has answered."""
        found: dict[str, T] = {}
        answered = -1
        while len(found) < len(self._agents):
            if len(found) != answered:
                answered = len(found)
                report(f"waiting for {len(self._agents) - answered} of {len(self._agents)} nodes")
            time.sleep(agent.POLL_S)
            for name in self._agents.keys() - found.keys():
                try:
                    answer = read(self._agents[name])
                except RunLost as lost:
                    raise UsageError(f"{name} does not serve: {lost}{self._jobs[name].last_words}") from None
                if answer is not None:
                    found[name] = answer
        return {name: found[name] for name in self._agents}

    def _time_node(self) -> Speeds | None:
        """The first node's speeds, for a forecast: nothing ends if there are none."""
        with suppress(RunLost, ResultsError, OSError):
            return next(iter(self._agents.values())).time()
        return None

    def _ask_anew(self) -> dict[str, NodeReport]:
        return self._ask_all(RemoteAgent.ask_anew, RemoteAgent.read_report)
