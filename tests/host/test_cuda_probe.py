"""The probe's products, with the real torch on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import torch
from nvml_stub import H200
from pydantic import TypeAdapter
from torch.cuda import _CudaDeviceProperties

from harness.host import cuda_probe
from harness.host.preflight import Preflight, TorchAnswer

pytestmark = pytest.mark.heavy


def test_every_product_is_correct() -> None:
    assert cuda_probe.products(torch, "cpu") == {
        dtype: {"raised": None, "correct": True} for dtype in ("float32", "float16", "bfloat16", "int8", "float8")
    }


def test_the_operands_multiply_to_what_the_probe_expects_and_not_to_what_a_transposed_product_gives() -> None:
    left, right = (torch.tensor(rows, dtype=torch.int64) for rows in cuda_probe.operands())
    assert (left @ right.t()).abs().max() <= 256
    assert not torch.equal(left @ right.t(), left @ right)


def test_a_wrong_and_a_failing_product_are_told_apart() -> None:
    _, expected = cuda_probe.operands()

    def fail() -> torch.Tensor:
        raise RuntimeError("no kernel image\nmore")

    assert cuda_probe._tried(lambda: torch.zeros(2), expected) == {"raised": None, "correct": False}
    assert cuda_probe._tried(fail, expected) == {"raised": "no kernel image", "correct": False}


def test_a_gpu_is_described_and_its_answer_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's GPU is made up, and the products are multiplied on the CPU."""
    on_cpu = partial(cuda_probe.products, device="cpu")
    properties = create_autospec(_CudaDeviceProperties, instance=True, major=9, minor=0)
    properties.uuid = H200.uuid.removeprefix("GPU-")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", create_autospec(torch.cuda.init))
    monkeypatch.setattr(torch.cuda, "is_available", create_autospec(torch.cuda.is_available, return_value=True))
    monkeypatch.setattr(torch.cuda, "get_arch_list", create_autospec(torch.cuda.get_arch_list, return_value=["sm_90"]))
    described = create_autospec(torch.cuda.get_device_properties, return_value=properties)
    monkeypatch.setattr(torch.cuda, "get_device_properties", described)
    monkeypatch.setattr(cuda_probe, "products", lambda torch, device: on_cpu(torch) if device == "cuda:0" else {})
    answer = TypeAdapter(TorchAnswer).validate_json(json.dumps(cuda_probe.facts()))
    assert (answer.version, answer.cuda, answer.capability) == (torch.__version__, "13.0", (9, 0))
    assert answer.products.keys() == {"float32", "float16", "bfloat16", "int8", "float8"}
    assert Preflight(H200.name, H200.uuid, answer, (9, 0), "580.65.06", (13, 0)).problem is None


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch was built with CUDA")
def test_a_build_without_cuda_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-P", cuda_probe.__file__, str(tmp_path / "answer.json")]
    subprocess.run(command, check=True)
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["version"] == torch.__version__
    assert (answer["cuda"], answer["available"], answer["error"]) == (None, False, None)
    assert all(name.startswith("sm_") for names in answer["builds"].values() for name in names)
