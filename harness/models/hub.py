"""A hub model's configuration and the headers of its files, before its weights are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import SourceError, first_line_of
from harness.models import headers

SIZED = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""The endings of files that are fetched of a checkpoint."""
GGUF = ".gguf"
MOST_LISTED = 200


def header(model: str, revision: str | None) -> tuple[dict[str, Any], headers.Header | None]:
    """The configuration and, if the hub gives the headers of its safetensors files, the shapes.

    Raises SourceError if the hub cannot be reached, or lacks the model or its configuration.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        config = headers.read_config_file(Path(hf_hub_download(model, "config.json", revision=revision)))
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(model, "its config.json", error) from None
    try:
        files = HfApi().get_safetensors_metadata(model, revision=revision).files_metadata.values()
    except (HTTPError, OSError, ValueError, NotASafetensorsRepoError, SafetensorsParsingError):
        return config, None
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return config, headers.header_of(
        config, [headers.Tensor(name, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    )


@dataclass(frozen=True)
class Published:
    """A repository as it is now: the commit, and the bytes of the files that a checkpoint is loaded from.

    ``loadable`` says whether safetensors files are among these. ``quantization`` is the quant_method of its
    config.json, None if the hub shows none, and ``bases`` are the models that its card says it was made of.
    ``gguf_bytes`` are those of each of its GGUF files, which are checkpoints of their own.
    """

    commit: str
    bytes: int
    loadable: bool = True
    quantization: str | None = None
    bases: tuple[str, ...] = ()
    gguf_bytes: Mapping[str, int] = field(default_factory=dict)


def newest(model: str) -> Published:
    """The newest commit of a model's repository. Raises SourceError if the hub cannot be reached or lacks the model."""
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(model, files_metadata=True)
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(model, "its newest commit", error) from None
    files = [file for file in found.siblings or () if file.rfilename.endswith(SIZED)]
    bases = None if found.card_data is None else found.card_data.base_model
    return Published(
        str(found.sha),
        sum(file.size or 0 for file in files),
        any(file.rfilename.endswith(".safetensors") for file in files),
        _quantization(found.config),
        (bases,) if isinstance(bases, str) else tuple(map(str, bases or ())),
        {file.rfilename: file.size or 0 for file in found.siblings or () if file.rfilename.endswith(GGUF)},
    )


def quantizations_of(model: str, gguf: bool = False) -> Iterator[str]:
    """The repositories that hold a quantization of a model by their cards, and say in which format: most loaded first.

    With ``gguf`` they are those of GGUF files. At most ``MOST_LISTED`` are looked at. Raises SourceError if the hub
    cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi

    asked = [f"base_model:quantized:{model}", *(["gguf"] if gguf else [])]
    try:
        found = list(HfApi().list_models(filter=asked, sort="downloads", limit=MOST_LISTED, fetch_config=True))
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(model, "its quantizations", error) from None
    yield from (each.id for each in found if gguf or _quantization(each.config) is not None)


def _quantization(config: Mapping[str, Any] | None) -> str | None:
    """The quant_method of a configuration as the hub shows it, which is what a stranger wrote."""
    settings = (config or {}).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method if isinstance(method, str) else None


def cache_folder() -> Path:
    """Where the hub's own library keeps what it fetches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def unreachable(model: str, wanted: str, error: Exception) -> SourceError:
    """That the hub did not give something of a model, and what else may be named."""
    return SourceError(
        f"{model!r}: no file or folder here, and the hub did not give {wanted}: {first_line_of(error)}; "
        "name a local folder, a GGUF file, or a config.json"
    )
