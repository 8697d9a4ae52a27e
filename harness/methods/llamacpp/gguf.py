"""llama.cpp's own quantization: a checkpoint is converted to GGUF, then quantized by llama.cpp itself.

The types are those of its ``llama-quantize`` (github.com/ggml-org/llama.cpp, tools/quantize): blocks of 32 weights with
a float16 scale (Q8_0, Q4_0), or of 256 whose scales are quantized too. The mixed types (``_M``, Q2_K) give some
matrices more bits, by their position in the model. If a matrix's input width is not a multiple of 256, llama.cpp
substitutes a type with blocks of 32, which stores more bits; the record names the types that the file really holds.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.core.engine import LoadRequest
from harness.core.format import GGUF_FORMAT
from harness.core.method import Method, MethodParams, PartsWork, QuantizeJob
from harness.errors import UnsupportedError
from harness.libraries import llamacpp
from harness.models.gguf import convert
from harness.models.gguf.convert import FileTensor
from harness.models.headers import GGUF_FILE, read_config, read_directory
from harness.models.loading import device_map
from harness.models.scope import divided_stack, module_name

if TYPE_CHECKING:
    import numpy as np
    import torch

BLOCKS = {
    **{"Q4_0": (32, 18), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34), "IQ4_NL": (32, 18), "F16": (1, 2)},
    **{"Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)},
    "IQ4_XS": (256, 136),
}
"""Weights and bytes of a block."""
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""llama.cpp's substitute for a width that is not a multiple of 256."""
MIXES: Mapping[str, Mapping[str, float]] = {
    "Q2_K": {"Q2_K": 0.635, "Q3_K": 0.346, "Q4_K": 0.019},
    "Q3_K_M": {"Q3_K": 0.616, "Q4_K": 0.367, "Q5_K": 0.017},
    "Q4_K_M": {"Q4_K": 0.856, "Q6_K": 0.144},
    "Q5_K_M": {"Q5_K": 0.856, "Q6_K": 0.144},
    "IQ4_XS": {"IQ4_XS": 0.947, "Q5_K": 0.053},
}
"""The share of the decoder's weights that a mixed type gives each of its types, in a model of Llama 3 8B's shape."""
LIBRARIES_BYTES = 600 * 10**6
"""What a process holds besides a model: Python, torch, llama.cpp."""
WORK_BYTES = 9
"""Of a number of the tensor at work: as read, as cast, and in llama.cpp in float32 and as quantized."""
ROW_COPIES = 4
"""Numbers in float32 of the widest that a row of the calibration set has in a layer."""
LOGITS = 4
"""Times that logits of as many tokens as llama.cpp has cells for are in memory when the result is probed."""
Type = Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS"]


class GgufParams(MethodParams):
    """``type`` is llama.cpp's name for the file's type. ``imatrix`` weights rounding errors by the mean square of each
    input column over the recipe's calibration set, as ``llama-imatrix`` does. ``embeddings`` and the head are either
    ``quantized``, to the finer type that llama.cpp chooses, or left in ``float16``.
    """

    type: Type = "Q4_K_M"
    imatrix: bool = False
    embeddings: Literal["quantized", "float16"] = "quantized"


class InMemory:
    """The file loaded in llama.cpp, with the interface through which a quantized model's logits are computed."""

    device = "cpu"

    def __init__(self, file: Path, device: str, config: Mapping[str, Any]) -> None:
        import torch
        from transformers import PretrainedConfig

        self.config = PretrainedConfig(vocab_size=config["vocab_size"])
        self._runtime = llamacpp.Runtime(file, device, torch.get_num_threads())

    def __call__(self, input_ids: torch.Tensor) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        return CausalLMOutput(logits=self._runtime.logits(input_ids))


def quantize(job: QuantizeJob[GgufParams], from_disk: bool = False) -> InMemory:
    """``from_disk``: with one decoder layer of the source in memory at a time, if the calibration set runs through it.

    Converting has one tensor of it in memory, and llama.cpp maps the converted file.
    """
    import torch

    config = read_config(job.source)
    tensors = convert.placed(read_directory(job.source).shapes, config)
    left = [(f"^{re.escape(name)}$", "F16") for name in left_plain(job, tensors)]
    with tempfile.TemporaryDirectory(dir=job.out) as folder:
        plain = Path(folder) / GGUF_FILE
        note = convert.convert(job.source, plain, job.dtype)
        if note is not None:
            job.note("tokenizer of the converted model", note)
        llamacpp.quantize(
            plain,
            job.out / GGUF_FILE,
            job.params.type,
            torch.get_num_threads(),
            "F16" if job.params.embeddings == "float16" else None,
            left,
            importance(job, tensors, from_disk) if job.params.imatrix else None,
        )
    shutil.copy(job.source / "config.json", job.out / "config.json")
    return InMemory(job.out / GGUF_FILE, job.device, config)


def left_plain(job: QuantizeJob[GgufParams], tensors: Sequence[FileTensor]) -> list[str]:
    """The decoder's matrices that the recipe skips, by llama.cpp's names.

    Raises UnsupportedError if it skips some experts of a layer and not others: llama.cpp has them in one tensor.
    """
    untouched = frozenset(job.untouched)
    skipped = []
    for tensor in tensors:
        found = [module_name(source) in untouched for source in tensor.sources]
        if (reason := divided_stack("gguf", {tensor.name: found})) is not None:
            raise UnsupportedError(reason)
        if any(found) and tensor.name.startswith("blk.") and not tensor.in_float32:
            skipped.append(tensor.name)
    return skipped


class InputSquares:
    """The mean square of each input column of the modules in ``scope``, over the tokens that reach them."""

    def __init__(self, scope: Collection[str]) -> None:
        self._scope = frozenset(scope)
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    @contextmanager
    def watching(self, root: torch.nn.Module, prefix: str = "") -> Iterator[None]:
        """Adds what the modules below a model or a layer read within this context."""
        named = [each for each in root.named_modules(prefix=prefix) if each[0] in self._scope]
        hooks = [module.register_forward_pre_hook(self._add(name)) for name, module in named]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def mean(self, name: str) -> np.ndarray[Any, Any] | None:
        """float32; None of a module that no token has reached."""
        return (self._sums[name] / self._counts[name]).numpy() if name in self._sums else None

    def _add(self, name: str) -> Any:
        def hook(module: Any, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].detach().float().flatten(0, -2)
            self._sums[name] = self._sums.get(name, 0) + rows.square().sum(dim=0).cpu()
            self._counts[name] += len(rows)

        return hook


def importance(
    job: QuantizeJob[GgufParams], tensors: Sequence[FileTensor], from_disk: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """The mean square of each input column of every matrix in scope, by llama.cpp's name, float32.

    The model runs in transformers; the input columns are the same. Those of a layer's experts follow one another. An
    expert that no token was routed to counts every column alike, as in ``llama-imatrix``.
    """
    import numpy as np
    import torch

    squares = InputSquares(job.scope)
    with torch.inference_mode():
        (_read_in_parts if from_disk else _read_whole)(job, squares)
    means: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in tensors:
        found = [squares.mean(module_name(source)) for source in tensor.sources]
        if any(each is not None for each in found):
            alike = np.ones(tensor.shape[-1], dtype=np.float32)
            means[tensor.name] = np.concatenate([alike if each is None else each for each in found])
    return means


def _read_whole(job: QuantizeJob[GgufParams], squares: InputSquares) -> None:
    from harness.models.unfuse import unfuse

    model = job.load()
    unfuse(model)
    with squares.watching(model):
        for text in _texts(job):
            model.get_decoder()(input_ids=text, use_cache=False)


def _read_in_parts(job: QuantizeJob[GgufParams], squares: InputSquares) -> None:
    """The source check of ``execution/jobs/quantize.py`` has refused models for which such passes are wrong."""
    from harness.models.streaming.layerwise import LayerPasses
    from harness.models.streaming.parts import Parts

    request = LoadRequest(
        job.source,
        job.dtype,
        job.device,
        job.attention,
        trust_remote_code=job.trust_remote_code,
        streaming=job.streaming,
    )
    with closing(Parts(request)) as parts:
        LayerPasses(parts).run(_texts(job), squares.watching)


def _texts(job: QuantizeJob[GgufParams]) -> list[torch.Tensor]:
    """The calibration set without padding, (1, length) each."""
    import torch

    return [torch.tensor([text], device=device_map(job.device)) for text in job.calibration_set.texts]


def parts_peak(params: GgufParams, work: PartsWork) -> float:
    """The most bytes while a file is made tensor by tensor, or at the end when llama.cpp has loaded it.

    A layer's experts are one tensor. Not counted are pages of the converted file, which llama.cpp maps: the kernel
    drops them where memory is short. Calibration has a layer with what it is made from, the states of all rows between
    two layers, and what a row takes in a layer; before the first layer it has the embedding.
    """
    alike = Counter(work.layer)  # experts have one shape
    stacked = max(outputs * inputs * count for (outputs, inputs), count in alike.items())
    at_work = WORK_BYTES * max(stacked, work.vocabulary * work.hidden)
    loaded = work.written_bytes + LOGITS * 4 * llamacpp.CELLS * work.vocabulary
    calibrating = 0.0
    if work.rows:
        widest = max(outputs for outputs, _ in work.layer)
        row = 4 * ROW_COPIES * work.length * max(widest, work.heads * work.length)
        embedding = work.plain_bytes * work.vocabulary * work.hidden
        calibrating = 2 * work.layer_bytes + embedding + 2 * work.states_bytes + row
    return LIBRARIES_BYTES + max(at_work, loaded, calibrating)


def _bits(params: GgufParams, plain_bits: float, width: int) -> float:
    mix = MIXES.get(params.type, {params.type: 1.0})
    return sum(share * _type_bits(kind, width) for kind, share in mix.items())


def _type_bits(kind: str, width: int) -> float:
    """Bits per weight of a type, or of llama.cpp's substitute if its blocks do not divide the width."""
    for held in (kind, FALLBACK.get(kind, "F16"), "F16"):
        weights, size = BLOCKS[held]
        if width % weights == 0:
            return 8 * size / weights
    raise AssertionError("float16 fits every width")


GGUF = Method(
    name="gguf",
    version=convert.VERSION,  # the conversion determines what is quantized
    summary="GGUF types by llama.cpp: Q8_0 to Q2_K and IQ4_XS, optionally with an importance matrix",
    params=GgufParams,
    packages=(llamacpp.PACKAGE, "gguf"),
    readers=(),
    stack="llamacpp",
    writes=GGUF_FORMAT,
    quantize=quantize,
    quantize_parts=partial(quantize, from_disk=True),
    offloads=True,
    gathers_parts=True,
    reads_tensors=True,
    parts_peak=parts_peak,
    calibrated=lambda params: params.imatrix,
    quantizes_experts=frozenset({"mixtral", "qwen3_moe"}),
    leaves_experts_because="the conversion to GGUF knows no other mixture",
    kernel="packed",
    bits_per_weight=_bits,
)
