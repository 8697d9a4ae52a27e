"""What preflight says of a GPU: NVML's part by the stub, torch's part by packages named torch that a test writes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import qharness
from nvml_stub import A100, H200, SLICED_H200, NvmlStub

from harness.api import run as api_run
from harness.cli.render.events import rendered
from harness.errors import UsageError
from harness.execution.events import Event, GpuUnused
from harness.host import cuda_probe, machine, preflight
from harness.host.architecture import runs_on
from harness.host.preflight import Preflight, TorchAnswer, TriedProduct

BUILDS = {
    "12.6": ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
    "12.9": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    "13.0": ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
}
"""As torch.cuda.PYTORCH_RELEASES_CODE_CC of torch 2.13 on x86_64."""
WELL = TorchAnswer(
    "2.13.0+cu130",
    "13.0",
    True,
    BUILDS["13.0"],
    BUILDS,
    capability=(9, 0),
    uuid=H200.uuid.removeprefix("GPU-"),
    products={"float32": TriedProduct(None, True), "float8": TriedProduct(None, True)},
)
FINE = Preflight(H200.name, H200.uuid, WELL, (9, 0), "580.65.06", (13, 0))
NO_KERNEL = {"float32": TriedProduct("CUDA error: no kernel image is available for execution on the device", False)}
INSTALL = "run: uv pip install --torch-backend {} --reinstall-package torch torch==2.13.0"
TORCH = """
import os
from types import SimpleNamespace
with open({asked!r}, "a") as file:
    file.write(os.environ["CUDA_VISIBLE_DEVICES"] + "\\n")
{first}
__version__ = "2.13.0+cu130"
version = SimpleNamespace(cuda={cuda!r})
def fail(*_, **__):
    raise RuntimeError({error!r})
cuda = SimpleNamespace(
    PYTORCH_RELEASES_CODE_CC={{"13.0": {{"x86_64": {{90, 75}}, "aarch64": {{90, 75}}}}}},
    is_available=lambda: False,
    get_arch_list=lambda: ["sm_75", "sm_90"],
    init=fail,
)
{last}
"""
ONLY_MULTIPLIES = f"""
cuda.init = lambda: None
cuda.get_device_properties = lambda index: SimpleNamespace(major=9, minor=0, uuid={H200.uuid!r})
tensor, float32 = fail, "float32"
"""
"""A torch that can do anything with a GPU except to multiply."""


def test_a_gpu_that_torch_can_use_has_no_problem() -> None:
    assert FINE.problem is None
    assert FINE.lacking == {}


@pytest.mark.parametrize(
    ("torch", "changes", "problem"),
    [
        (
            replace(WELL, version="2.13.0+cpu", cuda=None, available=False, architectures=(), products={}),
            {},
            f"the installed torch 2.13.0+cpu was built without CUDA; {INSTALL.format('cu130')}",
        ),
        (
            replace(WELL, version="2.13.0+cpu", cuda=None, available=False, capability=None),
            {"name": "Tesla V100", "capability": (7, 0)},
            f"the installed torch 2.13.0+cpu was built without CUDA; {INSTALL.format('cu126')}",
        ),
        (
            replace(WELL, available=False, error="The NVIDIA driver on your system is too old", capability=None),
            {"driver": "550.54.15", "driver_cuda": (12, 4)},
            "the NVIDIA driver 550.54.15 supports CUDA up to 12.4 and the installed torch 2.13.0+cu130 needs 13.0; "
            f"update the driver, or {INSTALL.format('cu129')}",
        ),
        (
            replace(WELL, available=False, error="The NVIDIA driver on your system is too old", capability=None),
            {"driver": "470.1", "driver_cuda": (11, 4)},
            "the NVIDIA driver 470.1 supports CUDA up to 11.4 and the installed torch 2.13.0+cu130 needs 13.0; "
            "update the driver",
        ),
        (
            replace(WELL, capability=(7, 0), products=NO_KERNEL),
            {"name": "Tesla V100", "capability": (7, 0)},
            "the installed torch 2.13.0+cu130 has no code for the Tesla V100, which has compute capability 7.0 "
            f"(it has {', '.join(BUILDS['13.0'])}); {INSTALL.format('cu126')}",
        ),
        (
            replace(WELL, products={"float32": TriedProduct("CUBLAS_STATUS_NOT_INITIALIZED", False)}),
            {},
            "torch 2.13.0+cu130 cannot multiply on the GPU: CUBLAS_STATUS_NOT_INITIALIZED; other programs may hold its "
            "memory: see nvidia-smi",
        ),
        (
            replace(WELL, error="No CUDA GPUs are available", products={}),
            {},
            "torch 2.13.0+cu130 cannot use the GPU: No CUDA GPUs are available",
        ),
        (TorchAnswer(error="No module named 'torch'"), {}, "torch cannot be used: No module named 'torch'"),
        (
            replace(WELL, products={**WELL.products, "float16": TriedProduct(None, False)}),
            {},
            "torch computes wrong float16 products on this GPU: it, its driver or torch is faulty",
        ),
        (
            replace(WELL, uuid="1234"),
            {},
            f"torch's GPU has the UUID 1234 and NVML's has {H200.uuid}; name one in CUDA_VISIBLE_DEVICES",
        ),
    ],
)
def test_a_problem_is_one_sentence_with_what_to_run(torch: TorchAnswer, changes: dict, problem: str) -> None:
    assert replace(FINE, torch=torch, **changes).problem == problem


def test_a_dtype_that_a_gpu_cannot_multiply_is_no_problem() -> None:
    products = {**WELL.products, "float8": TriedProduct("only on capability 8.9 or higher", False)}
    checked = replace(FINE, torch=replace(WELL, products=products))
    assert checked.problem is None
    assert checked.lacking == {"float8": "only on capability 8.9 or higher"}


@pytest.mark.parametrize(
    ("architectures", "runs", "fails"),
    [
        (["sm_80"], [(8, 0), (8, 6), (8, 9)], [(7, 5), (8, 7), (9, 0)]),
        (["sm_86"], [(8, 6), (8, 9)], [(8, 0)]),
        (["sm_90a"], [(9, 0)], [(10, 0)]),
        (["sm_100f"], [(10, 0), (10, 3)], [(12, 0)]),
        (["compute_80"], [(8, 0), (8, 7), (9, 0), (12, 0)], [(7, 5)]),
        (["compute_90a"], [(9, 0)], [(10, 0), (12, 0)]),
        (["sm_75", "sm_120"], [(7, 5), (12, 0), (12, 1)], [(8, 0), (10, 0)]),
        (["gfx942"], [], [(9, 0)]),
    ],
)
def test_which_gpus_run_an_architecture(architectures: list[str], runs: list, fails: list) -> None:
    assert [capability for capability in runs if not runs_on(architectures, capability)] == []
    assert [capability for capability in fails if runs_on(architectures, capability)] == []


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    return Written(tmp_path, monkeypatch)


class Written:
    """A package named torch that takes the place of the real one in child processes, and counts who imports it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked = folder / "asked"
        self._package = folder / "packages" / "torch"
        self._package.mkdir(parents=True)
        self.cache = folder / "cache"
        monkeypatch.setenv("PYTHONPATH", str(self._package.parent))

    def is_written(self, error: str = "", first: str = "", cuda: str | None = "13.0", last: str = "") -> None:
        code = TORCH.format(asked=str(self._asked), first=first, error=error, cuda=cuda, last=last)
        (self._package / "__init__.py").write_text(code, encoding="utf-8")

    @property
    def seen(self) -> list[str]:
        """CUDA_VISIBLE_DEVICES of each process that imported it."""
        return self._asked.read_text(encoding="utf-8").split() if self._asked.exists() else []

    def asked_anew(self) -> Preflight | None:
        """Preflight as in a new process, which has only the cache."""
        preflight._known.clear()
        return preflight.preflight(self.cache)


def test_torch_is_asked_with_the_gpu_that_a_worker_gets(nvml: NvmlStub, torch: Written) -> None:
    nvml.holds(A100, H200, driver="550.1", cuda=12040)
    torch.is_written(error="The NVIDIA driver on your system is too old (found version 12040).\nPlease update")
    checked = torch.asked_anew()
    assert checked is not None
    assert checked.torch.error == "The NVIDIA driver on your system is too old (found version 12040)."
    assert checked.torch.builds == {"13.0": ("sm_75", "sm_90")}
    assert (checked.name, checked.driver_cuda, checked.capability) == (A100.name, (12, 4), (8, 0))
    assert torch.seen == [A100.uuid]


def test_an_answer_without_an_error_is_kept_until_something_changes(
    nvml: NvmlStub, torch: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200)
    torch.is_written(cuda=None)
    for _ in range(2):
        checked = torch.asked_anew()
        assert checked is not None
        assert checked.problem is not None
        assert checked.problem.startswith("the installed torch 2.13.0+cu130 was built without CUDA; run: uv")
    assert len(torch.seen) == 1
    nvml.holds(H200, driver="590.1")
    torch.asked_anew()
    assert len(torch.seen) == 2
    nvml.holds(A100, driver="590.1")
    torch.asked_anew()
    assert len(torch.seen) == 3
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    torch.asked_anew()
    assert len(torch.seen) == 4
    nvml.holds(A100, driver="590.1", cuda=13010)  # a library for forward compatibility came or went
    torch.asked_anew()
    assert len(torch.seen) == 5
    for kept in (torch.cache / preflight.FOLDER).iterdir():
        kept.write_text('{"version": 7}')
    torch.asked_anew()
    assert len(torch.seen) == 6


def test_other_cuda_libraries_beside_torch_are_another_question(tmp_path: Path, monkeypatch) -> None:
    spec = SimpleNamespace(origin=str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(preflight, "find_spec", lambda name: spec)
    before = list(preflight._question())
    (tmp_path / "nvidia_cublas-13.1.0.3.dist-info").mkdir()
    assert list(preflight._question()) != before


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ("", "torch 2.13.0+cu130 cannot use the GPU: CUDA error: out of memory"),
        (ONLY_MULTIPLIES, "torch 2.13.0+cu130 cannot multiply on the GPU: CUDA error: out of memory"),
    ],
)
def test_that_a_gpu_has_no_memory_for_now_is_not_kept(nvml: NvmlStub, torch: Written, last: str, problem: str) -> None:
    nvml.holds(H200)
    torch.is_written(error="CUDA error: out of memory", last=last)
    for _ in range(2):
        checked = torch.asked_anew()
        assert checked is not None
        assert checked.problem == f"{problem}; other programs may hold its memory: see nvidia-smi"
    assert len(torch.seen) == 2
    assert not torch.cache.exists()


def test_a_process_asks_again_some_time_after_a_failure(
    nvml: NvmlStub, torch: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200)
    torch.is_written(error="CUDA error: out of memory")
    for _ in range(2):
        preflight.preflight(torch.cache)
    assert len(torch.seen) == 1
    monkeypatch.setattr(preflight, "RETRY_S", 0.0)
    torch.is_written(cuda=None)
    checked = preflight.preflight(torch.cache)
    assert checked is not None
    assert checked.torch.error is None
    assert len(torch.seen) == 2


@pytest.mark.parametrize(
    ("products", "expected"),
    [
        ({}, True),
        ({"float8": TriedProduct("only on capability 8.9 or higher", False)}, True),
        ({"int8": TriedProduct("CUDA out of memory. Tried to allocate 8.12 MiB.", False)}, False),
        ({"float16": TriedProduct(None, False)}, False),
        ({"float32": TriedProduct("CUDA error: an illegal instruction was encountered", False)}, False),
    ],
)
def test_which_products_make_an_answer_that_lasts(products: dict[str, TriedProduct], expected: bool) -> None:
    assert replace(WELL, products={**WELL.products, **products}).will_last == expected


def test_a_torch_that_dies_or_hangs_is_a_problem(
    nvml: NvmlStub, torch: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200)
    torch.is_written(first="import os; os.write(2, b'libcuda broke\\n'); os.kill(os.getpid(), 11)")
    died = torch.asked_anew()
    assert died is not None
    assert died.problem == "torch cannot be used: its process ended with code -11: libcuda broke"
    monkeypatch.setattr(preflight, "PROBE_S", 0.5)
    torch.is_written(first="import time; time.sleep(60)")
    hung = torch.asked_anew()
    assert hung is not None
    assert hung.problem == "torch cannot be used: it gave no answer within 0 s"


def test_without_a_gpu_torch_is_not_asked(nvml: NvmlStub, torch: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.is_written()
    assert torch.asked_anew() is None
    nvml.holds(H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert torch.asked_anew() is None
    assert torch.seen == []


def test_auto_takes_the_cpu_and_says_why(nvml: NvmlStub, torch: Written) -> None:
    nvml.holds(H200)
    torch.is_written(error="No CUDA GPUs are available")
    problem = "torch 2.13.0+cu130 cannot use the GPU: No CUDA GPUs are available"
    chosen = machine.choose("auto", torch.cache)
    assert (chosen.device, chosen.gpu_problem) == ("cpu", problem)
    assert machine.choose("cpu", torch.cache).gpu_problem is None
    with pytest.raises(UsageError, match=re.escape(f"device: cuda, but {problem}")):
        machine.choose("cuda", torch.cache)


def test_auto_takes_the_cpu_where_the_named_gpu_is_not_there_and_says_so(
    nvml: NvmlStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    chosen = machine.choose("auto", tmp_path)
    assert chosen.device == "cpu"
    assert chosen.gpu_problem is not None
    assert chosen.gpu_problem.startswith("CUDA_VISIBLE_DEVICES is 'GPU-1', which names none of")
    assert machine.choose("cpu", tmp_path).gpu_problem is None


def test_auto_takes_a_gpu_that_torch_can_use(nvml: NvmlStub, torch_uses_gpu: None, tmp_path: Path) -> None:
    for gpu in (H200, SLICED_H200):
        nvml.holds(gpu)
        chosen = machine.choose("auto", tmp_path)
        assert (chosen.device, chosen.gpu_problem) == ("cuda", None)


def test_doctor_says_what_is_wrong_and_what_to_run(
    nvml: NvmlStub, torch: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200, driver="550.1", cuda=12040)
    monkeypatch.setenv("QHARNESS_CACHE", str(torch.cache))
    torch.is_written(error="The NVIDIA driver on your system is too old")
    ended = qharness("doctor")
    text = " ".join(ended.stdout.split())
    assert ended.returncode == 0
    assert "compute capability 9.0, CUDA of the driver 12.4, driver 550.1" in text
    assert "the NVIDIA driver 550.1 supports CUDA up to 12.4 and the installed torch 2.13.0+cu130 needs 13.0" in text
    assert "device cpu" in text


def test_plan_and_run_say_why_auto_takes_the_cpu(
    nvml: NvmlStub, torch: Written, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holds(H200)
    torch.is_written(error=f"cannot load {Path.home()}/libcudart.so")
    problem = "torch 2.13.0+cu130 cannot use the GPU: cannot load ~/libcudart.so"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{{name: on-cpu, models: [{{id: {tiny}}}], methods: [none], measure: {{memory: {{}}}}}}")
    ended = qharness("plan", recipe, "--cache", torch.cache, "--json", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stderr == f"the GPU is not used: {problem}\n"
    events: list[Event] = []
    monkeypatch.setattr(api_run, "sweep", lambda *rest: ())
    api_run.run(recipe, tmp_path / "results", torch.cache, on_event=events.append)
    [unused] = [each for each in events if isinstance(each, GpuUnused)]  # others' debris may be cleared before
    assert unused == GpuUnused(problem)
    assert rendered(unused).lines == [f"the GPU is not used: {problem}"]


def test_the_operands_of_the_probe_are_exact_and_not_symmetric() -> None:
    left, right = cuda_probe.operands()
    assert {entry for row in (*left, *right) for entry in row} == {-2, -1, 0, 1, 2}
    assert all(matrix != [list(column) for column in zip(*matrix, strict=True)] for matrix in (left, right))
