"""Writes a transformers checkpoint as a GGUF file in a float format, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UnsupportedError
from harness.models import headers
from harness.models.gguf.architectures import Architecture, adapted, architecture, rope_factors, write_fields
from harness.models.gguf.vocabulary import write_vocabulary
from harness.storage.disk import Disk

if TYPE_CHECKING:
    import numpy as np
    import torch

VERSION = 2
"""Increase this with every change of what is written."""
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""GGUF's names of dtypes. Vectors are always stored in float32, as llama.cpp requires."""
_ROPE_FACTORS = "rope_freqs.weight"


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


def names(source: dict[str, tuple[int, ...]], config: dict[str, Any]) -> dict[str, str]:
    """llama.cpp's names for the tensors of a checkpoint that it keeps. Raises UnsupportedError for unknown tensors."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    found = architecture(config)
    by_name = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    known = get_tensor_name_map(MODEL_ARCH(by_name[found.name]), int(config["num_hidden_layers"]))
    tied = bool(config.get("tie_word_embeddings", found.norm_shift != 0))
    result = {}
    for name in source:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        mapped = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise UnsupportedError(f"gguf: llama.cpp's {found.name} models have no tensor for {name}")
        result[name] = mapped
    return result


def _write_tensors(writer: Any, source: Path, config: dict[str, Any], found: Architecture, dtype: str) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, LlamaFileType

    held = {tensor.name: tensor.shape for tensor in headers.tensors(source)}
    mapped = names(held, config)
    wanted = GGMLQuantizationType[TYPES[dtype]]
    file_types = {"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16, "BF16": LlamaFileType.MOSTLY_BF16}
    writer.add_file_type(file_types[wanted.name])
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(_ROPE_FACTORS, (len(factors),), np.dtype(np.float32), 4 * len(factors))
    ordered = [(name, tensor) for name, tensor in _weights(source) if name in mapped]
    for name, _ in ordered:
        kind = wanted if len(held[name]) > 1 else GGMLQuantizationType.F32
        size = int(np.prod(held[name])) * (4 if kind == GGMLQuantizationType.F32 else 2)
        writer.add_tensor_info(mapped[name], held[name], np.dtype(np.float16), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(np.array(factors, dtype=np.float32))
    for name, read in ordered:
        writer.write_tensor_data(_cast(name, adapted(name, read(), config, found), dtype))


def _weights(source: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor's name and its reader."""
    from safetensors import safe_open

    for file in headers.weight_files(source):
        stream = safe_open(file, framework="pt")
        for name in stream.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118 - not a mapping
            yield name, lambda stream=stream, name=name: stream.get_tensor(name)


def _cast(name: str, weight: torch.Tensor, dtype: str) -> np.ndarray[Any, Any]:
    import torch

    cast = weight.to(getattr(torch, dtype) if weight.dim() > 1 else torch.float32).contiguous()
    if not bool(cast.isfinite().all()):
        raise UnsupportedError(f"gguf: {name} does not fit {dtype}; name another dtype")
    return (cast.view(torch.int16) if cast.dtype == torch.bfloat16 else cast).numpy()
