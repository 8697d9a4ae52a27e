"""The environment of a worker: an allow-list, so that no token or key reaches third-party code.

A worker runs offline, and what it loads may contain code: checkpoints that a recipe trusts, quantization
libraries, tasks. Downloads happen earlier, in a process that does not run that code. This keeps tokens out of the
environment only: code that a recipe trusts runs as its user, and can read that user's files.

Variables of vLLM (``VLLM_…``) are not inherited: many choose its kernels, and one that was set for something else would
change figures silently. Its engine sets what it needs, and a recipe what it wants (``engines: [{vllm: {env: …}}]``).
Neither are those that llama.cpp's server takes for its arguments (``LLAMA_ARG_…``).
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from harness.core.identity import digest
from harness.host.machine import cache_folder
from harness.host.processor import instruction_sets
from harness.storage.anonymizer import SECRET_NAME

_ALLOWED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|TMP|TEMP|TERM|COLUMNS|NO_COLOR"
    # the interpreter, its environment, compilers: kernels are compiled while a model runs
    r"|PYTHON\w*|VIRTUAL_ENV|CONDA_PREFIX|CC|CXX|CFLAGS|CXXFLAGS|CPPFLAGS|LDFLAGS|CPATH|C_INCLUDE_PATH|CPLUS_INCLUDE_PATH"
    r"|LIBRARY_PATH|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_\w+|PKG_CONFIG_PATH|MAX_JOBS|CUDAHOSTCXX|CUDACXX"
    r"|GCC_EXEC_PREFIX|COMPILER_PATH|(NVCC|NIX)_\w+"
    # where libraries store downloads and compiled code
    r"|HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|HF_DATASETS_CACHE|HF_MODULES_CACHE|HF_ASSETS_CACHE|KERNELS_CACHE"
    r"|TRANSFORMERS_CACHE|TRANSFORMERS_VERBOSITY|NLTK_DATA|XDG_(CACHE|CONFIG|DATA|STATE)_HOME|XDG_RUNTIME_DIR"
    r"|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    # threads, memory, instruction sets, devices: what affects a kernel's speed and precision
    r"|(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|NUMBA|ONEDNN|DNNL|NPY|ATEN|MALLOC|TCMALLOC|GLIBC)_\w+"
    r"|(CUDA|CUBLAS|CUBLASLT|CUDNN|NCCL|NVIDIA|NVTE|HIP|ROCR|ROCM|HSA|TRITON|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH)_\w+"
    r"|(ACCELERATE|TOKENIZERS|RAYON|BNB|GPTQMODEL|AR|INC|QUARK|GGML|LLAMA(?!_ARG_)|TQDM|QHARNESS)_\w+"
)
_NETWORK = re.compile(
    r"(https?|all|no)_proxy|HF_ENDPOINT|HF_(HUB|DATASETS)_OFFLINE|HF_HUB_DISABLE_\w+|HF_HUB_\w+_TIMEOUT", re.IGNORECASE
)

OFFLINE: Mapping[str, str] = MappingProxyType(
    {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
)
"""With these, libraries read what is here and connect to no hub."""


def for_workers(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a worker inherits, and its folder for compiled kernels."""
    return {**compiled_kernels(variables), **{name: value for name, value in variables.items() if _allowed(name)}}


def compiled_kernels(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A folder for torch.compile's kernels that is specific to this processor's instruction sets.

    torch looks up cached kernels by their graph. Kernels compiled for other vector registers (on another machine that
    shares the folder, or under another ATEN_CPU_CAPABILITY) abort the process that runs them.
    """
    who = digest([instruction_sets(), variables.get("ATEN_CPU_CAPABILITY")])
    folder = Path(tempfile.gettempdir()) / f"qharness-kernels-{os.getuid()}-{who}"
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder if _is_private(folder) else cache_folder() / "kernels" / who)}


def _is_private(folder: Path) -> bool:
    """Whether the folder, which is made if it is missing, belongs to this user, and nobody else may write there.

    Code in it is run, and everybody on this machine knows its name and may make it first.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def for_fetching(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of a process that downloads and runs a recipe's code: proxies and hub settings, but no token."""
    way = {name: value for name, value in variables.items() if _NETWORK.fullmatch(name)}
    return {**for_workers(variables), **way}


def _allowed(name: str) -> bool:
    return _ALLOWED.fullmatch(name) is not None and SECRET_NAME.search(name) is None
