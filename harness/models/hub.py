"""A hub model's configuration and the headers of its files, before its weights are fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.errors import SourceError
from harness.models import headers


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
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SourceError(
            f"{model!r} is no file or folder here, and the hub did not give its config.json: {reason}; "
            "name a local folder, a GGUF file, or a config.json"
        ) from None
    try:
        files = HfApi().get_safetensors_metadata(model, revision=revision).files_metadata.values()
    except (HTTPError, OSError, ValueError, NotASafetensorsRepoError, SafetensorsParsingError):
        return config, None
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return config, headers.header_of(
        config, [headers.Tensor(name, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    )
