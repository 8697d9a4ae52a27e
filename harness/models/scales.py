"""The scales of a quantized checkpoint, or of loaded modules, one tensor at a time: any that are NaN, infinite or zero.

A scale that is not finite makes every weight of its group so. A zero scale makes them zero. Neither shows in the
figures while nothing reads the group: an expert that the text never reaches. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness.core.capability import ScaleCheck, ScaleFault
from harness.core.foreign import open_file, shown
from harness.errors import SourceError
from harness.models import headers, safetensors
from harness.models.gguf import reader
from harness.numerics.storage import beside_codes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_SCALE = re.compile(r"(?:^|[._:])(?:scales?|absmax|nested_offset|scb|amax)(?:_inv|_\d+)?$", re.IGNORECASE)
"""``nested_offset`` is what bitsandbytes takes off scales before it quantizes them in turn."""
_PACKED = "._data._data", "._data"
"""How quanto stores codes of less than a byte, and those of whole bytes: scales stand beside ``_data``."""
_CHUNK = 2**24
"""Values that are decoded at once."""
_BLOCK_SCALES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        **{"Q4_0": (18, 0), "Q4_1": (20, 0), "Q5_0": (22, 0), "Q5_1": (24, 0), "Q8_0": (34, 0), "IQ4_NL": (18, 0)},
        **{"Q2_K": (84, 80), "Q3_K": (110, 108), "Q4_K": (144, 0), "Q5_K": (176, 0), "Q6_K": (210, 208)},
        **{"IQ4_XS": (136, 0), "IQ3_XXS": (98, 0), "IQ3_S": (110, 0), "IQ2_XXS": (66, 0), "IQ2_XS": (74, 0)},
        **{"IQ2_S": (82, 0), "IQ1_S": (50, 0), "TQ1_0": (54, 52), "TQ2_0": (66, 64)},
    }
)
"""Of ggml's types (ggml-common.h): the bytes of a block, and where in it the float16 scale of the block is."""


_Scales = Iterable[tuple[str, Iterator["npt.NDArray[np.float32]"]]]
"""The name of each tensor of scales with its values, chunk by chunk."""


def check_stored(folder: Path) -> ScaleCheck:
    """Looks at every scale of the quantized tensors of a checkpoint. Raises SourceError if it cannot be read."""
    return _check(_stored(folder))


def check_loaded(modules: Mapping[str, torch.nn.Module]) -> ScaleCheck:
    """Looks at every scale of the quantized matrices in some modules, given by their names in the model."""
    return check_tensors(beside_codes(modules))


def check_tensors(held: Iterable[tuple[str, torch.Tensor]]) -> ScaleCheck:
    """Looks at those tensors of quantized matrices that are scales by their names."""
    return _check(
        (name, iter([tensor.detach().float().cpu().numpy()]))
        for name, tensor in held
        if tensor.is_floating_point() and not tensor.is_meta and _SCALE.search(name)
    )


def _check(scales: _Scales) -> ScaleCheck:
    counts = [_fault(name, values) for name, values in scales]
    faults = tuple(each for each in counts if each.not_finite or each.zero)
    return ScaleCheck(len(counts), sum(each.values for each in counts), faults)


def _fault(name: str, chunks: Iterator[npt.NDArray[np.float32]]) -> ScaleFault:
    import numpy as np

    values = not_finite = zero = 0
    for chunk in chunks:
        values += chunk.size
        not_finite += int(np.count_nonzero(~np.isfinite(chunk)))
        zero += int(np.count_nonzero(chunk == 0))
    return ScaleFault(name, values, not_finite, zero)


def _stored(folder: Path) -> _Scales:
    files = headers.weight_files(folder)
    if files[0].suffix == headers.GGUF:
        yield from _in_blocks(files[0])
        return
    held = [(file, name, entry) for file in files for name, entry in safetensors.read(file).items()]
    if kind := _block_type(folder):
        for file, name, entry in held:
            if name.endswith(".qweight"):
                yield name, _chunks_of_blocks(file, entry.begin, entry.end, kind)
        return
    codes = [name.replace(*_PACKED) for _, name, entry in held if _is_codes(name, entry)]
    coded = {part for name in codes for part in (name, name.rpartition(".")[0])}
    for file, name, entry in held:
        decode = _DECODERS.get(entry.dtype)
        if decode is None or not _SCALE.search(name) or name.rpartition(".")[0] not in coded:
            continue
        if entry.dtype == "U8" and name.endswith("absmax"):
            continue  # bitsandbytes' nested code of it, whose own scale is nested_absmax
        yield name, _chunks(file, entry.begin, entry.end, decode)


def _is_codes(name: str, entry: safetensors.Placed) -> bool:
    return entry.dtype not in headers.FLOAT_TYPES and not _SCALE.search(name)


def _in_blocks(file: Path) -> _Scales:
    for tensor in reader.read(file).tensors:
        if tensor.type in _BLOCK_SCALES:
            yield tensor.name, _chunks_of_blocks(file, tensor.begin, tensor.begin + tensor.bytes, tensor.type)


def _block_type(folder: Path) -> str | None:
    """The type of ggml's blocks that gptqmodel stores in safetensors, without scales beside them; None of others."""
    config = headers.read_config(folder) if (folder / "config.json").exists() else {}
    stored = config.get("quantization_config")
    if not isinstance(stored, dict) or stored.get("quant_method") != "gguf":
        return None
    kind = f"Q{stored.get('bits')}_{'0' if stored.get('format') == 'q_0' else 'K'}"
    return kind if kind in _BLOCK_SCALES else None


def _chunks_of_blocks(file: Path, begin: int, end: int, kind: str) -> Iterator[npt.NDArray[np.float32]]:
    size, at = _BLOCK_SCALES[kind]

    def decode(raw: bytes) -> npt.NDArray[np.float32]:
        import numpy as np

        blocks = np.frombuffer(raw, np.uint8).reshape(-1, size)
        return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)

    return _chunks(file, begin, end, decode, size)


def _chunks(
    file: Path, begin: int, end: int, decode: Callable[[bytes], npt.NDArray[np.float32]], item_bytes: int = 8
) -> Iterator[npt.NDArray[np.float32]]:
    """The values at a place of a file; each chunk holds whole items. Raises SourceError if the file is cut short."""
    step = _CHUNK // item_bytes * item_bytes
    with open_file(file, SourceError) as (stream, _):
        stream.seek(begin)
        for at in range(begin, end, step):
            wanted = min(step, end - at)
            raw = stream.read(wanted)
            if len(raw) < wanted:
                raise SourceError(f"{shown(file)}: cut short")
            yield decode(raw)


def _plain(dtype: str) -> Callable[[bytes], npt.NDArray[np.float32]]:
    def decode(raw: bytes) -> npt.NDArray[np.float32]:
        import numpy as np

        with np.errstate(over="ignore"):  # of float64
            return np.frombuffer(raw, dtype).astype(np.float32)

    return decode


def _bfloat16(raw: bytes) -> npt.NDArray[np.float32]:
    import numpy as np

    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def _eight_bits(exponent_bits: int, mantissa_bits: int, infinities: bool) -> Callable[[bytes], Any]:
    """Of a float8: sign, exponent, mantissa. Without infinities only all ones is NaN (E4M3, as ONNX's FN)."""

    def decode(raw: bytes) -> npt.NDArray[np.float32]:
        import numpy as np

        codes = np.frombuffer(raw, np.uint8).astype(np.int64)
        magnitude = codes & 0x7F
        exponent, mantissa = magnitude >> mantissa_bits, magnitude & (2**mantissa_bits - 1)
        bias = 2 ** (exponent_bits - 1) - 1
        fraction = np.where(exponent > 0, 1.0, 0.0) + mantissa / 2**mantissa_bits
        values = fraction * 2.0 ** (np.maximum(exponent, 1) - bias)
        wrong = exponent == 2**exponent_bits - 1 if infinities else magnitude == 0x7F
        return np.where(wrong, np.nan, np.where(codes >= 0x80, -values, values)).astype(np.float32)

    return decode


def _powers_of_two(raw: bytes) -> npt.NDArray[np.float32]:
    """E8M0 of the OCP microscaling formats: 2 to the power of the code less 127; 255 is NaN, and there is no zero."""
    import numpy as np

    codes = np.frombuffer(raw, np.uint8)
    return np.where(codes == 255, np.nan, np.maximum(2.0 ** (codes.astype(np.float64) - 127), 2.0**-126)).astype(
        np.float32
    )


_DECODERS: Mapping[str, Callable[[bytes], Any]] = MappingProxyType(
    {
        **{"F64": _plain("<f8"), "F32": _plain("<f4"), "F16": _plain("<f2"), "BF16": _bfloat16},
        **{"F8_E4M3": _eight_bits(4, 3, False), "F8_E5M2": _eight_bits(5, 2, True)},
        **{"F8_E8M0": _powers_of_two, "U8": _powers_of_two},
    }
)
"""By the dtype in a header. A scale in plain bytes is one of the microscaling formats, as gpt-oss stores it."""
