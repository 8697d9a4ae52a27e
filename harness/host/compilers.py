"""The programs with which libraries compile CUDA kernels while a model runs (``torch.utils.cpp_extension``)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

DEFAULT_TOOLKIT = Path("/usr/local/cuda")
"""Where torch looks for nvcc if it is neither on PATH nor named by CUDA_HOME or CUDA_PATH."""


def absent_compilers() -> tuple[str, ...]:
    """Those of nvcc, ninja and c++ that a worker of this interpreter would not find."""
    path = worker_path(sys.executable, os.environ.get("PATH"))
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=path)
    nvcc = Path(found) if found and not home else Path(home or DEFAULT_TOOLKIT, "bin", "nvcc")
    present = {
        "nvcc": nvcc.is_file(),
        "ninja": shutil.which("ninja", path=path) is not None,
        "c++": shutil.which(os.environ.get("CXX") or "c++", path=path) is not None,
    }
    return tuple(name for name, is_present in present.items() if not is_present)


def worker_path(python: str, inherited: str | None) -> str:
    """PATH of a worker: at its end the interpreter's own folder, where pip puts programs such as ninja."""
    return os.pathsep.join([*([inherited] if inherited else []), str(Path(python).parent)])
