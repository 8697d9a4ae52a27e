"""Checks a sweep's records of GGUF files against gguf's block sizes and llama.cpp's own perplexity.

``python benchmarks/gguf_conformance.py RESULTS [CACHE]``: the results folder of a recipe with the engine llamacpp, and
the cache of that run. Prints a Markdown table with, for every variant: the types of the decoder's matrices; bits per
weight from the types' block sizes and from the record; perplexity with the protocol llama.cpp from the record and
from ``llama-perplexity`` on the same file and text, both with a float16 key-value cache. The last column is empty
if no binary is on PATH or named by $QHARNESS_LLAMA_PERPLEXITY.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGUFReader
from perplexity_conformance import llama_binary, llama_perplexity, mean

from harness.core.job import MeasureQuality
from harness.core.record import RunRecord
from harness.host.machine import cache_folder
from harness.storage.reading import read_records


def file_of(record: RunRecord, cache: Path) -> Path:
    """The file that a run loaded."""
    kind = "quantize" if "quantize" in record.spec.needs else "convert"
    return cache / kind / record.spec.needs[kind] / "model.gguf"


def stored(file: Path) -> tuple[str, float]:
    """The types of the decoder's matrices with their shares of the weights, and the resulting bits per weight."""
    weights: Counter[str] = Counter()
    bits = 0.0
    for tensor in GGUFReader(file).tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            count, size = GGML_QUANT_SIZES[tensor.tensor_type]
            weights[tensor.tensor_type.name] += int(tensor.n_elements)
            bits += 8 * size / count * int(tensor.n_elements)
    whole = sum(weights.values())
    return ", ".join(f"{name} {count / whole:.1%}" for name, count in weights.most_common()), bits / whole


def recorded_bits(record: RunRecord) -> float:
    """Bits per weight from the byte counts in the record."""
    linear = [m for m in record.outcome.measurements if m.protocol.get("role") == "linear"]
    held = sum(m.values[0] for m in linear if m.metric == "stored_bytes")
    return 8 * held / sum(m.values[0] for m in linear if m.metric == "parameters")


def main(results: Path, cache: Path) -> None:
    binary = llama_binary()
    print("| file | stored as | bits by its types | recorded | perplexity recorded | llama-perplexity | apart |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for record in read_records(results):
        spec = record.spec
        asked = spec.perplexity if isinstance(spec.job, MeasureQuality) and spec.engine == "llamacpp" else None
        nll = record.find("nll")
        if record.status != "ok" or nll is None or asked is None or asked.protocol != "llama.cpp":
            continue
        file = file_of(record, cache)
        types, bits = stored(file)
        mine, told, apart = math.exp(mean(nll)), "", ""
        if binary is not None and asked.windows is not None and asked.text.path is not None:
            theirs = llama_perplexity(binary, file, Path(asked.text.path), asked.context, asked.windows, settings=())
            told, apart = f"{theirs:.4f}", f"{abs(mine / theirs - 1):.1e}"
        cells = (spec.method.label, types, f"{bits:.6g}", f"{recorded_bits(record):.6g}", f"{mine:.4f}", told, apart)
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else cache_folder())
