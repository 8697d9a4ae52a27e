"""Writes a transformers checkpoint as a GGUF file in a float format, one tensor at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError
from harness.models import headers, safetensors
from harness.models.gguf.architectures import Architecture, adapted, architecture, rope_factors, write_fields
from harness.models.gguf.vocabulary import write_vocabulary
from harness.models.scope import module_name, stack_of
from harness.models.streaming.reading import CheckpointReader
from harness.numerics.traffic import routing
from harness.storage.disk import Disk

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 2
"""Increase this with every change of what is written."""
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""GGUF's names of dtypes. Vectors are always stored in float32, as llama.cpp requires."""
_ROPE_FACTORS = "rope_freqs.weight"
_ROUTER = "ffn_gate_inp.weight"


def convert(source: Path, out: Path, dtype: str) -> str | None:
    """Writes ``out`` completely or not at all; returns a note for readers of the file, or None.

    Raises UnsupportedError, with the reason, for a model that llama.cpp cannot represent or whose weights do not
    fit the dtype.
    """
    from gguf import GGUFWriter

    config = headers.read_config(source)
    found = architecture(config)
    part = out.with_suffix(".part")
    writer = GGUFWriter(part, found.name)
    try:
        write_fields(writer, config, found)
        note = write_vocabulary(writer, source, int(config["vocab_size"]))
        _write_tensors(writer, source, config, found, dtype)
        writer.close()
        Disk().publish(part, out)
    finally:
        part.unlink(missing_ok=True)
    return note


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the file, and the checkpoint's tensors that it is made of: one, or one of each expert, in order."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def stacked(self) -> bool:
        """Whether it holds the experts of a layer."""
        return len(self.shape) == 3

    @property
    def in_float32(self) -> bool:
        """Whether llama.cpp keeps it in float32 in a file of any dtype: vectors, and the routers of mixtures."""
        return len(self.shape) == 1 or self.name.endswith(_ROUTER)


def placed(source: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> list[FileTensor]:
    """The file's tensors, from the shapes of a checkpoint's. Raises UnsupportedError for unknown tensors."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    found = architecture(config)
    by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    known = get_tensor_name_map(MODEL_ARCH(by_name[found.name]), int(config["num_hidden_layers"]))
    tied = bool(config.get("tie_word_embeddings", found.norm_shift != 0))
    result: list[FileTensor] = []
    stacks: dict[str, dict[int, str]] = defaultdict(dict)
    for name, shape in source.items():
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        stack, number = stack_of(module_name(name)) if found.mixture else (name, None)
        mapped = known.get_name(name if number is None else f"{stack}.weight", try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise UnsupportedError(f"gguf: llama.cpp's {found.name} models have no tensor for {name}")
        if number is None:
            result.append(FileTensor(mapped, shape, (name,)))
        else:
            stacks[mapped][number] = name
    return [*result, *(_stack(mapped, numbered, source, config) for mapped, numbered in stacks.items())]


def _stack(
    name: str, numbered: Mapping[int, str], source: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> FileTensor:
    """The experts of a layer in one tensor. Raises UnsupportedError if one is missing or of another shape."""
    experts = routing(config)
    assert experts is not None, "a mixture was asked for it before"
    count = experts.experts
    sources = tuple(numbered[number] for number in sorted(numbered))
    shapes = {source[each] for each in sources}
    if sorted(numbered) != list(range(count)) or len(shapes) != 1:
        raise UnsupportedError(f"gguf: {name} takes {count} experts of one shape; the checkpoint has {len(sources)}")
    return FileTensor(name, (count, *shapes.pop()), sources)


def _write_tensors(writer: Any, source: Path, config: dict[str, Any], found: Architecture, dtype: str) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, LlamaFileType

    tensors = placed(_shapes(source), config)
    wanted = GGMLQuantizationType[TYPES[dtype]]
    file_types = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16}
    writer.add_file_type(file_types[wanted.name])
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(_ROPE_FACTORS, (len(factors),), np.dtype(np.float32), 4 * len(factors))
    for tensor in tensors:
        kind = GGMLQuantizationType.F32 if tensor.in_float32 else wanted
        size = math.prod(tensor.shape) * (4 if kind == GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float16), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(np.array(factors, dtype=np.float32))
    with closing(CheckpointReader(source)) as reader:
        for tensor in tensors:
            parts = (
                _cast(each, adapted(each, reader.read(each), config, found), "float32" if tensor.in_float32 else dtype)
                for each in tensor.sources
            )
            writer.write_tensor_data(_joined(parts, tensor.shape) if tensor.stacked else next(parts))


def _shapes(source: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors, in the order in which they are written: file by file, by name."""
    return {
        name: each.shape
        for file in headers.weight_files(source)
        for name, each in sorted(safetensors.read(file).items())
    }


def _joined(parts: Iterator[np.ndarray[Any, Any]], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The experts' matrices in one array, of which one at a time is in memory beside it."""
    import numpy as np

    first = next(parts)
    whole = np.empty(shape, dtype=first.dtype)
    for number, part in enumerate(chain([first], parts)):
        whole[number] = part
    return whole


def _cast(name: str, weight: torch.Tensor, dtype: str) -> np.ndarray[Any, Any]:
    import torch

    cast = weight.to(getattr(torch, dtype)).contiguous()
    if not bool(cast.isfinite().all()):
        raise UnsupportedError(f"gguf: {name} does not fit {dtype}; name another dtype")
    return (cast.view(torch.int16) if cast.dtype == torch.bfloat16 else cast).numpy()
