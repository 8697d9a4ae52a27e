"""A model that does not fit, streamed, and the same model loaded whole: ``python benchmarks/streaming.py``.

Writes random float32 weights in the shape of a Llama to a folder, one layer in memory at a time, and runs perplexity,
KL and rtn in 4 bits on the degridded model in two ways, each with a cache of its own: streamed under a memory limit,
and resident without one. Each streamed run is followed at once by the same run resident, because the speed of a machine
may change within the hour that all runs take. Degridding makes the sweep prepare the whole model, which the limit holds
for too. The resident sweep leaves out the baseline's quality run: that repeats the reference run's forward passes,
whose states are compared by their SHA-256.

Prints what docs/measurements/streaming.md records: seconds and peak memory of each run, bytes read per pass, and
whether the figures are the same. Exits with 1, and says why, if a run failed or a bar was missed. By default 1.3
billion parameters, which takes 19 GB of disk and, resident, 9 GB of memory. A model much smaller than that misses the
bar of time: starting takes longer than computing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.record import Measurement, RunRecord
from harness.core.run import RunSpec
from harness.execution.executors import THIS_MACHINE, open_executor
from harness.execution.local import local_site
from harness.execution.reference import MANIFEST
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe
from harness.storage.store import Store

WALL_BAR, READ_BAR = 1.3, 1.02
"""At most so many times the resident run's seconds, and so many times the checkpoint's bytes per pass."""
TOKENIZER = Path(__file__).parent.parent / "tests" / "data" / "tiny-llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("--hidden", 2048), ("--inner", 5632), ("--layers", 24), ("--vocabulary", 16384)):
        parser.add_argument(option, type=int, default=default)
    for option, default in (("--context", 512), ("--windows", 32), ("--threads", 2)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--memory", default="1.5GiB", help="limits.memory of the streamed runs")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    asked = parser.parse_args()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        place = Path(folder)
        shape = LlamaConfig(
            hidden_size=asked.hidden,
            intermediate_size=asked.inner,
            num_hidden_layers=asked.layers,
            num_attention_heads=asked.hidden // 64,
            num_key_value_heads=asked.hidden // 64,
            vocab_size=asked.vocabulary,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
        )
        size = write_model(shape, place / "model")
        print(f"{size / 1e9:.2f} GB of weights", flush=True)
        ways = [_Way(place, "streamed", asked.memory, asked), _Way(place, "resident", None, asked)]
        for run in ways[0].planned:
            for way in ways:
                way.run(run.spec.title)
        streamed, resident = (way.found() for way in ways)
    _print_table(streamed, resident)
    faults = [*_failed(streamed), *_failed(resident)]
    if not faults:
        _print_comparison(streamed, resident)
        faults = list(_missed(streamed, resident))
    for fault in faults:
        print(f"fault: {fault}")
    sys.exit(1 if faults else 0)


def write_model(shape: LlamaConfig, folder: Path) -> int:
    """A checkpoint of seeded random weights, a file per layer; returns the bytes of its weights."""
    folder.mkdir()
    with torch.device("meta"):
        model = LlamaForCausalLM(shape)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        files.setdefault(name.split(".")[2] if ".layers." in name else "rest", {})[name] = tensor
    index: dict[str, str] = {}
    drawn, size = torch.Generator().manual_seed(0), 0
    for number, tensors in enumerate(files.values(), 1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        filled = {
            name: torch.ones(tensor.shape) if tensor.dim() == 1 else torch.randn(tensor.shape, generator=drawn) * 0.02
            for name, tensor in tensors.items()
        }
        save_file(filled, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in filled.values())
    shape.architectures, shape.dtype = ["LlamaForCausalLM"], "float32"
    shape.save_pretrained(folder)
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")
    for own in TOKENIZER.glob("tokenizer*"):
        shutil.copy(own, folder / own.name)
    return size


@dataclass(frozen=True)
class _Sweep:
    """The records of a sweep by title, and the SHA-256 of each file of its reference, which holds the states."""

    records: Mapping[str, RunRecord]
    states: Mapping[str, str]


class _Way:
    """A sweep of its own, streamed or resident, that is made run by run."""

    def __init__(self, place: Path, residency: str, memory: str | None, asked: argparse.Namespace) -> None:
        content = {
            "name": residency,
            "models": [{"id": str(place / "model"), "label": "random", "degrid": 0}],
            "methods": ["none", {"rtn": {"bits": 4}}],
            "measure": {
                "perplexity": {"text": "demo", "context": asked.context, "windows": asked.windows},
                "divergence": {},
                "memory": {},
            },
            "residency": residency,
            "threads": asked.threads,
            "device": "cpu",
            "limits": {"memory": memory} if memory else {},
        }
        recipe = place / f"{residency}.json"
        recipe.write_text(json.dumps(content), encoding="utf-8")
        self.site = local_site(place / f"cache-{residency}")
        self.planned = [
            run for run in plan(load_recipe(recipe), self.site) if residency == "streamed" or not _repeats(run.spec)
        ]
        self.store = Store(place / "results" / residency)
        self.records: dict[str, RunRecord] = {}

    def run(self, title: str) -> None:
        """Makes the run, if this way has it; those that it needs have been made."""
        until = next((number for number, run in enumerate(self.planned, 1) if run.spec.title == title), 0)
        if until:
            with closing(open_executor(THIS_MACHINE, self.site)) as executor:
                records = sweep(self.planned[:until], self.store, executor, lambda event: None)
            self.records |= {record.spec.title: record for record in records}

    def found(self) -> _Sweep:
        """What all runs found; removes the artifacts."""
        states: dict[str, str] = {}
        for manifest in self.site.artifacts.root.rglob(MANIFEST):
            states |= json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
        shutil.rmtree(self.site.artifacts.root, ignore_errors=True)
        return _Sweep(self.records, states)


def _repeats(spec: RunSpec) -> bool:
    """Whether a run passes over the same windows as the reference run, with the same model."""
    return spec.kind == "quality" and spec.is_baseline


def _failed(found: _Sweep) -> Iterator[str]:
    for title, record in found.records.items():
        if record.status != "ok":
            failure = record.outcome.failure
            way = record.spec.job.conditions.residency
            yield f"{way} {title}: {record.status}{f': {failure.message}' if failure else ''}"


def _missed(streamed: _Sweep, resident: _Sweep) -> Iterator[str]:
    """The bars that were missed, of sweeps whose runs all worked."""
    ratio = _ratio(streamed, resident)
    if ratio > WALL_BAR:
        yield f"{ratio:.2f} times the resident seconds; the bar is {WALL_BAR}"
    for title, record in streamed.records.items():
        share = _read_per_pass(record)
        if share is not None and share > READ_BAR:
            yield f"{title} read {share:.3f} of the checkpoint per pass; the bar is {READ_BAR}"
    if not all(_is_streamed(record) for record in streamed.records.values() if record.spec.kind != "prepare"):
        yield "not all runs were streamed"
    if not streamed.states or streamed.states != resident.states:
        yield "the states of the references differ"
    same = _same(streamed, resident)
    if not same or not all(same):
        yield f"only {sum(same)} of {len(same)} quality figures are equal"


def _ratio(streamed: _Sweep, resident: _Sweep) -> float:
    """Streamed over resident seconds, of the runs that were made both ways; a model is prepared in one way only."""
    titles = [title for title in resident.records if _is_streamed(streamed.records[title])]
    ours, theirs = (sum(each.records[title].wall_s for title in titles) for each in (streamed, resident))
    return ours / theirs


def _is_streamed(record: RunRecord) -> bool:
    return record.spec.job.conditions.residency == "streamed"


def _same(streamed: _Sweep, resident: _Sweep) -> list[bool]:
    """Whether each quality figure is equal both ways."""
    return [
        (one.metric, one.values) == (other.metric, other.values)
        for title, record in resident.records.items()
        if record.spec.kind == "quality"
        for one, other in zip(_scores(streamed.records[title]), _scores(record), strict=True)
    ]


def _scores(record: RunRecord) -> list[Measurement]:
    return [each for each in record.outcome.measurements if "memory" not in each.metric]


def _print_table(streamed: _Sweep, resident: _Sweep) -> None:
    print("| run | streamed (s) | resident (s) | ratio | streamed peak (GB) | resident peak (GB) | read per pass |")
    print(f"| --- |{' ---: |' * 6}")
    for title, record in streamed.records.items():
        twin, share = resident.records.get(title), _read_per_pass(record)
        cells = [
            title,
            f"{record.wall_s:.1f}",
            f"{twin.wall_s:.1f}" if twin else "",
            f"{record.wall_s / twin.wall_s:.2f}" if twin and twin.wall_s else "",
            f"{_peak(record) / 1e9:.2f}",
            f"{_peak(twin) / 1e9:.2f}" if twin else "",
            "" if share is None else f"{share:.3f} of the checkpoint",
        ]
        print(f"| {' | '.join(cells)} |")


def _print_comparison(streamed: _Sweep, resident: _Sweep) -> None:
    print(f"runs made both ways: {_ratio(streamed, resident):.2f} times the resident seconds (bar {WALL_BAR})")
    same = _same(streamed, resident)
    alike = sum(streamed.states.get(name) == sha256 for name, sha256 in resident.states.items())
    print(f"files of the reference that are equal: {alike} of {len(resident.states)}")
    print(f"quality figures that are equal: {sum(same)} of {len(same)}")


def _peak(record: RunRecord) -> float:
    """The largest resident set of any phase, in bytes."""
    return max(
        (value for each in record.outcome.measurements if each.metric == "peak_memory_bytes" for value in each.values),
        default=0.0,
    )


def _read_per_pass(record: RunRecord) -> float | None:
    """The bytes read per pass over those of the checkpoint; None for a run that has no passes."""
    fact = record.outcome.fact("streaming")
    if fact is None:
        return None
    read = {name: float(str(value)) for name, value in fact.arguments.items()}
    return read["bytes_read"] / read["passes"] / read["checkpoint_bytes"]


if __name__ == "__main__":
    main()
