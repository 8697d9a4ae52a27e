"""The probe's products, with the real torch on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.host import cuda_probe

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


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch was built with CUDA")
def test_a_build_without_cuda_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-P", cuda_probe.__file__, str(tmp_path / "answer.json")]
    subprocess.run(command, check=True)
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["version"] == torch.__version__
    assert (answer["cuda"], answer["available"], answer["error"]) == (None, False, None)
    assert all(name.startswith("sm_") for names in answer["builds"].values() for name in names)
