"""The machine's own speed, on a clock by which every call takes a millisecond."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.core.label import Fact
from harness.core.record import Measurement
from harness.metrics import machine

pytestmark = pytest.mark.heavy

CALL_S = 1e-3
MIB = 2**20


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    def seconds(work: machine.Work, calls: int, device: str) -> float:
        work()
        return calls * CALL_S

    monkeypatch.setattr(machine, "_seconds", seconds)
    # Some CPUs have no instructions for the others, and take seconds for a product of small matrices.
    monkeypatch.setattr(machine, "DTYPES", ("float32", "bfloat16", "int8"))
    return {}


def measured(free_bytes: int, told: dict[str, str]) -> list[Measurement]:
    def note(fact: Fact) -> None:
        told[fact.name] = fact.value

    return list(machine.measure("cpu", free_bytes, note))


def test_a_working_set_is_all_that_is_touched(told: dict[str, str]) -> None:
    found = [m for m in measured(4 * MIB, told) if m.metric == "bandwidth_byte_per_s"]
    sizes = [(m.protocol["access"], m.protocol["working_set_bytes"]) for m in found]
    assert sizes == [(access, size) for size in (MIB // 4, MIB // 2, MIB) for access in ("copy", "sum", "max")]
    for m in found:
        assert m.values == pytest.approx([int(m.protocol["working_set_bytes"] or 0) / CALL_S] * len(m.values))


def test_no_working_set_takes_more_than_a_quarter_of_the_free_memory(told: dict[str, str]) -> None:
    sets = [m.protocol["working_set_bytes"] for m in measured(3 * MIB, told) if "access" in m.protocol]
    assert max(int(size or 0) for size in sets) == MIB // 2


def test_a_product_is_two_operations_per_term(told: dict[str, str]) -> None:
    found = [m for m in measured(8 * MIB, told) if m.protocol.get("dtype") == "float32"]
    ways = ("mm", "oneDNN")
    assert [(m.protocol["size"], m.protocol["way"]) for m in found] == [(n, way) for n in (128, 256) for way in ways]
    for m in found:
        assert m.values == pytest.approx([2 * int(m.protocol["size"] or 0) ** 3 / CALL_S] * len(m.values))


def test_single_calls_are_bursts_if_each_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for call_s, expected in ((0.5, [1] * 3), (4.5e-3, [1] * 9), (1.05e-4, [1] * 5 + [10] * 39)):
        asked.clear()

        def seconds(work: machine.Work, calls: int, device: str, each: float = call_s) -> float:
            asked.append(calls)
            return calls * each

        monkeypatch.setattr(machine, "_seconds", seconds)
        found = machine._one_way(lambda: None, "cpu")
        assert asked == expected
        assert found == pytest.approx([call_s] * asked.count(asked[-1]))


def test_sizes_double_until_a_call_is_long(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LONG_CALL_S", CALL_S)
    found = [m for m in measured(32 * MIB, told) if m.protocol.get("dtype") == "float32"]
    assert {m.protocol["size"] for m in found} == {128}


def test_a_dtype_that_cannot_be_multiplied_is_told(told: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not on this device\nmore of it")

    monkeypatch.setattr("torch._int_mm", refuse)
    found = measured(4 * MIB, told)
    assert told["no rate of int8"] == "not on this device"
    assert "int8" not in {m.protocol.get("dtype") for m in found}
    assert "bfloat16" in {m.protocol.get("dtype") for m in found}


def test_a_copy_and_a_sum_do_what_they_say() -> None:
    import torch

    held = torch.arange(8.0)
    works = dict(machine._accesses(held))
    assert float(works["sum"]()) == 28.0  # type: ignore[arg-type]
    assert float(works["max"]()) == 7.0  # type: ignore[arg-type]
    works["copy"]()
    assert held.tolist() == [0.0, 1.0, 2.0, 3.0] * 2


@pytest.mark.parametrize(("device", "strides"), [("cpu", (8, 1)), ("cuda", (1, 8)), ("cuda:0", (1, 8))])
def test_the_second_int8_matrix_is_column_major_on_a_gpu(device: str, strides: tuple[int, int]) -> None:
    import torch

    codes = torch.arange(64, dtype=torch.int8).reshape(8, 8)
    second = machine._second_int8_matrix(codes, device)
    assert second.stride() == strides
    assert second.dtype == torch.int8


def test_float8_is_multiplied_on_a_gpu_as_torchao_does_it_too() -> None:
    import torch

    numbers = torch.ones(16, 16).to(torch.float8_e4m3fn)
    assert [way for way, _ in machine._float8_products("cpu", numbers)] == ["_scaled_mm"]
    plain, fast = (work for _, work in machine._float8_products("cuda", numbers))
    assert torch.equal(plain(), torch.full((16, 16), 16.0, dtype=torch.bfloat16))  # type: ignore[arg-type]
    assert fast.keywords["use_fast_accum"] is True  # type: ignore[attr-defined]


def test_blackwell_multiplies_nvfp4_with_a_scale_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that is not here: torch checks the shapes of the matrices and of their scales, and computes nothing."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    for capability, last in (((9, 0), "float8_e4m3fn"), ((10, 0), machine.FLOAT4), ((12, 0), machine.FLOAT4)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert machine._dtypes("cuda:0")[-1] == last
    assert machine._dtypes("cpu") == machine.DTYPES
    there: Any = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(torch, "randint", lambda high, shape, generator, **rest: torch.empty(shape, **rest))
    with FakeTensorMode():
        product: Any = machine._float4_product(256, there)()
    assert (product.shape, product.dtype, product.device.type) == ((256, 256), torch.bfloat16, "cuda")


def test_a_gpu_multiplies_for_a_while_before_its_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    clock = iter(step / 4 for step in range(100))
    products: list[tuple[object, ...]] = []
    synchronized: list[str] = []

    def multiply(*factors: object) -> None:
        products.append(factors)

    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("torch.ones", lambda *shape, device: torch.empty(*shape, device="meta"))
    monkeypatch.setattr("torch.mm", multiply)
    monkeypatch.setattr("torch.cuda.synchronize", synchronized.append)
    machine.warm_up("cuda:0")
    assert len(products) == machine.WARM_UP_S * 4 - 1
    assert synchronized == ["cuda:0"] * len(products)
    machine.warm_up("cpu")
    assert len(products) == len(synchronized)


def test_every_way_multiplies() -> None:
    import torch

    ways = dict(machine._products("cpu", "float32", 64))
    assert set(ways) == {"mm", "oneDNN"}
    torch.testing.assert_close(ways["oneDNN"](), ways["mm"](), rtol=1e-4, atol=1e-4)
