"""Reads one tensor of a local checkpoint by name, as float32, and nothing else. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.foreign import locate, open_file, quoted, shown
from harness.errors import SourceError
from harness.models import headers, safetensors
from harness.models.gguf import reader
from harness.models.sources import package_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_VALUES = 2**31
"""Of a tensor: in float32 they take 8 GiB."""
MAX_COMPARED = 2_000
"""Names that a mistyped one is compared with, which takes a tenth of a millisecond each."""
_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class NamedTensor:
    """A matrix (rows, columns); with more dimensions, all but the last become rows; with fewer, there is one row.

    ``stored`` names the format in which the file holds it; ``shape`` is the tensor's own.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.float32]


def read(model: str, name: str) -> NamedTensor:
    """The tensor called ``name``, or ``name`` with ``.weight`` appended.

    ``model`` is a folder of safetensors weights, a GGUF file (transformers' tensor names work too) or
    ``package:NAME/FILE.gguf``. Raises SourceError if the model or the tensor is missing, with similar names, and if the
    tensor holds codes that are meaningless without their scales.
    """
    import numpy as np

    scheme, _, rest = model.partition(":")
    path = package_file(rest) if scheme == "package" else locate(model, Path(), SourceError)
    if not path.exists():
        raise SourceError(f"model {model!r}: no such folder or file; a hub's model must be fetched first")
    if path.is_file() and path.suffix != ".gguf":
        raise SourceError(f"model {model!r}: neither a model's folder nor a .gguf file")
    tensor = _from_folder(path, name) if path.is_dir() else _from_gguf(path, name)
    if not np.isfinite(tensor.values).all():
        raise SourceError(f"tensor {tensor.name!r} holds NaN or infinities")
    return tensor


def _from_folder(folder: Path, name: str) -> NamedTensor:
    import numpy as np

    entries = {
        key: (file, entry) for file in headers.weight_files(folder) for key, entry in safetensors.read(file).items()
    }
    key = _known(name, entries)
    file, entry = entries[key]
    if entry.dtype not in _NUMPY:
        raise SourceError(f"tensor {key!r} is stored as {entry.dtype} codes; name an unquantized checkpoint")
    _check_size(key, entry.shape)
    raw = np.frombuffer(safetensors.contents(file, {key: entry})[key], _NUMPY[entry.dtype])
    if entry.dtype == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return _tensor(key, entry.dtype, entry.shape, raw)


def _from_gguf(file: Path, name: str) -> NamedTensor:
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize
    from gguf.quants import quant_shape_to_byte_shape

    header = reader.read(file)
    tensors = {tensor.name: tensor for tensor in header.tensors}
    own = _gguf_name(header.text("general.architecture"), name)
    found = tensors[own if own in tensors else _known(name, tensors)]
    _check_size(found.name, found.shape)
    with open_file(file, SourceError) as (stream, _):
        stream.seek(found.begin)
        content = stream.read(found.bytes)
    if len(content) < found.bytes:
        raise SourceError(f"{shown(file)}: cut short within {found.name!r}")
    known = GGMLQuantizationType[found.type]
    rows = np.frombuffer(content, np.uint8).reshape(quant_shape_to_byte_shape(found.shape or (1,), known))
    try:
        values = dequantize(rows, known) if rows.size else np.empty(0, np.float32)
    except NotImplementedError:
        raise SourceError(f"tensor {found.name!r} is stored as {found.type}, which is not decoded here") from None
    return _tensor(found.name, found.type, found.shape, values)


def _check_size(name: str, shape: tuple[int, ...]) -> None:
    if math.prod(shape) > MAX_VALUES:
        raise SourceError(f"tensor {name!r} holds {math.prod(shape)} values; at most {MAX_VALUES} are read")


def _gguf_name(architecture: str | None, name: str) -> str:
    """A GGUF file's name for the weight that transformers calls ``name``; ``name`` itself if it has no other."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next((key for key, value in MODEL_ARCH_NAMES.items() if value == architecture), None)
    layer = re.search(r"\.(\d+)\.", name)
    first = name if layer is None else f"{name[: layer.start()]}.0.{name[layer.end() :]}"
    own = kind is not None and get_tensor_name_map(kind, 1).get_name(first.removesuffix(".weight"))
    if not own:
        return name
    return f"{own}.weight" if layer is None else f"{own}.weight".replace(".0.", f".{layer[1]}.", 1)


def _known(name: str, names: Collection[str]) -> str:
    """The name, or the name and ``.weight``. Raises SourceError if neither exists."""
    for candidate in (name, f"{name}.weight"):
        if candidate in names:
            return candidate
    holding = sorted(known for known in names if name in known)[:3]
    near = holding or get_close_matches(name, islice(names, MAX_COMPARED), n=3, cutoff=0.5) or sorted(names)[:3]
    raise SourceError(f"unknown tensor {quoted(name)}; near it: {', '.join(near) or 'none'}")


def _tensor(name: str, stored: str, shape: tuple[int, ...], raw: npt.NDArray[np.generic]) -> NamedTensor:
    import numpy as np

    if not raw.size:
        raise SourceError(f"tensor {name!r} is empty")
    return NamedTensor(name, stored, shape, raw.astype(np.float32).reshape(-1, shape[-1] if shape else 1))
