"""The simulated CUDA itself: what tests on it may rely on."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Iterator

import pytest
import torch
from cuda_simulation import Event, Stream, simulated
from simulated_gpu import BLOCK_BYTES, CONTEXT_BYTES, SEGMENT_BYTES, Fault, Gpus, Plan

pytestmark = pytest.mark.heavy


@pytest.fixture
def gpus() -> Iterator[Gpus]:
    with simulated(Plan()) as found:
        yield found


def test_devices_follow_storages(gpus: Gpus) -> None:
    tensor = torch.ones(4, 4, device="cuda")
    parts = [tensor[1:], tensor.t(), tensor.detach(), torch.nn.Parameter(tensor), tensor @ tensor, tensor + 1.0]
    parts += [tensor.to(torch.float16), torch.empty_like(tensor), tensor.new_zeros(2), copy.deepcopy(tensor)]
    parts += [torch.tensor([1, 2], device="cuda:0"), torch.ones(2).cuda(), torch.ones(2).to(tensor)]
    with torch.device("cuda"):
        parts += [torch.zeros(3), torch.tensor([2.0])]
    assert {part.device for part in parts} == {torch.device("cuda:0")}
    assert all(part.is_cuda and part.get_device() == 0 for part in parts)
    assert tensor.to("cuda") is tensor
    for on_host in (tensor.cpu(), tensor.to("cpu", torch.float16), torch.ones(2), tensor.new_zeros(2, device="cpu")):
        assert on_host.device == torch.device("cpu")
        assert not on_host.is_cuda


def test_results_are_those_of_the_cpu(gpus: Gpus) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    inputs = torch.randn(3, 8)
    expected = layer(inputs)
    moved = layer.to("cuda")
    assert {each.device.type for each in moved.parameters()} == {"cuda"}
    result = moved(inputs.to("cuda"))
    assert torch.equal(result.cpu(), expected)
    result.sum().backward()
    assert moved.weight.grad is not None
    assert moved.weight.grad.is_cuda


def test_operands_must_share_a_device(gpus: Gpus) -> None:
    on_gpu, on_host = torch.ones(3, device="cuda"), torch.ones(3)
    for broken in (lambda: on_gpu + on_host, lambda: torch.cat([on_host, on_gpu]), lambda: on_gpu.add_(on_host)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            broken()
    assert (on_gpu * torch.tensor(2.0)).is_cuda  # a number on the host may be anywhere
    assert on_gpu[torch.tensor([0, 2])].is_cuda  # and so may indices
    on_host.copy_(on_gpu)
    assert not on_host.is_cuda
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        on_gpu.numpy()
    with pytest.raises(torch.AcceleratorError, match="invalid device ordinal"):
        torch.ones(3, device="cuda:1")


def test_quantized_tensors_move(gpus: Gpus) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64, dtype=torch.bfloat16))
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    weight = layer[0].weight
    assert (weight.device.type, weight.qdata.device.type) == ("cpu", "cpu")
    weight = layer.to("cuda")[0].weight
    assert (weight.device.type, weight.qdata.device.type) == ("cuda", "cuda")
    assert layer(torch.ones(1, 64, dtype=torch.bfloat16, device="cuda")).is_cuda
    assert layer.to("cpu")[0].weight.qdata.device.type == "cpu"


def test_memory_is_counted_in_blocks(gpus: Gpus) -> None:
    assert torch.cuda.memory_allocated() == 0
    free, total = torch.cuda.mem_get_info()
    assert (total, free) == (gpus.plan.memory_bytes, total - gpus.plan.others_bytes - CONTEXT_BYTES)
    first = torch.ones(1, device="cuda")
    second = torch.ones(SEGMENT_BYTES // 4, device="cuda")
    assert torch.cuda.memory_allocated() == BLOCK_BYTES + SEGMENT_BYTES
    assert torch.cuda.memory_reserved() == 2 * SEGMENT_BYTES
    view = second[1:]
    del second
    assert torch.cuda.memory_allocated() == BLOCK_BYTES + SEGMENT_BYTES
    del view
    assert torch.cuda.memory_allocated() == BLOCK_BYTES
    assert torch.cuda.max_memory_allocated() == BLOCK_BYTES + SEGMENT_BYTES
    assert torch.cuda.mem_get_info()[0] == free - 2 * SEGMENT_BYTES  # torch keeps what it has taken
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == BLOCK_BYTES
    assert torch.cuda.mem_get_info()[0] == free - SEGMENT_BYTES
    assert first.is_cuda


def test_memory_runs_out(gpus: Gpus) -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"CUDA out of memory\. Tried to allocate 256\.00 MiB\. GPU 0"):
        torch.empty(2**26, device="cuda")
    assert torch.ones(3, device="cuda").sum().item() == 3.0  # what fits still works


def test_one_chosen_allocation_fails() -> None:
    with simulated(Plan(faults=(Fault("out_of_memory", 3),))):
        kept = [torch.ones(1, device="cuda") for _ in range(2)]
        with pytest.raises(torch.OutOfMemoryError):
            torch.ones(1, device="cuda")
        assert torch.ones(1, device="cuda").is_cuda
        del kept


@pytest.mark.parametrize(
    ("kind", "message"), [("assert", "device-side assert"), ("lost", "unspecified launch failure")]
)
def test_a_failed_kernel_is_seen_later_and_never_forgotten(kind: str, message: str) -> None:
    lost = []
    with simulated(Plan(faults=(Fault(kind, 2, "mul"),)), lambda: lost.append(True)):
        tensor = torch.ones(3, device="cuda")
        result = (tensor * 2.0) * 3.0
        assert lost == ([True] if kind == "lost" else [])
        for call in (torch.cuda.synchronize, result.sum, result.cpu, torch.cuda.empty_cache, torch.cuda.mem_get_info):
            with pytest.raises(torch.AcceleratorError, match=message):
                call()
        assert torch.cuda.memory_allocated() > 0  # torch knows this without the driver


def test_events_read_the_simulated_clock(gpus: Gpus) -> None:
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    tensor = torch.ones(2**20, device="cuda")
    began.record()
    tensor.add_(1.0)  # 4 MiB are read, and the same are returned
    tensor.view(2, -1)  # no kernel
    ended.record()
    ended.synchronize()
    expected_s = max(gpus.plan.launch_s, 2 * 2**22 / gpus.plan.bytes_per_s)
    assert began.elapsed_time(ended) == pytest.approx(expected_s * 1000)
    with pytest.raises(ValueError, match="enable_timing"):
        torch.cuda.Event().elapsed_time(ended)
    with pytest.raises(ValueError, match="recorded"):
        began.elapsed_time(torch.cuda.Event(enable_timing=True))


def test_a_compiled_step_overwrites_what_the_last_one_returned(gpus: Gpus) -> None:
    kept = torch.ones(3, device="cuda")
    step = torch.compile(lambda inputs: (inputs * 2.0, kept), mode="reduce-overhead")
    first, same = step(torch.ones(3, device="cuda"))
    assert first.tolist() == [2.0] * 3
    step(torch.ones(3, device="cuda"))
    assert first.isnan().all()
    assert same.tolist() == [1.0] * 3  # its caller's memory


def test_the_profiler_names_what_was_launched(gpus: Gpus) -> None:
    tensor = torch.ones(8, 8, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as trace:
        tensor @ tensor
        tensor @ tensor
    [event] = trace.key_averages()
    assert (event.key, event.count) == ("aten::mm", 2)
    assert event.self_device_time_total == pytest.approx(2e6 * gpus.plan.launch_s)


def test_other_threads_see_the_same_gpu(gpus: Gpus) -> None:
    made: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: made.append(torch.ones(1, device="cuda")))
    thread.start()
    thread.join()
    assert made[0].is_cuda
    assert torch.cuda.memory_allocated() == BLOCK_BYTES


def test_several_gpus() -> None:
    with simulated(Plan(gpus=2)):
        first, second = torch.ones(1, device="cuda:0"), torch.ones(1, device="cuda:1")
        assert torch.cuda.device_count() == 2
        assert [torch.cuda.memory_allocated(index) for index in range(2)] == [BLOCK_BYTES] * 2
        with pytest.raises(RuntimeError, match="found at least two devices"):
            first + second
        assert (first.to("cuda:1") + second).device == torch.device("cuda:1")
        with torch.cuda.device(1):
            assert torch.ones(1, device="cuda").device == torch.device("cuda:1")
        assert torch.cuda.current_device() == 0


def test_signatures_are_torchs(gpus: Gpus) -> None:
    for call in (lambda: torch.cuda.synchronize(0, 1), lambda: torch.cuda.memory_allocated(device_index=0)):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(("ours", "real"), [(Event, torch.cuda.Event), (Stream, torch.cuda.Stream)])
def test_classes_have_torchs_methods(ours: type, real: type) -> None:
    for name, method in inspect.getmembers(ours, inspect.isfunction):
        if name.startswith("__"):
            continue
        theirs = getattr(real, name)
        try:
            expected = list(inspect.signature(theirs).parameters)
        except ValueError:  # written in C
            continue
        assert list(inspect.signature(method).parameters) == expected, name


def test_torch_is_as_before_afterwards() -> None:
    before = (torch.Tensor.to, torch.cuda.is_available(), torch.compile, threading.Thread.run)
    with simulated(Plan()):
        assert torch.cuda.is_available()
    assert (torch.Tensor.to, torch.cuda.is_available(), torch.compile, threading.Thread.run) == before
    assert torch.ones(2).numpy().sum() == 2.0
    with pytest.raises((AssertionError, RuntimeError)):
        torch.ones(2, device="cuda")
