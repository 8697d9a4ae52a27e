"""A hub model's configuration and the headers of its files, before its weights are fetched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import SourceError
from harness.models import headers

SIZED = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""The endings of files that are fetched of a checkpoint."""
MOST_LISTED = 200
BEGUN = ".incomplete"
"""The ending of a file in the hub's cache that huggingface_hub downloads, or had begun to."""


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
    """

    commit: str
    bytes: int
    loadable: bool = True
    quantization: str | None = None
    bases: tuple[str, ...] = ()


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
    )


def quantizations_of(model: str) -> Iterator[str]:
    """The repositories that hold a quantization of a model by their cards, and say in which format: most loaded first.

    At most ``MOST_LISTED`` are looked at. Raises SourceError if the hub cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi

    asked = f"base_model:quantized:{model}"
    try:
        found = list(HfApi().list_models(filter=asked, sort="downloads", limit=MOST_LISTED, fetch_config=True))
    except (HTTPError, OSError, ValueError) as error:
        raise unreachable(model, "its quantizations", error) from None
    yield from (each.id for each in found if _quantization(each.config) is not None)


def _quantization(config: Mapping[str, Any] | None) -> str | None:
    """The quant_method of a configuration as the hub shows it, which is what a stranger wrote."""
    settings = (config or {}).get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method if isinstance(method, str) else None


def cache_folder() -> Path:
    """Where the hub's own library keeps what it fetches."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def repository_folder(model: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub.file_download import repo_folder_name

    return Path(cache_folder(), repo_folder_name(repo_id=model, repo_type="model"))


def lock_folder(model: str) -> Path:
    """Where huggingface_hub has a lock for each file of a repository that it downloads."""
    return Path(cache_folder(), ".locks", repository_folder(model).name)


def files_of(model: str) -> frozenset[str]:
    """The files that the hub's cache has of a repository, whole and begun, as paths in ``repository_folder``."""
    folder = repository_folder(model)
    found = (path for name in ("blobs", "refs", "snapshots") for path in Path(folder, name).rglob("*"))
    return frozenset(path.relative_to(folder).as_posix() for path in found if path.is_symlink() or not path.is_dir())


def forget(model: str, commit: str, before: Set[str]) -> None:
    """Deletes what came into the hub's cache of a repository at that commit since it had the files ``before``.

    What another commit uses stays, and so does what another process downloads now. A file that was begun before stays,
    also if it is whole by now.
    """
    from huggingface_hub import scan_cache_dir

    folder = repository_folder(model)
    snapshot = f"snapshots/{commit}/"
    new = files_of(model) - before - {name.removesuffix(BEGUN) for name in before}
    if not new:
        return
    for name in new:
        if name.startswith(snapshot):
            Path(folder, name).unlink()
    for path in (*sorted(Path(folder, snapshot).rglob("*"), reverse=True), Path(folder, snapshot)):
        with suppress(OSError):  # it is not empty, or no folder
            path.rmdir()
    left = files_of(model)
    used = {Path(folder, name).readlink().name for name in left if Path(folder, name).is_symlink()}
    blobs = {name for name in new & left if name.startswith("blobs/") and Path(name).name not in used}
    refs = {name for name in new & left if name.startswith("refs/") and not Path(folder, snapshot).exists()}
    replace(
        scan_cache_dir(cache_folder()).delete_revisions(),  # none, but it knows of what repositories share
        blobs=frozenset(folder / name for name in blobs if not _is_downloaded(model, name)),
        refs=frozenset(folder / name for name in refs if Path(folder, name).read_text() == commit),
    ).execute()


def _is_downloaded(model: str, blob: str) -> bool:
    """Whether a process downloads a file now: huggingface_hub holds a lock of its digest meanwhile."""
    from filelock import FileLock, Timeout

    lock = lock_folder(model) / f"{Path(blob).name.partition('.')[0]}.lock"
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def remove_if_empty(model: str) -> None:
    """Deletes a repository's folder in the hub's cache if it has no files of it."""
    if not files_of(model):
        shutil.rmtree(repository_folder(model), ignore_errors=True)


def unreachable(model: str, wanted: str, error: Exception) -> SourceError:
    """That the hub did not give something of a model, and what else may be named."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return SourceError(
        f"{model!r} is no file or folder here, and the hub did not give {wanted}: {reason}; "
        "name a local folder, a GGUF file, or a config.json"
    )
