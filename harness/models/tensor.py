"""Reads one tensor of a local checkpoint by name, as float32, and nothing else. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import SourceError
from harness.models import headers
from harness.models.gguf.header import open_reader
from harness.models.sources import package_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    path = package_file(rest) if scheme == "package" else Path(model).expanduser()
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
        key: (file, entry) for file in headers.weight_files(folder) for key, entry in headers.safetensors(file).items()
    }
    key = _known(name, entries)
    file, entry = entries[key]
    if entry["dtype"] not in _NUMPY:
        raise SourceError(f"tensor {key!r} is stored as {entry['dtype']} codes; name an unquantized checkpoint")
    begin, end = entry["data_offsets"]
    with file.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little") + begin)
        content = stream.read(end - begin)
    if len(content) < end - begin:
        raise SourceError(f"{file}: cut short within {key!r}")
    raw = np.frombuffer(content, _NUMPY[entry["dtype"]])
    if entry["dtype"] == "BF16":  # the upper half of a float32
        raw = (raw.astype(np.uint32) << 16).view(np.float32)
    return _tensor(key, entry["dtype"], tuple(entry["shape"]), raw)


def _from_gguf(file: Path, name: str) -> NamedTensor:
    from gguf import dequantize

    reader = open_reader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    architecture = reader.get_field("general.architecture")
    own = _gguf_name(architecture.contents() if architecture else None, name)
    key = own if own in tensors else _known(name, tensors)
    found = tensors[key]
    shape = tuple(int(size) for size in reversed(found.shape))
    return _tensor(key, found.tensor_type.name, shape, dequantize(found.data, found.tensor_type))


def _gguf_name(architecture: str | None, name: str) -> str:
    """A GGUF file's name for the weight that transformers calls ``name``; ``name`` itself if it has no other."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next((key for key, value in MODEL_ARCH_NAMES.items() if value == architecture), None)
    own = kind is not None and get_tensor_name_map(kind, _layers(name)).get_name(name.removesuffix(".weight"))
    return f"{own}.weight" if own else name


def _layers(name: str) -> int:
    """A layer count that includes the layer index in ``name``."""
    return 1 + max((int(part) for part in name.split(".") if part.isdecimal()), default=0)


def _known(name: str, names: Collection[str]) -> str:
    """The name, or the name and ``.weight``. Raises SourceError if neither exists."""
    for candidate in (name, f"{name}.weight"):
        if candidate in names:
            return candidate
    holding = sorted(known for known in names if name in known)[:3]
    near = holding or get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:3]
    raise SourceError(f"unknown tensor {name!r}; near it: {', '.join(near)}")


def _tensor(name: str, stored: str, shape: tuple[int, ...], raw: npt.NDArray[np.generic]) -> NamedTensor:
    import numpy as np

    if not raw.size:
        raise SourceError(f"tensor {name!r} is empty")
    return NamedTensor(name, stored, shape, raw.astype(np.float32).reshape(-1, shape[-1] if shape else 1))
