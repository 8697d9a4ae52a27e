"""Starts an engine's own server in its stack, prints its URL, and ends it when the input ends.

``python serve_until.py ENGINE CHECKPOINT DTYPE FOLDER PARAMETERS``
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.capability import Endpoint
from harness.core.engine import LoadRequest
from harness.plugins import engine


@contextmanager
def served(
    python: Path, variables: dict[str, str], name: str, checkpoint: Path, dtype: str, folder: Path, **params: Any
) -> Iterator[Endpoint]:
    """The server while this runs; ``python`` is that of the stack."""
    given = [name, checkpoint, dtype, folder, json.dumps(params)]
    process = subprocess.Popen(
        [str(python), __file__, *map(str, given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**variables, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url = next((line.strip() for line in process.stdout if line.startswith("http")), None)
        assert url is not None, "the server did not start"
        yield Endpoint(url, "model")
    finally:
        process.stdin.close()
        process.wait()


def main(name: str, checkpoint: str, dtype: str, folder: str, parameters: str) -> None:
    runtime = engine(name)
    assert runtime.serve is not None
    params = runtime.params.model_validate(json.loads(parameters))
    with runtime.serve(LoadRequest(Path(checkpoint), dtype, "cpu"), params, Path(folder)) as endpoint:
        print(endpoint.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
