"""vLLM's own server of a tiny model, started and ended by the engine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.stack

PROGRAM = Path(__file__).parents[1] / "support" / "serve_once.py"


def test_the_server_serves_the_variant_and_ends_with_all_of_its_processes(
    run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    params = json.dumps({"max_num_seqs": 4, "max_model_len": 128, "kv_cache_memory": "64MiB"})
    seen = run_in_stack(PROGRAM, "vllm", tiny_llama, "float32", "model", tmp_path, params)
    assert seen["models"] == ["model"]
    assert seen["tokens"] == [8, 8]
    assert seen["left"] == []
    assert seen["log_bytes"] > 0
    served = dict(pairwise(seen["arguments"]))
    assert (served["--dtype"], served["--max-model-len"], served["--max-num-seqs"]) == ("float32", "128", "4")
    assert served["--kv-cache-dtype"] == "auto"
    (written,) = re.findall(r"^vllm:generation_tokens_total\{.*\} ([\d.]+)$", seen["metrics"], re.MULTILINE)
    assert float(written) == 16


def test_a_checkpoint_that_the_server_refuses_is_unsupported_with_the_end_of_its_log(
    run_in_stack: Callable[..., Any], tiny_llama: Path, tmp_path: Path
) -> None:
    seen = run_in_stack(PROGRAM, "vllm", tiny_llama, "float64", "model", tmp_path, "{}")
    assert seen["error"] == "UnsupportedError"
    assert re.search(r"its server does not start: exit code \d+: .*--dtype: invalid choice", seen["message"])
