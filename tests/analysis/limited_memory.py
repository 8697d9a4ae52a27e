"""Measures a small model's parts, works out the longest context for a budget, and tries it under a limit of memory.

Run by test_footprint as a process of its own; prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.job import Conditions, MeasurePerformance
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.variant import Variant
from harness.core.workload import ThroughputWorkload
from harness.engines.transformers.engine import TransformersModel
from harness.execution.context import Context
from harness.execution.footprint import footprint as watch
from harness.execution.worker import classify
from harness.figures.derived.footprint import footprint

SHAPE = LlamaConfig(
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    vocab_size=128,
    max_position_embeddings=65536,
)
LEFT_BYTES = 48 * 2**20
PROMPT = 512
WORKLOAD = ThroughputWorkload((1,), (PROMPT,), new_tokens=2, warmup=1, iterations=1)


class Source(Context):
    """A context whose model has no checkpoint: only its configuration is asked for."""

    def source(self) -> Path:
        return self._folder

    def __init__(self, spec: RunSpec, folder: Path) -> None:
        super().__init__(spec, None, lambda phase: None)  # type: ignore[arg-type]
        self._folder = folder


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = TransformersModel(LlamaForCausalLM(SHAPE).eval(), None)
    SHAPE.save_pretrained(folder)
    none = MethodRef("none", 1, {}, "none", "none")
    variant = Variant(ModelRef("m", "m", "0", "synthetic", ""), none, "transformers", "decoder")
    spec = RunSpec("r", MeasurePerformance(Conditions(), variant, none, None))
    context = Source(spec, folder)
    generate(model, 2 * PROMPT)  # what is built once must not count as workspace
    watch(context, model, WORKLOAD)
    parts = footprint([RunRecord(spec, Outcome("ok", measurements=context.findings()), "s", 1, "", 0.0)])
    assert parts is not None
    longest = parts.longest_context(parts.base_bytes + LEFT_BYTES)
    limit = in_use_bytes() + LEFT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    tried = {"within": attempt(model, longest), "beyond": attempt(model, longest * 5 // 4)}
    print(json.dumps({"longest": longest, "measured": PROMPT, **tried}))


def attempt(model: Any, tokens: int) -> str:
    try:
        generate(model, tokens)
    except (RuntimeError, MemoryError) as error:
        return classify(error)
    return "ran"


def generate(model: Any, tokens: int) -> None:
    with torch.inference_mode():
        logits, cache = model.prefill(torch.zeros(1, tokens - 1, dtype=torch.int64))
        model.decode(logits.argmax(dim=-1, keepdim=True), cache)


def in_use_bytes() -> int:
    """What RLIMIT_DATA counts now: VmData."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
