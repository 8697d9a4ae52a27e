"""What scoring costs beside the forward pass it shares: ``python benchmarks/quality_overhead.py MODEL``.

MODEL is a folder with a checkpoint of transformers; it is loaded in float32, on a CPU. Four works are done on each
window in turn, so that a slow moment of the machine meets them all: the model's own forward pass with its head;
perplexity; the forward pass and one more product of the head, which is what exact KL from kept hidden states costs;
perplexity, KL and agreement against a reference on disk. A work ends with its measurements, item ids included.
Prints the tokens per second of what is measured over those of the bare work, by the process's CPU time and by the
wall, which docs/measurements/quality-overhead.md records.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from harness.core.capability import Logits
from harness.core.engine import LoadRequest
from harness.core.metric import Observer, Windows
from harness.core.workload import PerplexityWorkload
from harness.engines.transformers.engine import load
from harness.execution import reference as references
from harness.execution.forward import observe
from harness.metrics.divergence import DivergenceObserver
from harness.metrics.perplexity import Likelihood
from harness.recipe import Text
from harness.text.sources import resolve
from harness.text.windows import cut

BARS = {"perplexity": ("forward", 0.95), "perplexity + divergence": ("forward + head", 0.90)}
"""For each measured work: the bare work it is compared with, and the minimum fraction of its tokens per second."""
Work = Callable[[], object]
Seconds = npt.NDArray[np.float64]


class OneWindow:
    """A reference from which only one window is compared."""

    def __init__(self, reference: references.Reference, index: int) -> None:
        self._index = index
        self._reference = reference
        self.logits = reference.logits

    def window(self, index: int) -> torch.Tensor:
        return self._reference.window(self._index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    for option, default in (("--context", 512), ("--windows", 8), ("--rounds", 5), ("--threads", 1)):
        parser.add_argument(option, type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = load(LoadRequest(asked.model, "float32", "cpu"))
    model.probe_head()
    text = resolve(Text(name="demo"), Path())
    windows = cut(PerplexityWorkload(text, "gptq", asked.context, asked.windows), model.tokenizer)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        references.write(model, windows, Path(folder))
        reference = references.Reference(Path(folder), "cpu")
        works = [_works(model, _only(windows, i), OneWindow(reference, i)) for i in range(len(windows.tokens))]
        times = _measured(works, asked.rounds)
    print(f"{len(works)} windows of {asked.context} tokens, {asked.rounds} rounds, {asked.threads} threads")
    _print(times)


def _only(windows: Windows, index: int) -> Windows:
    return replace(windows, tokens=[windows.tokens[index]], firsts=[1], documents=["0"])


def _works(model: Logits, windows: Windows, reference: OneWindow) -> Mapping[str, Work]:
    """The four pieces of work on one window."""
    tokens = torch.tensor(windows.tokens)[:, :-1]  # the last token is only predicted, never read
    states = reference.window(0)

    def scored(*observers: Observer, against: OneWindow | None = None) -> None:
        observe(model, windows, observers, against)
        for observer in observers:
            observer.finish()

    return {
        "forward": lambda: model.logits(tokens),
        "perplexity": lambda: scored(Likelihood(windows)),
        "forward + head": lambda: (model.logits(tokens), reference.logits(states)),
        "perplexity + divergence": lambda: scored(Likelihood(windows), DivergenceObserver(windows), against=reference),
    }


def _measured(works: Sequence[Mapping[str, Work]], rounds: int) -> Mapping[str, Seconds]:
    """CPU and wall seconds of each work, (rounds × windows, 2). The order of the works rotates."""
    names = list(works[0])
    for warm_up in works[0].values():
        warm_up()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn, work in enumerate(work for _ in range(rounds) for work in works):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(_timed(work[name]))
    return {name: np.array(times) for name, times in found.items()}


def _timed(work: Work) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def _print(times: Mapping[str, Seconds]) -> None:
    for name, seconds in times.items():
        cpu, wall = np.median(seconds, axis=0) * 1e3
        print(f"{name:24} {cpu:8.1f} ms CPU {wall:8.1f} ms wall, median of a window")
    for name, (bare, bar) in BARS.items():
        for clock, column in (("CPU", 0), ("wall", 1)):
            ratios = times[bare][:, column] / times[name][:, column]
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            print(
                f"{name} runs at {middle:.1%} of the tokens/s of {bare}, by {clock} time "
                f"(bar {bar:.0%}; quartiles of the pairs {low:.1%} and {high:.1%})"
            )


if __name__ == "__main__":
    main()
