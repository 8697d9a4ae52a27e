"""Brings what a sweep needs from a hub, before its workers run offline.

Run as ``python -m harness.execution.fetch SPECS``, a file of specs: a process of its own, because
the libraries that read data sets import a backend and the parent must not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from harness.errors import SourceError
from harness.spec import ModelRef, RunSpec


def fetch(specs: Sequence[RunSpec]) -> bool:
    """True where a model came that was not there. Raises SourceError where a model or a text cannot be had."""
    absent = [spec for spec in specs if spec.model.kind == "hub" and not spec.model.path]
    wanted = absent + [spec for spec in specs if spec.perplexity and spec.perplexity.text.hub]
    if not wanted:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "specs.json"
        path.write_text(json.dumps([asdict(spec) for spec in wanted]), encoding="utf-8")
        command = [sys.executable, "-m", "harness.execution.fetch", str(path)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SourceError(f"could not fetch what the recipe names from the hub: {last[0]}")
    return bool(absent)


def main(path: str) -> None:
    from harness.json_codec import decode
    from harness.models.sources import fetch as fetch_model
    from harness.spec import TextRef
    from harness.text.sources import rows

    specs = decode(list[RunSpec], json.loads(Path(path).read_text(encoding="utf-8")), path)
    models: dict[str, ModelRef] = {spec.model.content: spec.model for spec in specs if spec.model.kind == "hub"}
    texts: dict[str, TextRef] = {
        s.perplexity.text.id: s.perplexity.text for s in specs if s.perplexity and s.perplexity.text.hub
    }
    for model in models.values():
        fetch_model(model)
    for text in texts.values():
        rows(text)


if __name__ == "__main__":
    main(sys.argv[1])
