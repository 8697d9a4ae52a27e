"""Speed beside vLLM's own timing: ``python benchmarks/vllm_speed.py MODEL``, with the interpreter of stack vllm.

MODEL is a folder with a checkpoint of transformers. At each shape ``LLM.generate``, which ``vllm bench latency`` times,
and the harness's prefill and decoding steps take turns on the same engine, so that a slow moment of the machine meets
both. Prints the medians of the total time and their ratio, which should be 1 within the spread that is printed too.
Both must write the same tokens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from harness.core.engine import LoadRequest
from harness.engines.vllm import runtime
from harness.engines.vllm.engine import VllmParams, arguments, imports
from harness.engines.vllm.model import VllmModel
from harness.metrics.stopwatch import stopwatch
from harness.numerics.prompts import random_tokens

SHAPES = ((1, 128, 32), (8, 128, 32), (4, 512, 32), (20, 300, 16))
"""Texts, tokens of each prompt, decoding steps after it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="*", default=["x".join(map(str, shape)) for shape in SHAPES])
    asked = parser.parse_args()
    imports()
    request = LoadRequest(asked.model, asked.dtype, "cpu")
    began = time.perf_counter()
    llm, model = started(request, VllmParams(enforce_eager=not asked.compiled))
    print(f"started in {time.perf_counter() - began:.0f} s")
    for texts, length, new_tokens in (map(int, shape.split("x")) for shape in asked.shapes):
        tokens = random_tokens(model.vocabulary, texts, length, 0)
        whole, steps = [], []
        for each in range(-1, asked.rounds):
            generate_s, theirs = generated(llm, tokens, new_tokens)
            spans_s, ours = decoded(model, tokens, new_tokens)
            if theirs != ours:
                raise SystemExit(f"{texts} × {length}: the two write different tokens")
            if each >= 0:
                whole.append(generate_s)
                steps.append(spans_s)
        total = [sum(each) for each in steps]
        print(
            f"{texts} × {length} + {new_tokens}: "
            f"generate {median(whole):.3f} s ({min(whole):.3f} to {max(whole):.3f}), "
            f"harness {median(total):.3f} s ({min(total):.3f} to {max(total):.3f}), "
            f"ratio {median(total) / median(whole):.3f}; prefill {median(each[0] for each in steps):.3f} s, "
            f"step {median(step for each in steps for step in each[1:]):.4f} s",
            flush=True,
        )


def started(request: LoadRequest, params: VllmParams) -> tuple[Any, VllmModel]:
    """vLLM's offline class, and the harness's model on the same engine."""
    from vllm import LLM
    from vllm.v1.engine.llm_engine import LLMEngine

    torch._C._cpu._init_amx()
    given = {name: value for name, value in arguments(request, params, True).items() if name != "disable_log_stats"}
    llm = LLM(**given, worker_extension_cls=runtime.READOUT)
    LLMEngine.from_engine_args = lambda *_, **__: llm.llm_engine
    return llm, VllmModel(runtime.VllmRuntime(given), None, request)


def generated(llm: Any, tokens: torch.Tensor, new_tokens: int) -> tuple[float, list[list[int]]]:
    """The seconds that ``generate`` takes, and the tokens that it writes."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=new_tokens + 1, detokenize=False)
    prompts = [{"prompt_token_ids": row} for row in tokens.tolist()]
    began = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    took_s = time.perf_counter() - began
    return took_s, [list(output.outputs[0].token_ids) for output in outputs]


def decoded(model: VllmModel, tokens: torch.Tensor, new_tokens: int) -> tuple[list[float], list[list[int]]]:
    """The seconds of the prefill and of each step, timed as the metric throughput does, and the tokens written."""
    watch, written = stopwatch(model), []
    with torch.inference_mode(), model.decoder("eager", tokens, new_tokens) as decoder:
        with watch.span():
            logits, cache = decoder.prefill(tokens)
        for _ in range(new_tokens):
            token = logits.argmax(dim=-1, keepdim=True)
            written.append(token)
            with watch.span():
                logits, cache = decoder.decode(token, cache)
        written.append(logits.argmax(dim=-1, keepdim=True))
    return watch.read_s(), torch.cat(written, dim=1).tolist()


if __name__ == "__main__":
    main()
