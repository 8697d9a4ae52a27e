"""Runs specs on the nodes of a Ray cluster, each through an agent: a local executor in a process that Ray keeps there.

An agent holds all CPUs and GPUs of its node in Ray's accounts while the sweep runs, because a speed is measured alone,
and the sweep's schedule decides which of its nodes executes a run. A run is one call of its node's agent, which streams
the phases and then the outcome. If Ray loses an agent, the run is lost; if the node is gone, so is the node.

The nodes share the models and the texts on disk with the machine that plans, under the same paths, and the cache
folder, or the URL of the cache, where each exchanges artifacts with its own folder. Models of a hub may be in a hub
cache of each node's own.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from harness.core.inputs import Input
from harness.core.owner import current_owner
from harness.core.record import Failure, Outcome
from harness.core.run import RunSpec
from harness.core.site import Node, Speeds
from harness.errors import HarnessError, ResultsError, SourceError, UsageError, reason_of
from harness.execution import fetch
from harness.execution.cluster import (
    ClusterSite,
    NodeReport,
    find_absent,
    paths_read,
    refuse_absent,
    report_node,
    writing_to,
)
from harness.execution.debris import clear
from harness.execution.exchange import Exchange
from harness.execution.executor import RunLost
from harness.execution.executors import ExecutorChoice
from harness.execution.hub_copies import HubCopies
from harness.execution.interrupt import uninterrupted
from harness.execution.local import GUARD_PATIENCE_S, LocalExecutor, LocalSite, local_site
from harness.storage.anonymizer import Anonymizer

ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Of this process, before Ray is imported: nothing is sent to Ray's makers."""
START_S = 180.0
"""How long Ray may take to start an agent: it waits while other jobs hold the node's CPUs or GPUs."""
RESTARTS = 3
"""How often Ray starts an agent anew whose process was ended, if its node lives."""
SILENCE_S = 60.0
"""How long an agent that was lost may take to be started anew before its node counts as lost."""
CHECK_S = 1.0
HTTP2_SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
"""An empty SETTINGS frame, of type 4 (RFC 9113, sections 4.1 and 6.5)."""
HTTP2_OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HTTP2_SETTINGS
"""With which a client begins; a server answers with its own SETTINGS (RFC 9113, section 3.4)."""
CONNECT_S = 10.0
"""How long a cluster's head may take to answer."""
SET_BY_RAY = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
"""What Ray sets in the processes that it starts. Workers would inherit it and compute with fewer threads."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Agent:
    """A node's side: made and called by Ray. Each run executes in a thread that lives as long as this process does,

    because the processes that a thread started end with it (``guard.py``).
    """

    def __init__(self, cache: str, pythons: Mapping[str, Path], device: str, cpus: int, threads: int) -> None:
        """``cache`` is a folder that nodes share, or a URL; then artifacts are also in this machine's own folder.

        ``cpus`` are those of this machine that Ray counts for the node; others may have the rest.
        """
        _restore_environment()
        self._executor = LocalExecutor(local_site(cache, pythons, device, cpus))
        artifacts = self._executor.site.artifacts
        clear([artifacts.root])
        self._exchange = Exchange(artifacts)
        self._copies = HubCopies()
        self._anonymizer = Anonymizer.for_nodes(artifacts.root if artifacts.shared is not None else None)
        self._threads = ThreadPoolExecutor(threads, "run")

    def report(self) -> NodeReport:
        return report_node(self._executor.site)

    def speeds(self) -> Speeds:
        return self._executor.site.speeds(self._executor.site.stacks.device)

    def find_absent(self, paths: Sequence[str]) -> tuple[str, ...]:
        return find_absent(paths)

    def find_cache_problem(self) -> str | None:
        return self._exchange.find_problem()

    def fetch(self, specs: Sequence[RunSpec]) -> None:
        """What this node lacks, whatever the machine that plans has."""
        if self._executor.fetch(self._copies.named(specs)):
            self._executor.fetch(self._copies.named(specs))  # what else a model needs is known once it is here

    def run(self, spec: RunSpec, inputs: Sequence[Input]) -> Iterator[str | tuple[Outcome, bytes]]:
        """The names of the phases as they begin, and at last the outcome and the log."""
        news: SimpleQueue[str | tuple[Outcome, bytes] | BaseException] = SimpleQueue()

        def execute() -> None:
            try:
                outcome, log = self._run(spec, inputs, news.put)
                news.put((self._anonymizer.outcome(outcome), self._anonymizer.log(log)))
            except RunLost as error:  # it may name a path of this machine
                news.put(RunLost(self._anonymizer.message(str(error)), error.for_good))
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                news.put(error)

        self._threads.submit(execute)
        while isinstance(item := news.get(), str):
            yield item
        if isinstance(item, BaseException):
            raise item
        yield item

    def _run(self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None]) -> tuple[Outcome, bytes]:
        try:
            own, files = self._copies.placed(spec, inputs)
        except SourceError as error:
            return Outcome("failed", Failure("fetch", type(error).__name__, str(error))), b""
        return self._exchange.around(own, lambda: self._executor.run(own, files, on_phase))

    def answer(self) -> None:
        """Returns as soon as this agent can be called."""

    def stop(self) -> None:
        self._executor.stop()

    def close(self) -> None:
        self._executor.stop()
        self._threads.shutdown()
        self._executor.close()


def _restore_environment() -> None:
    """Gives this process the values of its parent, which starts what Ray executes on the node."""
    content = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode(errors="surrogateescape")
    given = dict(line.split("=", 1) for line in content.split("\0") if "=" in line)
    for name in SET_BY_RAY:
        os.environ.pop(name, None)
        if name in given:
            os.environ[name] = given[name]


@dataclass(frozen=True)
class _RayNode:
    """A node of the cluster: Ray's id and what it offers."""

    ray_id: str
    cpus: float
    gpus: float


def open_ray(choice: ExecutorChoice, site: LocalSite, report: Callable[[str], None]) -> RayExecutor:
    """Connects to the cluster at ``choice.address``, or starts one of this machine alone, and an agent on each node.

    Raises UsageError if Ray is not installed, the cluster cannot be reached, the cache folder takes no files, a node
    cannot start an agent, does not see that folder or cannot use the cache's URL, and if the nodes are unlike.
    """
    os.environ.update(ENVIRONMENT)
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs Ray: pip install 'qharness[ray]'") from None
    own = not ray.is_initialized()
    if own:
        _connect(choice.address)
    try:
        return RayExecutor(site, _usable_nodes(ray.nodes(), site.stacks.device), report, disconnect=own)
    except BaseException:
        if own:
            ray.shutdown()
        raise


def _connect(address: str | None) -> None:
    """Raises UsageError if the cluster cannot be reached, or runs other versions of Ray or Python."""
    import ray

    if address is not None and "://" in address:
        raise UsageError(
            f"--address {address}: give host:port or auto, on a machine of the cluster; from elsewhere submit the "
            "command to it as a Ray job"
        )
    if address not in (None, "auto"):
        _refuse_unreachable(address)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            configure_logging=False,
            namespace=f"qharness-{current_owner()}",
        )
    except (OSError, RuntimeError, ValueError) as error:
        where = f"--address {address}" if address else "--executor ray"
        raise UsageError(f"{where}: this machine cannot use a Ray cluster there: {_last_line(error)}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ray takes SIGTERM
                signal.signal(number, handler)


def _refuse_unreachable(address: str) -> None:
    """Raises UsageError unless something listens there that speaks HTTP/2, as gRPC does: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"--address {address}: give host:port, such as 10.0.0.1:6379, or auto")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S) as there:
            if os.environ.get("RAY_USE_TLS", "0") == "0":
                there.sendall(HTTP2_OPENING)
                if there.recv(len(HTTP2_SETTINGS))[3:4] != HTTP2_SETTINGS[3:4]:
                    raise ConnectionError("what listens there is no Ray cluster's head")
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--address {address}: no Ray cluster can be reached there: {error}; 'ray start --head' starts one, and "
            "'ray status' shows whether it runs"
        ) from None


def _usable_nodes(known: Sequence[Mapping[str, Any]], device: str) -> list[_RayNode]:
    """The living nodes with CPUs and, for a GPU, with GPUs; in the order of their ids. Raises UsageError for none.

    A head without CPUs, as Kubernetes' operators make it, runs nothing.
    """
    found = [
        _RayNode(each["NodeID"], each["Resources"].get("CPU", 0.0), each["Resources"].get("GPU", 0.0))
        for each in known
        if each["Alive"] and each["Resources"].get("CPU", 0.0) > 0
    ]
    with_gpus = [each for each in found if each.gpus > 0]
    if device == "cuda" or (device == "auto" and with_gpus):
        found = with_gpus
    if not found:
        wanted = "a GPU" if device == "cuda" else "CPUs"
        raise UsageError(f"--executor ray: no node of the cluster has {wanted}; see 'ray status'")
    return sorted(found, key=lambda each: each.ray_id)


class RayExecutor:
    """Runs specs by agents on the nodes of a cluster. ``close`` ends them, and the connection if it is its own."""

    def __init__(
        self, here: LocalSite, nodes: Sequence[_RayNode], report: Callable[[str], None], disconnect: bool
    ) -> None:
        """Starts the agents and waits for them. Raises as ``open_ray``."""
        self._disconnect = disconnect
        if here.artifacts.shared is not None:
            here = replace(here, artifacts=replace(here.artifacts, for_nodes=True))
        self._artifacts = here.artifacts
        self._offering = threading.Lock()
        self._ray_ids = {f"node-{number}": each.ray_id for number, each in enumerate(nodes, 1)}
        self._agents = {name: _start_agent(here, each) for name, each in zip(self._ray_ids, nodes, strict=True)}
        report(f"waiting for {len(nodes)} nodes")
        try:
            reports = self._ask_all("report", seconds=START_S)
            if here.artifacts.shared is None:
                self._refuse_unseen_cache()
            else:
                self._refuse_unreachable_cache()
            device = ClusterSite(here, reports, self._reports_anew, self._time_node).machine("auto").device
        except BaseException:
            self._end_agents()
            raise
        self.stacks = replace(here.stacks, device=device)
        self.site = ClusterSite(replace(here, stacks=self.stacks), reports, self._reports_anew, self._time_node)

    def nodes(self, device: str) -> tuple[Node, ...]:
        self.site.machine(device)
        return self.site.nodes()

    def refuse_unseen(self, specs: Sequence[RunSpec]) -> None:
        """What was fetched from a hub may be in each node's own hub cache (``HubCopies``)."""
        refuse_absent(self._ask_all("find_absent", paths_read(specs, shared_downloads=False)))

    def fetch(self, specs: Sequence[RunSpec]) -> bool:
        """Here, because planning reads it, and on each node, whose hub cache may be its own."""
        fetched = fetch.fetch(specs, self.site)
        self._ask_all("fetch", specs)
        return fetched

    def run(
        self, spec: RunSpec, inputs: Sequence[Input], on_phase: Callable[[str], None], node: Node
    ) -> tuple[Outcome, bytes]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        agent = self._agents[node.name]
        try:
            with self._offering:  # of runs that begin together one sends what all need
                self._artifacts.offer(spec)  # what an earlier sweep on this machine made
        except (OSError, ResultsError) as error:
            raise RunLost(f"what the run needs could not be sent to it: {reason_of(error)}", for_good=False) from error
        try:
            for reference in agent.run.options(num_returns="streaming").remote(spec, tuple(inputs)):
                item: str | tuple[Outcome, bytes] = ray.get(reference)
                if not isinstance(item, str):
                    return item
                on_phase(item)
        except RayTaskError as error:
            if isinstance(error.cause, RunLost):
                raise error.cause from None
            raise RunLost(f"its agent failed: {type(error.cause).__name__}", for_good=False) from error
        except RayError as error:
            if self._answers(node.name):
                raise RunLost("the process that had started it was ended", for_good=False) from error
            raise RunLost("it does not answer any more", for_good=True) from error
        except BaseException:
            with uninterrupted(), suppress(RayError):
                ray.get(agent.stop.remote(), timeout=GUARD_PATIENCE_S)
            raise
        raise RunLost("its agent returned no outcome", for_good=False)

    def device_of(self, spec: RunSpec) -> str:
        """Only its agent knows; who watches sees the node."""
        return ""

    def stop(self) -> None:
        for agent in self._agents.values():
            agent.stop.remote()

    def close(self) -> None:
        import ray

        with uninterrupted():
            self._end_agents()
            if self._disconnect:
                ray.shutdown()

    def _end_agents(self) -> None:
        import ray
        from ray.exceptions import RayError

        closing_agents = [agent.close.remote() for agent in self._agents.values()]
        with suppress(RayError):
            ray.wait(closing_agents, num_returns=len(closing_agents), timeout=GUARD_PATIENCE_S)
        for agent in self._agents.values():
            ray.kill(agent)

    def _ask_all(self, method: str, *arguments: object, seconds: float | None = None) -> dict[str, Any]:
        """What the agent of each node answers, by the node's name.

        Raises UsageError if one does not answer within so many seconds, and the HarnessError that one raised, with the
        node's name.
        """
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        asked = {name: getattr(agent, method).remote(*arguments) for name, agent in self._agents.items()}
        found = {}
        limit_s = None if seconds is None else time.monotonic() + seconds
        for name, reference in asked.items():
            try:
                found[name] = ray.get(reference, timeout=limit_s and max(limit_s - time.monotonic(), 0.0))
            except GetTimeoutError:
                raise UsageError(
                    f"{name}: Ray has started nothing there for {seconds:g} s, since other jobs hold some of its CPUs "
                    "or GPUs; wait for them ('ray status' shows them)"
                ) from None
            except RayTaskError as error:
                if isinstance(error.cause, HarnessError):
                    raise type(error.cause)(f"{name}: {error.cause}") from None
                raise UsageError(f"{name}: {_last_line(error)}") from None
            except RayError as error:
                raise UsageError(f"{name}: Ray cannot run qharness there: {_last_line(error)}") from None
        return found

    def _reports_anew(self) -> dict[str, NodeReport]:
        return self._ask_all("report")

    def _time_node(self) -> Speeds | None:
        """The first node's speeds, for a forecast: nothing ends if there are none."""
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):
            found: Speeds = ray.get(next(iter(self._agents.values())).speeds.remote())
            return found
        return None

    def _refuse_unseen_cache(self) -> None:
        """Raises UsageError unless the cache folder takes files, and every node sees them there."""
        cache = self._artifacts.root.absolute()
        probe = cache / f".shared-{current_owner()}.part"
        try:
            with writing_to(cache):
                cache.mkdir(parents=True, exist_ok=True)
                probe.write_bytes(b"written to see whether every node sees it\n")  # a full disk takes a name alone
            for name, absent in self._ask_all("find_absent", [str(probe)]).items():
                if absent:
                    raise UsageError(
                        f"{name} does not see the cache folder {cache} of this machine: name one that all nodes share, "
                        "or a URL (--cache, or $QHARNESS_CACHE for a folder)"
                    )
        finally:
            with suppress(OSError):  # it could not be written either
                probe.unlink()

    def _refuse_unreachable_cache(self) -> None:
        """Raises UsageError unless every node can fetch artifacts from the URL of the cache, and send them there."""
        for name, problem in self._ask_all("find_cache_problem").items():
            if problem is not None:
                raise UsageError(
                    f"{name} cannot use the cache that nodes share: {problem}; start Ray there with the library, the "
                    "keys and the endpoint in its environment (qharness[s3], AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL …)"
                )

    def _answers(self, name: str) -> bool:
        """Whether a lost agent can be called again, because Ray has started it anew on its node."""
        import ray
        from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

        limit_s = time.monotonic() + SILENCE_S
        while time.monotonic() < limit_s:
            try:
                ray.get(self._agents[name].answer.remote(), timeout=SILENCE_S)
                return True
            except (ActorDiedError, GetTimeoutError):
                return False
            except RayError:  # not yet decided
                if not any(each["Alive"] and each["NodeID"] == self._ray_ids[name] for each in ray.nodes()):
                    return False
                time.sleep(CHECK_S)
        return False


def _start_agent(here: LocalSite, node: _RayNode) -> Any:
    """The handle of an agent, which Ray starts as soon as the node has what it needs."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pythons = {stack: Path(python).absolute() for stack, python in here.stacks.pythons.items()}
    runs = max(int(node.gpus), int(node.cpus), 1)
    shared = here.artifacts.shared
    cache = str(here.artifacts.root.absolute()) if shared is None else shared.objects.url
    return (
        ray.remote(Agent)
        .options(
            num_cpus=node.cpus,
            num_gpus=node.gpus if here.stacks.device != "cpu" else 0,
            max_concurrency=runs + 2,  # stop and answer must not wait for runs
            max_restarts=RESTARTS,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False),
        )
        .remote(cache, pythons, here.stacks.device, int(node.cpus), runs)
    )


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
