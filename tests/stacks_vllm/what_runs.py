"""Loads each checkpoint that it is given in vLLM, and prints what runs as JSON. Runs in the stack.

Arguments: a JSON list of ``[name, folder, dtype, key-value cache, vLLM's own arguments, environment]``.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

PRODUCTS = (
    *("_C::onednn_mm", "_C::onednn_scaled_mm", "_C::int8_scaled_mm_with_quant", "_C::weight_packed_linear"),
    *("_C::cpu_gemm_wna16", "_C::int4_scaled_mm_cpu", "_C::fp8_scaled_mm_cpu", "_C::fp8_scaled_mm_with_quant"),
    *("aten::_scaled_mm", "aten::_dyn_quant_matmul_4bit", "aten::linear"),
)
"""Operations that multiply, by torch's names: what a profiler sees of a layer."""


def looked_at(folder: Path, dtype: str, cache: Any, online: dict[str, Any]) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    from harness.core.engine import LoadRequest
    from harness.engines.vllm.engine import VllmParams, load
    from harness.execution.checks import reload as probe

    request = LoadRequest(folder, dtype, "cpu", quantization=online or None, kv_cache=cache)
    model = load(request, VllmParams(kv_cache_memory=2**26))
    try:
        saved = folder / probe.FILE
        tokens = torch.arange(2, 34)[None]
        difference = probe.compare(folder, model.own_cache_logits, "", 1e9).figures if saved.exists() else None
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            model.hidden(tokens)
        ops = {event.key: event.count for event in trace.key_averages() if event.key in PRODUCTS}
        return {
            "kernels": dict(model.kernels()),
            "families": dict(
                Counter(product.family for name, product in model.products(1).items() if name != "lm_head")
            ),
            "arithmetic": {name: [each.activations, each.products] for name, each in model.arithmetic().items()},
            "operations": ops,
            "ledger": [astuple(each) for each in model.weight_ledger()],
            "running_bytes": model.running_bytes(),
            "cache": model.cache_description,
            "difference": difference,
        }
    finally:
        model.close()


def main() -> None:
    from harness.engines.vllm.engine import imports
    from harness.errors import UnsupportedError

    imports()
    found = {}
    for name, folder, dtype, cache, online, variables in json.loads(sys.argv[1]):
        os.environ.update(variables)
        try:
            found[name] = looked_at(Path(folder), dtype, cache, online)
        except UnsupportedError as error:
            found[name] = {"refused": str(error)}
        for variable in variables:
            del os.environ[variable]
    print()
    print(json.dumps(found))


main()
