"""The scales that vLLM makes while it loads: wrong ones are named, and those of a sound model are all counted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

pytestmark = pytest.mark.stack

MATRIX = "model.layers.1.mlp.down_proj.weight"
LOOK = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from harness.core.engine import LoadRequest
from harness.engines.vllm.engine import VllmParams, imports, load
imports()
found = {}
for name in sys.argv[2:]:
    online = {"quantization": "fp8_per_channel"}
    request = LoadRequest(Path(sys.argv[1]) / name, "bfloat16", "cpu", quantization=online)
    model = load(request, VllmParams(kv_cache_memory=2**26))
    model.probe_head()
    found[name] = {"factored": model.factored, **asdict(model.check_scales())}
    model.close()
print()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is seen of the tiny Llama, and of one with a row of a matrix that is infinite."""
    folder = tmp_path_factory.mktemp("scales")
    for name in ("sound", "infinite"):
        shutil.copytree(tiny_llama, folder / name)
    tensors = load_file(folder / "infinite" / "model.safetensors")
    tensors[MATRIX] = tensors[MATRIX].copy()
    tensors[MATRIX][5] = float("inf")
    save_file(tensors, folder / "infinite" / "model.safetensors", {"format": "pt"})
    return run_in_stack(LOOK, folder, "sound", "infinite")


def test_every_channel_of_every_matrix_has_a_scale_that_is_looked_at(found: Any, tiny_llama: Path) -> None:
    shapes = {name: each.shape for name, each in load_file(tiny_llama / "model.safetensors").items()}
    channels = sum(shape[0] for name, shape in shapes.items() if name.endswith("_proj.weight"))
    merged = 2 * 4  # in each of two layers: qkv, o, gate and up, down
    assert found["sound"] == {"factored": True, "tensors": merged, "scales": channels, "faults": []}


def test_a_scale_that_vllm_makes_infinite_is_named(found: Any) -> None:
    """Its predictions are all NaN. Comparing them would blame the engine."""
    values = 128  # rows of the matrix
    (fault,) = found["infinite"]["faults"]
    assert fault == {"name": f"{MATRIX}_scale", "values": values, "not_finite": 1, "zero": 0}
    assert not found["infinite"]["factored"]
