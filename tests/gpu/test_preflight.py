"""What torch and NVML say of the same GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.host import preflight
from harness.host.preflight import FOLDER

pytestmark = pytest.mark.gpu


def test_torch_uses_the_gpu_that_nvml_names_and_the_answer_is_kept(tmp_path: Path) -> None:
    checked = preflight.preflight(tmp_path)
    assert checked is not None
    assert checked.problem is None
    assert checked.torch.capability == checked.capability
    assert not {"float32", "float16", "int8"} & checked.lacking.keys()
    if checked.capability is not None and checked.capability >= (8, 9):
        assert checked.lacking == {}
    assert len(list((tmp_path / FOLDER).iterdir())) == 1
    preflight._known.clear()
    assert preflight.preflight(tmp_path) == checked
