"""A model that does not fit, streamed, and the same model loaded whole: ``python benchmarks/streaming.py``.

Writes random float32 weights in the shape of a Llama to a folder, one layer in memory at a time, and runs perplexity,
KL and rtn in 4 bits on it twice, each with a cache of its own: streamed under a memory limit, then resident without
one. Prints what docs/measurements/streaming.md records: seconds and peak memory of each run, bytes read per pass, and
whether the figures are the same. By default 1.3 billion parameters, which takes 13 GB of disk and, resident, 9 GB of
memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from harness.api.run import run
from harness.core.record import Measurement, RunRecord

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
        found = {
            residency: _run(place, residency, asked.memory if residency == "streamed" else None, asked)
            for residency in ("streamed", "resident")
        }
    _print(found)
    sys.exit(0 if all(record.status == "ok" for records in found.values() for record in records) else 1)


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


def _run(place: Path, residency: str, memory: str | None, asked: argparse.Namespace) -> Sequence[RunRecord]:
    content = {
        "name": residency,
        "models": [{"id": str(place / "model"), "label": "random"}],
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
    records = run(recipe, place / "results" / residency, place / f"cache-{residency}")
    shutil.rmtree(place / f"cache-{residency}", ignore_errors=True)
    return records


def _print(found: Mapping[str, Sequence[RunRecord]]) -> None:
    print("| run | streamed (s) | resident (s) | ratio | streamed peak (GB) | resident peak (GB) | read per pass |")
    print(f"| --- |{' ---: |' * 6}")
    by_title = {way: {record.spec.title: record for record in records} for way, records in found.items()}
    totals = [0.0, 0.0]
    for title in by_title["streamed"]:
        pair = [by_title[way][title] for way in ("streamed", "resident")]
        seconds = [record.wall_s for record in pair]
        totals = [total + each for total, each in zip(totals, seconds, strict=True)]
        peaks = [_peak(record) for record in pair]
        ratio = seconds[0] / seconds[1] if seconds[1] else 0.0
        print(
            f"| {title} | {seconds[0]:.1f} | {seconds[1]:.1f} | {ratio:.2f} | {peaks[0] / 1e9:.2f} | "
            f"{peaks[1] / 1e9:.2f} | {_read_per_pass(pair[0])} |"
        )
        for way, record in zip(("streamed", "resident"), pair, strict=True):
            if record.outcome.failure is not None:
                print(f"{way} {title}: {record.status}: {record.outcome.failure.message}")
    ratio = totals[0] / totals[1]
    print(f"all runs: {totals[0]:.1f} s streamed, {totals[1]:.1f} s resident: {ratio:.2f} (bar {WALL_BAR})")
    same = [
        (m.metric, m.values) == (n.metric, n.values)
        for title, record in by_title["streamed"].items()
        if record.spec.kind == "quality"
        for m, n in zip(_scores(record), _scores(by_title["resident"][title]), strict=True)
    ]
    print(f"quality figures that are equal: {sum(same)} of {len(same)}; bar of bytes read per pass: {READ_BAR}")


def _scores(record: RunRecord) -> list[Measurement]:
    return [each for each in record.outcome.measurements if "memory" not in each.metric]


def _peak(record: RunRecord) -> float:
    """The largest resident set of any phase, in bytes."""
    return max(
        (value for each in record.outcome.measurements if each.metric == "peak_memory_bytes" for value in each.values),
        default=0.0,
    )


def _read_per_pass(record: RunRecord) -> str:
    for fact in record.outcome.facts:
        if fact.code == "streaming":
            read = {name: float(str(value)) for name, value in fact.arguments.items()}
            return f"{read['bytes_read'] / read['passes'] / read['checkpoint_bytes']:.3f} of the checkpoint"
    return ""


if __name__ == "__main__":
    main()
