"""Starts an engine's own server in its stack, asks it, ends it, and prints what was seen as JSON.

``python serve_once.py ENGINE CHECKPOINT DTYPE KV_CACHE FOLDER PARAMETERS``
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import urllib3

from harness.core.engine import LoadRequest
from harness.errors import HarnessError
from harness.host.process import is_running
from harness.libraries.serving import LOG
from harness.plugins import engine

PROMPTS = ("Once upon a time", "The cat sat")


def main(name: str, checkpoint: str, dtype: str, kv_cache: str, folder: str, parameters: str) -> dict[str, Any]:
    runtime = engine(name)
    assert runtime.serve is not None
    params = runtime.params.model_validate(json.loads(parameters))
    request = LoadRequest(Path(checkpoint), dtype, "cpu", kv_cache=kv_cache)  # type: ignore[arg-type]
    pool = urllib3.PoolManager(retries=False, timeout=300.0)
    try:
        with runtime.serve(request, params, Path(folder)) as endpoint:
            assert endpoint.metrics_url is not None
            models = pool.request("GET", f"{endpoint.url}/v1/models").json()
            family = psutil.Process().children(recursive=True)
            arguments = next(each.cmdline() for each in family if "--port" in each.cmdline())

            def ask(prompt: str) -> Any:
                body = {"model": endpoint.model, "prompt": prompt, "max_tokens": 8, "temperature": 0}
                return pool.request("POST", f"{endpoint.url}/v1/completions", json=body).json()

            with ThreadPoolExecutor() as threads:
                answers = list(threads.map(ask, PROMPTS))
            metrics = pool.request("GET", endpoint.metrics_url).data.decode()
    except HarnessError as error:
        return {"error": type(error).__name__, "message": str(error)}
    return {
        "models": [each["id"] for each in models["data"]],
        "tokens": [answer["usage"]["completion_tokens"] for answer in answers],
        "metrics": metrics,
        "arguments": arguments,
        "left": [each.pid for each in family if is_running(each)],
        "log_bytes": (Path(folder) / LOG).stat().st_size,
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
