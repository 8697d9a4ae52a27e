"""What exact quality costs on vLLM: ``python benchmarks/vllm_quality.py MODEL``, with the interpreter of stack vllm.

MODEL is a folder with a checkpoint of transformers. The reference is the same model in transformers, in the same dtype
(or in ``--reference-dtype``), written to disk first. Then these works are done in turn on all windows, so that a slow
moment of the machine meets them all: vLLM's own prefill with all windows queued at once, which is the fastest that
vLLM reads this text; its prefill window by window; perplexity; perplexity, KL in both directions, top-1 and top-5
agreement against the reference on disk. Prints tokens per second of each, and those of what is measured over those of
the faster prefill; then, to check what was measured, KL and agreement themselves. docs/measurements/vllm-cpu.md
records it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from harness.core.engine import LoadRequest
from harness.core.metric import Windows
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import load
from harness.engines.vllm.engine import VllmParams, imports
from harness.engines.vllm.engine import load as load_vllm
from harness.engines.vllm.model import VllmModel
from harness.execution import reference as references
from harness.execution.forward import observe
from harness.metrics.divergence import DivergenceObserver
from harness.metrics.perplexity import Likelihood
from harness.recipe import Text
from harness.text.sources import resolve
from harness.text.windows import cut

BAR = 0.5
"""The fraction of vLLM's own prefill rate at which everything is to be measured."""
Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for option, default in (("--context", 512), ("--windows", 8), ("--rounds", 5), ("--threads", 2)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--reference-dtype")
    parser.add_argument("--params", type=json.loads, default={}, help="vLLM's own parameters, as JSON")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    imports()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        windows = _write_reference(asked, Path(folder))
        reference = references.Reference(Path(folder), "cpu")
        params = VllmParams.model_validate(asked.params)
        model = load_vllm(LoadRequest(asked.model, asked.dtype, "cpu"), params)
        model.probe_head()
        works = _works(model, windows, reference)
        times = _measured(works, asked.rounds)
        print(
            f"{len(windows.tokens)} windows of {asked.context} tokens, {asked.rounds} rounds, {model.threads} threads"
        )
        print(f"{asked.dtype}, {params!r}")
        _print(times, sum(len(row) - 1 for row in windows.tokens))
        _check(model, windows, reference)
        model.close()


def _write_reference(asked: argparse.Namespace, folder: Path) -> Windows:
    model = load(LoadRequest(asked.model, asked.reference_dtype or asked.dtype, "cpu"))
    model.probe_head()
    text = resolve(Text(name="demo"), Path())
    windows = cut(PerplexityWorkload(text, "gptq", asked.context, asked.windows), model.tokenizer)
    references.write(model, windows, folder)
    model.close()
    return windows


def _works(model: VllmModel, windows: Windows, reference: references.Reference) -> Mapping[str, Work]:
    read = [list(row[:-1]) for row in windows.tokens]

    def scored(*observers: Any, against: references.Reference | None = None) -> None:
        observe(model, windows, observers, against)
        for observer in observers:
            observer.finish()

    return {
        "prefill, all queued": lambda: model.runtime.prefill(read),
        "prefill, one by one": lambda: [model.runtime.prefill([row]) for row in read],
        "perplexity": lambda: scored(Likelihood(windows)),
        "perplexity + divergence": lambda: scored(Likelihood(windows), DivergenceObserver(windows), against=reference),
    }


def _measured(works: Mapping[str, Work], rounds: int) -> Mapping[str, Sequence[float]]:
    """Wall seconds of each work in each round. The order of the works rotates."""
    names = list(works)
    for warm_up in works.values():
        warm_up()
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            works[name]()
            found[name].append(time.perf_counter() - began)
    return found


def _print(times: Mapping[str, Sequence[float]], tokens: int) -> None:
    for name, seconds in times.items():
        rates = sorted(tokens / each for each in seconds)
        print(f"{name:24} {median(rates):8.0f} tok/s, median of the rounds; {rates[0]:.0f} to {rates[-1]:.0f}")
    bare = min(("prefill, all queued", "prefill, one by one"), key=lambda name: median(times[name]))
    for name in ("perplexity", "perplexity + divergence"):
        ratios = sorted(before / now for before, now in zip(times[bare], times[name], strict=True))
        print(
            f"{name} runs at {median(ratios):.1%} of the tokens/s of '{bare}' "
            f"(bar {BAR:.0%}; rounds from {ratios[0]:.1%} to {ratios[-1]:.1%})"
        )


def _check(model: VllmModel, windows: Windows, reference: references.Reference) -> None:
    divergence = DivergenceObserver(windows)
    observe(model, windows, [divergence], reference)
    values = {each.metric: each.values for each in divergence.finish()}
    print(
        f"KL mean {mean(values['kl']):.3g}, max {max(values['kl']):.3g} nat; {mean(values['top1_agreement']):.2%} top-1"
    )


if __name__ == "__main__":
    main()
