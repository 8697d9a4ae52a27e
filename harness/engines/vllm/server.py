"""vLLM's own server, ``vllm serve``, with the settings that the engine has in the harness's process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.capability import Endpoint
from harness.core.engine import LoadRequest
from harness.engines.vllm.runtime import variables_for
from harness.libraries.serving import HOST, SERVED_NAME, free_port, serving

PROGRAM = "vllm.entrypoints.cli.main"
OWN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
"""The server always has its engine in a process of its own."""
NOT_SERVED = ("model", "skip_tokenizer_init", "disable_log_stats", "async_scheduling")
"""Arguments with which the engine can be read out step by step; the server keeps its own choice."""


@contextmanager
def serving_vllm(
    request: LoadRequest, arguments: Mapping[str, Any], variables: Mapping[str, str], folder: Path
) -> Iterator[Endpoint]:
    """A server for the checkpoint that ``arguments`` name, which are those of EngineArgs. See ``Serves``."""
    import torch

    port = free_port()
    url = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", PROGRAM, "serve", str(arguments["model"])]
    command += ["--host", HOST, "--port", str(port), "--served-model-name", SERVED_NAME, *flags(arguments)]
    own = {name: value for name, value in variables_for(variables).items() if name != OWN_PROCESS}
    threads = {} if request.device.startswith("cuda") else {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with serving(command, {**own, **threads, "VLLM_LOGGING_LEVEL": "INFO"}, f"{url}/health", folder):
        longest = arguments.get("max_model_len", -1)  # -1 lets vLLM choose
        yield Endpoint(
            url,
            SERVED_NAME,
            f"{url}/metrics",
            together=arguments.get("max_num_seqs"),
            longest_tokens=longest if longest > 0 else None,
        )


def flags(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of EngineArgs as those of the command line."""
    made: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if name in NOT_SERVED:
            continue
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            made += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return made
