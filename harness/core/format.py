"""Checkpoint formats, which methods write and engines read, and how a checkpoint in one of them stores its codes.

The list is open: a plugin may add an engine with its own format and a method that writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.core.model import ModelRef

Format = str
TRANSFORMERS_FORMAT: Format = "transformers"
"""A folder of safetensors that ``from_pretrained`` reads, quantized or not."""
LOAD_CONFIG_FORMAT: Format = "transformers-config"
"""Not a checkpoint: what ``from_pretrained(quantization_config=…)`` takes for an unquantized one."""
VLLM_CONFIG_FORMAT: Format = "vllm-config"
"""Not a checkpoint: the arguments with which vLLM quantizes an unquantized one while loading."""
GGUF_FORMAT: Format = "gguf"
SERVED_FORMAT: Format = "served"
"""Not a checkpoint: a model on a server of the user's."""
Number = Literal["int", "float"]


@dataclass(frozen=True)
class Activations:
    """What the inputs of a quantized layer are rounded to before the product.

    ``group`` is what shares a scale: the whole input, each token, or groups of a token's columns. ``dynamic`` scales
    are computed at run time, others come with the checkpoint.
    """

    number: Number
    bits: int
    group: Literal["tensor", "token", "group"]
    dynamic: bool = True

    @property
    def dtype(self) -> str:
        """torch's name of 8-bit numbers; of others their kind and bits."""
        return {"int8": "int8", "float8": "float8_e4m3fn"}.get(f"{self.number}{self.bits}", f"{self.number}{self.bits}")


@dataclass(frozen=True)
class Codes:
    """How a checkpoint stores its quantized matrices, as far as it decides who can read and multiply them.

    ``quant_method`` is that of its ``quantization_config``, or the library's name for a format that only the library
    reads. The rest is None or False where it is not declared: the type and width of a code; what shares a scale,
    and how many columns (for ``block``, rows and columns alike); whether zero points are stored; whether columns of one
    group are scattered by activation order (``g_idx``); and what inputs are rounded to (None: nothing).
    """

    quant_method: str
    number: Number | None = None
    bits: int | None = None
    group: Literal["tensor", "channel", "group", "block"] | None = None
    group_size: int | None = None
    asymmetric: bool = False
    scattered: bool = False
    activations: Activations | None = None

    @classmethod
    def grouped(
        cls,
        quant_method: str,
        bits: int,
        group_size: int | Literal["channel", "tensor"],
        asymmetric: bool = False,
        scattered: bool = False,
    ) -> Codes:
        """Integer weights alone, with one scale per ``group_size`` columns, per output channel or per matrix."""
        sized = isinstance(group_size, int)
        group, size = ("group", group_size) if sized else (group_size, None)
        return cls(quant_method, "int", bits, group, size, asymmetric, scattered)  # type: ignore[arg-type]


def source_format(model: ModelRef) -> Format:
    """The format that a model was published in; random weights are drawn as a transformers checkpoint."""
    return GGUF_FORMAT if model.kind == "gguf" else TRANSFORMERS_FORMAT
