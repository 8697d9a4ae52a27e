"""What the harness does on a GPU beside whole runs, in this process: the branches that no simulated worker reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import torch
from cuda_simulation import simulated
from nvml_stub import H200, NOT_SUPPORTED, NvmlStub
from simulated_gpu import ASSERTION, Fault, Gpus, Plan

from harness.acceptance import visible
from harness.acceptance.checks import identity
from harness.core.capability import Product, StoredTensor
from harness.core.engine import LoadRequest
from harness.core.site import Machine
from harness.core.workload import ThroughputWorkload
from harness.engines.transformers.engine import TransformersModel
from harness.errors import InvalidRunError
from harness.execution.room import free_bytes
from harness.host import cuda_probe
from harness.host.gpu import gpu
from harness.host.preflight import Preflight, TorchAnswer, TriedProduct
from harness.metrics.memory import PeakMemory
from harness.metrics.stopwatch import CudaStopwatch, stopwatch
from harness.metrics.throughput import measure
from harness.models import published
from harness.models.loading import load_transformers
from harness.numerics.prompts import random_tokens

pytestmark = pytest.mark.heavy


@pytest.fixture
def gpus() -> Iterator[Gpus]:
    with simulated(Plan()) as found:
        yield found


@pytest.fixture
def model(gpus: Gpus) -> TransformersModel:
    from small_llama import small_llama

    return TransformersModel(small_llama().to("cuda"), None)


def test_a_model_waits_for_its_gpu_and_gives_its_memory_back(gpus: Gpus, model: TransformersModel) -> None:
    assert model.device == "cuda:0"
    before = gpus.synchronized
    model.sync()
    assert gpus.synchronized == before + 1
    assert torch.cuda.memory_reserved() > 0
    model.close()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == (0, 0)


def test_compiled_decoding_reads_each_step_before_the_next_overwrites_it(model: TransformersModel) -> None:
    """A step's logits live until the next one (``Compiled``); NaN where they were read later would fail the check."""
    workload = ThroughputWorkload((2,), (5,), 4, warmup=1, iterations=2, decode_mode="compiled")
    with torch.inference_mode():
        prefill, decode, _ = measure(model, workload, seed=0)
    assert {each.protocol["clock"] for each in (prefill, decode)} == {"CUDA events"}
    assert len(set(decode.values)) <= 2  # the simulated clock: all steps launch the same kernels, up to rounding


def test_compiled_decoding_that_writes_something_else_is_invalid(
    model: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = torch.compile

    def wrong(forward: Any, **options: Any) -> Any:
        assert options["mode"] == "reduce-overhead"

        def step(**inputs: Any) -> Any:
            output = forward(**inputs)
            return SimpleNamespace(logits=output.logits + 100.0)

        return kept(step, **options)

    monkeypatch.setattr(torch, "compile", wrong)
    prompt = random_tokens(model.vocabulary, 1, 5, seed=0)
    with (
        pytest.raises(InvalidRunError, match="compiled decoding writes something else"),
        torch.inference_mode(),
        model.decoder("compiled", prompt, 4),
    ):
        pytest.fail("it was accepted")


def test_spans_are_timed_by_the_gpus_events(gpus: Gpus, model: TransformersModel) -> None:
    clock = stopwatch(model)
    assert isinstance(clock, CudaStopwatch)
    tensor = torch.ones(2, device="cuda")
    for launches in (1, 3):
        with clock.span():
            for _ in range(launches):
                tensor.add_(1.0)
    assert clock.read_s() == pytest.approx([gpus.plan.launch_s, 3 * gpus.plan.launch_s])
    assert clock.read_s() == []


def test_free_memory_is_what_the_driver_has_left(gpus: Gpus) -> None:
    held = torch.ones(2**20, device="cuda")
    assert free_bytes("cuda", 1) == torch.cuda.mem_get_info()[0]
    taken = free_bytes("cuda", 1)
    del held
    assert free_bytes("cuda", 1) == taken + 2**22  # what torch keeps is given back first


def test_a_spread_model_has_the_free_memory_of_all_its_gpus() -> None:
    with simulated(Plan(gpus=2)):
        held = torch.ones(2**20, device="cuda:1")
        free = [torch.cuda.mem_get_info(index)[0] for index in range(2)]
        assert free[1] == free[0] - held.nbytes
        assert free_bytes("cuda", 1) == free[0]
        assert free_bytes("cuda", 2) == sum(free)


@pytest.mark.parametrize("name", ["BitsAndBytesConfig", "QuantoConfig", "HqqConfig"])
def test_a_quantizer_that_refuses_to_offload_says_that_memory_is_short(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal is the library's own. Without a GPU no map of devices makes ``from_pretrained`` get there."""
    import transformers
    from transformers.quantizers.auto import AutoHfQuantizer

    four_bits = {"load_in_4bit": True} if name == "BitsAndBytesConfig" else {}
    quantizer = AutoHfQuantizer.from_config(getattr(transformers, name)(**four_bits), pre_quantized=False)

    def from_pretrained(*_: Any, **__: Any) -> None:
        quantizer.validate_environment(device_map={"model": 0, "lm_head": "cpu"})

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    request = LoadRequest(tmp_path, "bfloat16", "cuda", gpus=2)
    with pytest.raises(MemoryError, match="does not fit 2 GPUs; use more devices or fewer bits"):
        load_transformers(request)
    with pytest.raises(ValueError, match=r"CPU or (the )?disk"):
        load_transformers(replace(request, gpus=1))


def test_the_error_of_a_failed_kernel_is_the_one_that_the_phase_raises() -> None:
    """Once a kernel has failed, reading the phase's peaks fails too; that must not hide a run's own error."""
    with simulated(Plan(faults=(Fault("assert", 1, "mul"),))):
        memory = PeakMemory("cuda")
        tensor = torch.ones(2, device="cuda")

        def fail() -> None:
            with memory.phase("forward"):
                tensor.mul_(2.0)
                raise KeyError("the first")

        with pytest.raises(KeyError, match="the first"):
            fail()
        with pytest.raises(torch.AcceleratorError) as raised:
            torch.cuda.synchronize()
        assert str(raised.value) == ASSERTION


def test_vllm_waits_for_the_gpu(gpus: Gpus) -> None:
    from harness.engines.vllm.model import VllmModel

    before = gpus.synchronized
    for device in ("cuda", "cpu"):
        VllmModel.sync(SimpleNamespace(device=device))  # type: ignore[arg-type]
    assert gpus.synchronized == before + 1


@pytest.mark.parametrize(("capability", "direct"), [((9, 0), False), ((10, 0), True), ((12, 0), True)])
def test_microscaled_formats_are_multiplied_directly_from_blackwell_on(
    capability: tuple[int, int], direct: bool
) -> None:
    from harness.methods.torchao.driver import is_blackwell

    with simulated(Plan(capability=capability)):
        assert is_blackwell("cuda") is direct
        assert not is_blackwell("cpu")


def test_gptqmodels_kernels_are_compared_in_half_precision_on_a_gpu(gpus: Gpus) -> None:
    from harness.methods.gptqmodel.driver import _agrees

    seen: list[torch.Tensor] = []

    def kernel(noise: torch.Tensor) -> torch.Tensor:
        seen.append(noise)
        return noise * 2.0

    reference: Any = torch.nn.Linear(32, 32, bias=False).half()
    reference.weight.data = 2.0 * torch.eye(32, dtype=torch.float16)
    assert _agrees(kernel, reference.to("cuda"), torch.device("cuda:0"))
    assert (seen[0].device.type, seen[0].dtype) == ("cuda", torch.float16)
    assert not _agrees(lambda noise: noise, reference, torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("device", "storage", "product"),
    [
        ("cuda", "Q4_K", Product("packed", "int8")),
        ("cuda:1", "Q8_0", Product("packed", "int8")),
        ("cuda", "MXFP4", Product("packed")),  # 4-bit floats may run on faster ones
        ("cpu", "Q4_K", Product("packed")),
        ("cuda", "F16", Product("plain")),
    ],
)
def test_llama_cpp_multiplies_blocks_by_int8_instructions_on_a_gpu(device: str, storage: str, product: Product) -> None:
    from harness.engines.llamacpp.engine import LlamaCppModel

    model = LlamaCppModel.__new__(LlamaCppModel)
    model.device = device
    name = "model.layers.0.mlp.up_proj.weight"
    model._stored = [StoredTensor(name, "linear", storage, 1024, 1024, 0, storage != "F16")]
    assert model.products(1) == {name.removesuffix(".weight"): product}


def test_a_gpu_that_torch_cannot_start_is_an_answer_of_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA driver initialization failed\nmore")

    with simulated(Plan()):
        monkeypatch.setattr(torch.cuda, "init", fail)
        answer = cuda_probe.facts()
        monkeypatch.undo()
    assert answer["error"] == "CUDA driver initialization failed"
    assert answer["products"] == {}


def test_a_torch_without_cuda_answers_before_it_starts_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(Plan()):
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.cuda, "init", lambda: pytest.fail("it started the GPU"))
        answer = cuda_probe.facts()
        monkeypatch.undo()
    assert (answer["cuda"], answer["error"], answer["products"]) == (None, None, {})
    assert "uuid" not in answer


def test_cudas_driver_names_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up libcuda.so.1 with two GPUs; its numbers of errors are those of cuda.h."""
    names = [UUID(int=1), UUID(int=2)]

    def count(result: Any) -> int:
        result._obj.value = len(names)
        return 0

    def choose(result: Any, ordinal: int) -> int:
        result._obj.value = ordinal
        return 0

    def read(result: Any, device: Any) -> int:
        result._obj[:] = names[device.value].bytes
        return 0

    library = SimpleNamespace(
        cuInit=lambda flags: 0, cuDeviceGetCount=count, cuDeviceGet=choose, cuDeviceGetUuid_v2=read
    )
    monkeypatch.setattr(visible.ctypes, "CDLL", lambda name: library)
    assert list(visible.driver_uuids()) == [str(name) for name in names]
    library.cuInit = lambda flags: visible.NO_DEVICE
    assert list(visible.driver_uuids()) == []
    library.cuInit = lambda flags: 999
    with pytest.raises(RuntimeError, match="cuInit failed with CUDA's error 999"):
        list(visible.driver_uuids())


def test_the_boards_power_is_read_in_watts(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(power=350_500))
    with gpu() as device:
        assert device is not None
        assert device.power_w() == 350.5
        nvml.holds(H200.answering(power=f"!{NOT_SUPPORTED}"))
        assert device.power_w() is None


GOOD = TorchAnswer(version="2.13.0", cuda="13.0", uuid=H200.uuid, products={"float32": TriedProduct(None, True)})


@pytest.mark.parametrize(
    ("on_gpu", "told", "verdict", "reason"),
    [
        (False, None, "SKIP", "only the processor is checked"),
        (True, Preflight(H200.name, H200.uuid, replace(GOOD, cuda=None)), "FAIL", "was built without CUDA"),
        (True, Preflight(H200.name, H200.uuid, GOOD), "PASS", "torch 2.13.0 multiplies float32"),
    ],
)
def test_the_acceptance_test_says_whether_torch_can_use_the_gpu(
    on_gpu: bool, told: Preflight | None, verdict: str, reason: str
) -> None:
    bench: Any = SimpleNamespace(on_gpu=on_gpu, preflight=told)
    [finding] = identity.preflight(bench)
    assert finding.verdict == verdict
    assert reason in finding.reason


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (Machine("cpu", "a processor"), "on a GPU only"),
        (Machine("cuda", "a GPU", (8, 0)), "from compute capability 8.9 on; this GPU has 8.0"),
        (Machine("cuda", "a GPU", (9, 0)), None),
    ],
)
def test_codes_are_multiplied_where_the_gpu_has_a_kernel_for_them(machine: Machine, reason: str | None) -> None:
    found = published._unpacked_anyway({}, published.HubKernel("a/b", 1, (8, 9)), machine)
    assert found is None if reason is None else found is not None and reason in found
