"""Sends requests to a server and writes when each piece of its answers came: vLLM's benchmark of servers.

``python load_generator.py``, in an environment with vLLM and without this package. Each line that it reads is a load
as JSON, and the line that it writes its answers; what vLLM prints goes to the standard error. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

READY = "ready"
INTERPRETER = "QHARNESS_LOAD_GENERATOR"
"""The variable by which a run learns which interpreter has vLLM."""


async def drive(load: dict[str, Any]) -> dict[str, Any]:
    """Sends the requests of a load when they are due, or ``concurrent`` at a time, as vLLM's benchmark does."""
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    requests = [
        SampleRequest(prompt=prompt, prompt_len=1, expected_output_len=new_tokens, timestamp=at_s)
        for prompt, new_tokens, at_s in load["requests"]
    ]
    found = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{load['url']}/v1/completions",
        base_url=load["url"],
        model_id=load["model"],
        model_name=load["model"],
        tokenizer=None,
        input_requests=requests,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=[],
        selected_percentiles=[],
        ignore_eos=not load["natural"],
        goodput_config_dict={},
        max_concurrency=load["concurrent"],
        lora_modules=None,
        extra_headers={"Connection": "close"},  # a server may end one that it kept, just as a request is sent
        extra_body={"temperature": 0.0},
        ready_check_timeout_sec=0,
        self_timed=load["concurrent"] is None,
    )
    kept = ("start_times", "ttfts", "latencies", "itls", "input_lens", "output_lens", "errors")
    return {name: found[name] for name in kept}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from vllm import __version__
    from vllm.benchmarks import serve  # noqa: F401 - takes seconds, before any load

    print(READY, f"vLLM {__version__}", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(drive(json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
