"""What all tests share: what ``heavy`` means, the tiny model, the real texts and models where they are, a sweep."""

from __future__ import annotations

import ast
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cache
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import settings
from modules_by_path import module_at
from nvml_stub import NvmlStub, install
from warm_workers import Workers

from harness.api.plan import plan
from harness.core.inputs import Input
from harness.core.record import Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.site import Node
from harness.errors import UsageError
from harness.execution import starter
from harness.execution.events import Event
from harness.execution.local import LocalExecutor, local_site
from harness.execution.sweep import sweep
from harness.host import preflight
from harness.host.machine import cache_folder, choose
from harness.libraries.llamacpp import lines
from harness.models import resolve
from harness.planning.plan import PlannedRun
from harness.recipe import load_recipe
from harness.stacks import Stacks
from harness.stacks.variables import compiled_kernels
from harness.storage.cache import Cache
from harness.storage.store import Store

os.environ |= {
    **compiled_kernels(),
    **os.environ,
}  # for models that tests compile in this process, before torch sets it

settings.register_profile("same every time", derandomize=True, database=None, deadline=None, max_examples=50)
settings.load_profile("same every time")

HERE = Path(__file__).parent
LIGHT = "not heavy and not thorough and not slow and not stack and not gpu"
"""The selection of ``make check``."""
HEAVY = "heavy and not thorough and not slow and not stack and not gpu"
"""The selection that ``make test`` makes after it."""
THOROUGH = "thorough and not slow and not stack and not gpu"
"""The selection of ``make test-thorough``."""
NO_BROWSER = ("needs chromium", "needs playwright")
"""How the reasons begin for which tests that open a page are skipped."""
SHARED = Path(os.environ.get("QHARNESS_SHARED", HERE.parent.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """Hides the GPUs from all tests but those of ``make test-gpu``, before anything imports torch.

    Has this process, and so what tests start, take the signals of a terminal: a shell has its background ignore Ctrl-C,
    and nohup the end of a terminal, which tests send and would wait for without an end.

    Has every test that is not marked heavy, and yet imports torch or starts a worker, fail of it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.option.markexpr == LIGHT:
        sys.meta_path.insert(0, _NoTorch())
        sys.addaudithook(_no_worker)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves modules alone that have no test of the selection: to import those of heavy tests is to import torch."""
    if not collection_path.name.startswith("test_"):
        return None
    text = collection_path.read_text(encoding="utf-8")
    if config.option.markexpr == LIGHT:
        return _is_marked(text, "heavy|thorough|stack|gpu") or None
    if config.option.markexpr == HEAVY:
        return "pytest.mark.heavy" not in text or _is_marked(text, "thorough|stack|gpu") or None
    if config.option.markexpr == THOROUGH:
        return "thorough" not in text or None
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need a made stack, and has the modules that take minutes begin first.

    One process runs a whole module (``--dist loadfile``).
    """
    for item in items:
        if "stacks_with" in getattr(item, "fixturenames", ()):
            item.add_marker("stack")
    items.sort(key=_minutes, reverse=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where torch can use none."""
    if item.get_closest_marker("gpu") and (reason := _no_gpu()):
        pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says in one line that tests in a real browser were skipped: no other test looks at what readers see."""
    reasons = (report.longrepr[-1].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ()))
    for reason in dict.fromkeys(each for each in reasons if each.startswith(NO_BROWSER)):
        terminalreporter.write_line(f"tests in a real browser were skipped: {reason}")


@cache
def _no_gpu() -> str | None:
    try:
        choose("cuda")
    except UsageError as error:
        return str(error)
    return None


def _minutes(item: pytest.Item) -> float:
    """The ``minutes`` that a module's mark ``heavy`` says it takes; 0 if it says none."""
    return max((float(mark.kwargs.get("minutes", 0)) for mark in item.iter_markers("heavy")), default=0.0)


def _is_marked(module: str, marks: str) -> bool:
    """Whether the ``pytestmark`` of a module has one of the marks, read in its text without importing it."""
    return any(
        re.search(rf"pytest\.mark\.({marks})\b", ast.unparse(node.value))
        for node in ast.parse(module).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    )


class _NoTorch(MetaPathFinder):
    """Finds torch, so that one may ask whether it is installed, and fails the test that imports it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            spec.loader = _Failing()
        return spec


class _Failing(Loader):
    def exec_module(self, module: ModuleType) -> None:
        pytest.fail("imports torch: mark it pytest.mark.heavy", pytrace=True)


def _no_worker(event: str, arguments: tuple[object, ...]) -> None:
    if event == "subprocess.Popen":
        command = str(arguments[1])
        if "harness.execution.worker" in command or ("harness.cli" in command and "'run', " in command):
            pytest.fail("starts a worker: mark it pytest.mark.heavy", pytrace=True)


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test waits for the disk: none stops the machine; what that leaves is worked out (support/crash.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def workers(pytestconfig: pytest.Config) -> Iterator[None]:
    """Has sweeps fork their workers, and configurations resolved in this process: neither imports torch anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(starter.VARIABLE, starter.SPAWN)  # a server of each sweep's own would import again
        if pytestconfig.option.markexpr == LIGHT:
            yield
            return
        started = Workers()
        patch.setattr(starter, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": started.start}))
        patch.setattr(resolve, "_asked", _answered_here)
        yield
    started.close()


def _answered_here(configs: Sequence[resolve.Config]) -> list[dict[str, Any]]:
    """What ``resolve`` asks a process of its own, which would import torch anew; this process has imported it."""
    answered: list[dict[str, Any]] = json.loads(json.dumps([resolve._answer(config) for config in configs]))
    return answered


@pytest.fixture
def eager() -> Iterator[None]:
    """torch compiles nothing: gptqmodel compiles its unpacking on CPUs, anew each time that a layer is loaded."""
    import torch

    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.fixture
def frozen_heap() -> None:
    """What is in memory is kept from the garbage collector, which quantization libraries start for every layer."""
    gc.freeze()  # until ``garbage_is_collected`` ends


@pytest.fixture(autouse=True)
def transformers_as_it_is() -> Iterator[None]:
    """Fails the test after which transformers loads some mixtures otherwise, in place of tests that come later."""
    yield
    mapping = sys.modules.get("transformers.conversion_mapping")
    if hasattr(mapping, "orig_get_checkpoint_conversion_mapping"):
        pytest.fail("gptqmodel has replaced classes of transformers in this process: quantize with quantize_alone")


@pytest.fixture(autouse=True)
def garbage_is_collected() -> Iterator[None]:
    """Commands that read records freeze every object, because their process ends; this process goes on."""
    before = gc.get_freeze_count()
    yield
    if gc.get_freeze_count() > before:
        gc.unfreeze()


@pytest.fixture
def nvml(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> NvmlStub:
    """A stub of NVIDIA's library behind pynvml, in this process and its children; so far it holds no GPU."""
    return install(tmp_path_factory.mktemp("nvml"), monkeypatch)


@pytest.fixture
def torch_uses_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch answers preflight that it can use whichever GPU NVML reports; it is not really asked."""

    def answer(place: Path, uuid: str) -> preflight.TorchAnswer:
        products = {"float32": preflight.TriedProduct(raised=None, correct=True)}
        return preflight.TorchAnswer("2.13.0+cu130", "13.0", True, ("sm_90",), uuid=uuid, products=products)

    monkeypatch.setattr(preflight, "_answer", answer)


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The Llama of 1 MB that this project trained (tests/data/train_tiny.py)."""
    return HERE / "data" / "tiny-llama"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """A file or folder of the evaluation data that lies beside some checkouts; the test skips where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} of the shared evaluation data (set QHARNESS_SHARED to its folder)")
        return path

    return find


class Sweeps:
    """Writes recipes and runs them, with one results folder and one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "results")
        self.cache = Cache(folder / "cache")
        self.events: list[Event] = []

    def recipe(self, content: dict[str, object]) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({"name": "sweep", **content}, sort_keys=False), encoding="utf-8")
        return path

    def run(self, content: dict[str, object]) -> tuple[RunRecord, ...]:
        self.events = []
        return self.make(plan(load_recipe(self.recipe(content))), self.events.append)

    def executor(self, stacks: Stacks | None = None) -> LocalExecutor:
        """This machine with the sweep's cache, and stacks below it unless others are given."""
        site = local_site(self.cache.root)
        return LocalExecutor(replace(site, stacks=stacks or site.stacks))

    def make(
        self,
        planned: Sequence[PlannedRun],
        on_event: Callable[[Event], None] = lambda event: None,
        stacks: Stacks | None = None,
        paranoid: bool = False,
    ) -> tuple[RunRecord, ...]:
        """The records of planned runs, made here."""
        with closing(self.executor(stacks)) as executor:
            return sweep(planned, self.store, executor, on_event, paranoid)


@pytest.fixture(scope="session", autouse=True)
def known_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Has one run measure this machine's speed for all sweeps of all processes of the tests: it takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    kept = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "machines"
    execute = LocalExecutor.run

    def run(
        self: LocalExecutor,
        spec: RunSpec,
        inputs: Sequence[Input],
        on_phase: Callable[[str], None],
        *node: Node,
    ) -> tuple[Outcome, bytes]:
        if (spec.kind, spec.device) != ("machine", "cpu"):
            return execute(self, spec, inputs, on_phase, *node)
        own = self.site.artifacts.folder(spec.kind, spec.run_id)
        _copy(kept / spec.run_id, own)
        if (known := self.site.artifacts.outcome(spec)) is not None:
            return known, b""
        made = execute(self, spec, inputs, on_phase, *node)
        _copy(own, kept / spec.run_id)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalExecutor, "run", run)
        yield


def _copy(folder: Path, to: Path) -> None:
    """Copies a folder that is there to where none is, at once."""
    if folder.exists() and not to.exists():
        part = Path(f"{to}-{os.getpid()}")
        shutil.copytree(folder, part)
        with suppress(OSError):  # another process was the first
            part.rename(to)


@pytest.fixture(scope="session")
def sweep_type() -> type[Sweeps]:
    """For fixtures that need a sweep of a wider scope than one test."""
    return Sweeps


@pytest.fixture
def sweeps(tmp_path: Path) -> Sweeps:
    return Sweeps(tmp_path)


@pytest.fixture(scope="session")
def references() -> ModuleType:
    """The plain loops and programs that perplexity is held against: benchmarks/perplexity_conformance.py."""
    return module_at(HERE.parent / "benchmarks" / "perplexity_conformance.py")


@pytest.fixture(scope="session")
def stacks_with() -> Callable[[str], Stacks]:
    """Stacks with the one of that name, made (else QHARNESS_NAME_PYTHON): no test makes it, ``make test-stacks`` does.

    Skips where it was not made; fails where ``make test-stacks`` made it and it is not there.
    """

    def stacks_with(name: str) -> Stacks:
        own = os.environ.get(f"QHARNESS_{name.upper()}_PYTHON")
        stacks = Stacks(cache_folder() / "stacks", {name: Path(own)} if own else {})
        if obstacle := stacks.find(name).find_obstacle():
            end = pytest.fail if name in os.environ.get("QHARNESS_MADE_STACKS", "").split() else pytest.skip
            end(f"{obstacle}; 'make test-stacks' makes it")
        return stacks

    return stacks_with


@pytest.fixture(scope="session")
def llamacpp_stacks(stacks_with: Callable[[str], Stacks]) -> Stacks:
    """Stacks with that of llama.cpp."""
    return stacks_with("llamacpp")


@pytest.fixture(scope="module")
def llama_cpp(llamacpp_stacks: Stacks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The stack's library in this interpreter, whose own packages stay as they are.

    It goes again with the module's tests: gptqmodel takes other kernels where it finds it.
    """
    folder = tmp_path_factory.mktemp("llama_cpp")
    for name in ("llama_cpp", "diskcache"):
        command = [llamacpp_stacks.find("llamacpp").python, "-c", f"import {name}; print({name}.__path__[0])"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (folder / name).symlink_to(told.strip(), target_is_directory=True)
    sys.path.append(str(folder))
    yield import_module("llama_cpp")
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "llama_cpp"]:
        del sys.modules[name]
    lines.cache_clear()  # the library takes its messages to itself when it is imported anew
