"""Engine: a runtime that loads a checkpoint, and its declarations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from harness.core.capability import PROTOCOLS, Capability, Endpoint, LoadedModel, Streamed
from harness.core.format import Codes, Format
from harness.core.identity import DecodeMode, KvCache, Residency
from harness.core.model import Attention
from harness.core.site import Machine
from harness.core.strict import Strict


class EngineParams(Strict):
    """Base of an engine's own parameters: one pydantic field per parameter, its default included."""


P = TypeVar("P", bound=EngineParams)
MemoryCounter = Literal["torch", "driver"]
"""Who counts the memory that a model allocates on a GPU: torch's allocator, or the driver alone."""


STREAMED_PASSES = 5
"""About how many passes over its weights a run makes that reads them for each: the probe, the text, noise floors."""
STATES_SHARE = 0.2
"""The share of its memory in which a streamed run keeps the states of suspended windows; the others wait on disk."""
FILLED_SHARE = 0.9
"""Of the main memory that a streamed run may take, so much is filled with parts, results and states at most."""
RESIDENT = "set residency: resident on a machine where it fits"
"""What to do with a model that cannot be streamed."""


@dataclass(frozen=True)
class Streaming:
    """How a model is read from disk part by part for every pass.

    ``states_bytes`` is the memory that hidden states may take while they wait for the next part; the rest waits in
    files. Of main memory they take less where the run, which may still fill ``memory_bytes``, needs it for parts.
    ``time_s`` is the time limit of the run, None if it has none, and ``passes`` about how many it makes: a disk that is
    too slow for them is refused.
    """

    states_bytes: int
    memory_bytes: int | None = None
    time_s: float | None = None
    passes: int = STREAMED_PASSES


@dataclass(frozen=True)
class LoadRequest:
    """How an engine should load a checkpoint. ``quantization`` is passed to its library's own loader.

    ``read`` is the method's own loader, for checkpoints that transformers cannot load (see Method). ``gpus`` is how
    many GPUs the process has. ``untouched`` names the modules that ``quantization`` leaves as they are.
    ``streaming`` is None for a model that is loaded whole. ``served`` is the server of the user's that has the variant,
    for an engine that is ``remote``; ``path`` is then the unquantized checkpoint, whose tokenizer is used.
    """

    path: Path
    dtype: str
    device: str
    attention: str | None = None
    quantization: object | None = None
    trust_remote_code: bool = False
    kv_cache: KvCache = "model"
    read: Callable[[LoadRequest], Any] | None = None
    gpus: int = 1
    untouched: tuple[str, ...] = ()
    streaming: Streaming | None = None
    served: Endpoint | None = None


Serves = Callable[[LoadRequest, P, Path], AbstractContextManager[Endpoint]]
"""Starts a server for a checkpoint, with the engine's own parameters and a folder for its log.

It is entered when the server answers, and left when every process of the server has ended. Raises UnsupportedError if
the server cannot load the checkpoint, and RunError if it ends before it is told to; both with the end of its log.
"""


@dataclass(frozen=True)
class PlannedLoad:
    """What is known before a run of how an engine will load its variant, and what the run then needs.

    ``codes`` are None for an unquantized checkpoint. ``matrices`` are the shapes (outputs, inputs) of the decoder's
    quantized matrices by name, empty if not known yet, and ``attention`` is None then.
    ``tokens`` is the longest sequence that the run reads and writes, 0 if that is not known, and ``batch`` the most
    sequences of that length that it decodes in step. ``serves``: the engine's own server does that, not the run.
    """

    machine: Machine
    dtype: str
    codes: Codes | None = None
    kv_cache: KvCache = "model"
    attention: Attention | None = None
    matrices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: int = 0
    batch: int = 0
    serves: bool = False


@dataclass(frozen=True)
class Held:
    """What an engine holds for texts while it computes, where that does not follow from the texts alone.

    Its libraries take ``libraries_bytes`` more than torch. It computes ``step_tokens`` at once (None: all of a batch),
    and has room for ``logit_rows`` logits. Its cache has ``cache_bytes``, or room for ``texts``, so many of so many
    tokens (None: for those of the run), each rounded up to whole blocks of ``block`` tokens; of a number in the model's
    own kind of cache it keeps ``cache_bits`` (None: as many as the model's dtype has). ``share`` is the part of a GPU
    that it fills in any case.
    """

    libraries_bytes: int = 0
    step_tokens: int | None = None
    logit_rows: int = 0
    cache_bytes: int | None = None
    texts: tuple[int, int] | None = None
    block: int = 1
    cache_bits: float | None = None
    share: float = 0.0


def holds_texts(params: Any, device: str, serves: bool) -> Held:
    """For engines that compute a batch at once, and whose cache grows with its texts."""
    return Held()


def refuses_nothing(planned: PlannedLoad, params: Any) -> str | None:
    """For engines that read every checkpoint of their formats on every machine."""
    return None


def import_nothing(checkpoint: Path) -> None:
    """For engines whose libraries have the code of all architectures."""


def one_gpu(params: Any, devices: int) -> int:
    """For engines whose models are on one device."""
    return 1


@dataclass(frozen=True)
class Engine(Generic[P]):
    """A runtime that loads a checkpoint and runs it.

    ``capabilities`` are those that all of its models implement, and ``streams`` those of models that it reads from disk
    part by part, empty if it cannot do that. ``reads`` are the checkpoint formats that it loads.
    ``caches`` maps the key-value caches that it supports to the packages that each needs in addition to ``packages``.
    ``decode_modes`` maps the decode modes that it supports to the caches that each works with; ``decode_advice`` tells
    what a recipe should say in place of another mode. ``stack`` names the environment that it runs in. ``load`` also
    gets the engine's own parameters, of type ``params``, and so does ``refuses``: why the engine cannot load this here,
    in one sentence with what to do about it, if that is certain without loading it; else None. Planning calls it: it
    must not import the engine's libraries. ``gpus`` is how many GPUs a process gets where the device is one: by these
    parameters, and by how many GPUs the recipe spreads a model over (``devices``). ``counted_by`` is "driver" for an
    engine that allocates the memory of a GPU itself and not through torch. ``holds`` is what it holds for texts on a
    device by its parameters, as its server or in the run itself: planned peaks count it.

    ``imports`` imports its libraries, and ``import_model`` what a checkpoint's architecture needs besides, so that the
    time and memory of importing are not counted as loading. If that starts no thread and opens nothing, runs are forked
    from a process that has done it. If the engine does not read transformers checkpoints, ``convert`` writes an
    unquantized one to a folder, in a format that the engine reads and in a given dtype, and returns a note for the
    record or None. ``serve`` starts a server of the engine's own for a checkpoint, outside of this process; None if it
    has none. Models of a ``remote`` engine are on a server of the user's: their bytes, memory and kernels are unknown.

    ``version`` increases when any figure of the engine changes, ``writing_version`` when only what its models write
    does: tasks are then answered again, and nothing else is measured again.
    """

    name: str
    version: int
    summary: str
    capabilities: frozenset[Capability]
    reads: tuple[Format, ...]
    imports: Callable[[], None]
    load: Callable[[LoadRequest, P], LoadedModel]
    params: type[P]
    packages: tuple[str, ...] = ()
    stack: str = "main"
    streams: frozenset[Capability] = frozenset()
    import_model: Callable[[Path], None] = import_nothing
    convert: Callable[[Path, Path, str], str | None] | None = None
    refuses: Callable[[PlannedLoad, P], str | None] = refuses_nothing
    holds: Callable[[P, str, bool], Held] = holds_texts
    gpus: Callable[[P, int], int] = one_gpu
    caches: Mapping[KvCache, tuple[str, ...]] = field(default_factory=lambda: {"model": ()})
    decode_modes: Mapping[DecodeMode, tuple[KvCache, ...]] = field(default_factory=lambda: {"eager": ("model",)})
    decode_advice: str | None = None
    counted_by: MemoryCounter = "torch"
    serve: Serves[P] | None = None
    remote: bool = False
    writing_version: int = 1

    def offers(self, residency: Residency = "resident") -> frozenset[Capability]:
        """The capabilities of its models, what follows from them, and serving if a model is loaded whole."""
        own = self._declared(residency)
        derived: set[Capability] = {"scores"} if "logits" in own else set()
        if self.serve is not None and residency == "resident":
            derived.add("serves")
        return own | derived

    def _declared(self, residency: Residency) -> frozenset[Capability]:
        return self.streams if residency == "streamed" else self.capabilities

    def unmet(self, model: LoadedModel) -> tuple[Capability, ...]:
        """The capabilities that the engine declares but this loaded model does not implement."""
        declared = self._declared("streamed" if isinstance(model, Streamed) else "resident")
        return tuple(name for name in PROTOCOLS if name in declared and not isinstance(model, PROTOCOLS[name]))
