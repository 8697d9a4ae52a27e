"""A hub model's configuration and the headers of its files, before its weights are fetched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import SourceError
from harness.models import headers

SIZED = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""The endings of files that are fetched of a checkpoint."""


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
    """A repository as it is now: the commit, and the bytes of the files that a checkpoint is loaded from."""

    commit: str
    bytes: int


def newest(model: str) -> Published:
    """The newest commit of a model's repository. Raises SourceError if the hub cannot be reached or lacks the model."""
    from httpx import HTTPError
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(model, files_metadata=True)
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(model, "its newest commit", error) from None
    sizes = [file.size or 0 for file in found.siblings or () if file.rfilename.endswith(SIZED)]
    return Published(str(found.sha), sum(sizes))


def cache_folder() -> Path:
    """Where the hub's own library keeps what it fetches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def is_cached(model: str, commit: str) -> bool:
    """Whether anything of a repository at that commit is in the hub's cache."""
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_folder(), repo_folder_name(repo_id=model, repo_type="model"), "snapshots", commit).exists()


def forget(model: str, commit: str) -> None:
    """Deletes a repository's files at that commit from the hub's cache; other commits and repositories stay.

    A copy of a repository has the same commits, and huggingface_hub looks for a commit in all repositories.
    """
    from huggingface_hub import scan_cache_dir

    if is_cached(model, commit):
        found = scan_cache_dir(cache_folder())
        own = frozenset(each for each in found.repos if (each.repo_id, each.repo_type) == (model, "model"))
        replace(found, repos=own).delete_revisions(commit).execute()


def unreachable(model: str, wanted: str, error: Exception) -> SourceError:
    """That the hub did not give something of a model, and what else may be named."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return SourceError(
        f"{model!r} is no file or folder here, and the hub did not give {wanted}: {reason}; "
        "name a local folder, a GGUF file, or a config.json"
    )
