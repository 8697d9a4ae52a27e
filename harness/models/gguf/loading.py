"""How transformers loads a GGUF file, with each tensor dequantized only when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from harness.core.engine import LoadRequest
from harness.core.owner import temporary_folder
from harness.errors import UnsupportedError
from harness.models.gguf.header import read_header

if TYPE_CHECKING:
    import torch

_NO_VALUES = SimpleNamespace(data=(), parts=(), types=())
"""A metadata field that counts no values."""


class GgufTensors:
    """The tensors that transformers makes of a GGUF file, by its names of them. ``load`` finds out which they are."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._shapes: Mapping[str, torch.Tensor] = {}
        self._tensors: Mapping[str, Any] = {}
        self._is_dequantized_by_steps = False
        self.bytes_read = 0
        self.read_s = 0.0

    def load(self, request: LoadRequest) -> Any:
        """What ``from_pretrained`` makes of the file, dequantized. Raises what transformers raises."""
        from transformers import AutoModelForCausalLM, GgufConfig
        from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

        if read_header(self._file).model_type == "mixtral":
            raise UnsupportedError(
                "transformers reads a Mixtral's GGUF file as a Llama without experts; measure it on llamacpp "
                "alone, or use the model's safetensors weights"
            )
        name = self._file.name
        with (
            temporary_folder() as folder,
            _header_read_once(),
            mock.patch.multiple(
                GgufHfQuantizer,
                get_state_dict=lambda quantizer, file, model: self._find(quantizer, file, model),
                _process_model_after_weight_loading=lambda quantizer, model, **_: model,
            ),
        ):
            # A folder of its own: transformers also reads adjacent files, which are not hashed.
            (folder / name).symlink_to(self._file.absolute())
            model = AutoModelForCausalLM.from_pretrained(
                str(folder),
                gguf_file=name,
                quantization_config=GgufConfig(gguf_file=name, dequantize=True),
                dtype=request.dtype,
            )
        if self._is_dequantized_by_steps:  # as it does itself after loading: those steps do not lead back
            model._weight_conversions = None
        return model

    @property
    def tensors(self) -> Collection[str]:
        return self._shapes.keys()

    def size_of(self, names: Iterable[str]) -> int:
        return sum(self._shapes[name].nbytes for name in names)

    def meta(self, name: str) -> torch.Tensor:
        return self._shapes[name]

    def read(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._tensors[name][...]
        return tensor

    def close(self) -> None:
        self._tensors = {}

    def _find(self, quantizer: Any, file: str, model: Any) -> Mapping[str, Any]:
        """The tensors by name, each of which is made when it is indexed."""
        import torch
        from transformers.integrations.gguf.reader import _TORCH_DTYPE, load_gguf_state_dict

        self._is_dequantized_by_steps = quantizer.supported
        if quantizer.supported:
            self._tensors = lazy = load_gguf_state_dict(quantizer.header)
            self._shapes = {
                name: torch.empty(each.shape, dtype=_TORCH_DTYPE.get(each.ggml_type, torch.uint8), device="meta")
                for name, each in lazy.items()
            }
        else:
            self._tensors = _OlderLoader(file, model, quantizer.dtype).tensors
            self._shapes = {name: each for name, each in model.state_dict().items() if name in self._tensors}
        return self._tensors


class _OlderLoader:
    """transformers' loader of most architectures, which dequantizes all tensors of the file that it is shown.

    It is shown those of one parameter at a time. ``tensors`` are the parameters that the file holds, by name.
    """

    def __init__(self, file: str, model: Any, dtype: torch.dtype) -> None:
        import gguf
        from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

        reader = gguf.GGUFReader(file)
        self._file, self._dtype = file, dtype
        self._fields = {
            key: _NO_VALUES if key.startswith("tokenizer.") else field for key, field in reader.fields.items()
        }
        names: dict[str, str] = {}

        def keep(*arguments: Any, **options: Any) -> dict[str, str]:
            nonlocal names
            names = get_gguf_hf_weights_map(*arguments, **options)  # calls itself, and returns last from the first call
            return names

        self._load([], keep, model)
        self._names, self._stored = names, model.state_dict()
        self.tensors: dict[str, _LazyParameter] = {}
        for tensor in reader.tensors:
            name = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
            if name is not None and name in self._stored:
                self.tensors.setdefault(name, _LazyParameter(self, name)).sources.append(tensor)

    def make(self, name: str, sources: Sequence[Any]) -> torch.Tensor:
        """A parameter, made of these tensors of the file. Raises UnsupportedError if the model has no place for it."""
        made = self._load(sources, lambda *_, **__: self._names)[name]
        found, expected = tuple(made.shape), tuple(self._stored[name].shape)
        if found != expected:
            raise UnsupportedError(
                f"transformers misreads this file: its {name} is {found}, and the configuration that it makes "
                f"of the file says {expected}; use the model's safetensors weights"
            )
        return made

    def _load(self, sources: Sequence[Any], names: Callable[..., Any], model: Any = None) -> dict[str, torch.Tensor]:
        from transformers import modeling_gguf_pytorch_utils as older

        shown = SimpleNamespace(fields=self._fields, tensors=sources)
        with (
            mock.patch("gguf.GGUFReader", return_value=shown),
            mock.patch.object(older, "get_gguf_hf_weights_map", names),
            mock.patch.object(older, "tqdm", lambda each, **_: each),
        ):
            found: dict[str, torch.Tensor] = older.load_gguf_checkpoint(
                self._file, return_tensors=True, model_to_load=model, torch_dtype=self._dtype
            )["tensors"]
        return found


class _LazyParameter:
    """A parameter that is made of some tensors of a file when it is indexed."""

    def __init__(self, loader: _OlderLoader, name: str) -> None:
        self._loader, self._name = loader, name
        self.sources: list[Any] = []

    def __getitem__(self, _: object) -> torch.Tensor:
        return self._loader.make(self._name, self.sources)


@contextmanager
def _header_read_once() -> Iterator[None]:
    """transformers reads a GGUF file's metadata once for the configuration and once for the weights, and makes gguf's
    map of tensor names anew for each module of the model: most of the time that loading takes."""
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in own.items():
            setattr(gguf, name, cache(made))
        yield
    finally:
        for name, made in own.items():
            setattr(gguf, name, made)
