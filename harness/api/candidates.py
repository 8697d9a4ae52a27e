"""Which published checkpoints ``qharness pick`` compares: those that the user names, or those that the hub knows."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import plugins as registry
from harness.api.propose import as_seen_from, is_hub_id, is_on_hub
from harness.core.engine import Engine
from harness.core.foreign import locate
from harness.core.format import GGUF_FORMAT, TRANSFORMERS_FORMAT
from harness.core.model import MAIN_ENGINE
from harness.core.site import Site
from harness.engines.vllm.tables import READ
from harness.errors import SourceError, UsageError
from harness.models import hub, published
from harness.models.sources import HUB_FILE, is_here, label_of, on_hub
from harness.planning.draft.propose import LeftOut
from harness.planning.estimate.chosen import Chosen

CHECKPOINT = "checkpoint"
MOST_FOUND = 8
"""So many of those that the hub knows are compared: the most downloaded. All GGUF files of a repository are."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_NOT_COMPARED = re.compile(r"mmproj|(^|/)imatrix|[-._](bf16|f16|f32)\.gguf$", re.IGNORECASE)
"""The name of a file in which, as its writers name files, nothing is quantized or no language model is stored."""


@dataclass(frozen=True)
class PickCandidate:
    """A checkpoint as a recipe's method, and the bytes that measuring it downloads."""

    chosen: Chosen
    download_bytes: int


@dataclass(frozen=True)
class PickCandidates:
    """What is compared, and why each of the others is not."""

    kept: tuple[PickCandidate, ...]
    left_out: tuple[LeftOut, ...]

    def within(self, room_bytes: int) -> PickCandidates:
        """Those whose download the disk may take. Raises SourceError, which says why, if there are none."""
        large = [each for each in self.kept if each.download_bytes > max(room_bytes, 0)]
        kept = tuple(each for each in self.kept if each not in large)
        reasons = (
            f"takes {each.download_bytes / 1e9:.1f} GB, and the disk may take {max(room_bytes, 0) / 1e9:.1f} GB more"
            for each in large
        )
        named = (each.chosen.label for each in large)
        left_out = (*self.left_out, *map(LeftOut, named, reasons))
        if not kept:
            reasons = (f"{each.label!r}: {each.reason}" for each in left_out)
            raise SourceError("; ".join(reasons) or "the hub knows no quantization of it that can be compared")
        return PickCandidates(kept, left_out)


@dataclass(frozen=True)
class Seeker:
    """Looks checkpoints up: for an engine, at a site, for a recipe in that folder."""

    engine: str
    site: Site
    folder: Path

    def named(self, checkpoints: Sequence[str]) -> PickCandidates:
        """Those that the user names: one that is not there does not stop the others.

        Raises UsageError for two that a table could not tell apart.
        """
        twice = [label for label, count in Counter(map(label_of, checkpoints)).items() if count > 1]
        if twice:
            raise UsageError(f"two checkpoints are named {twice[0]!r}: a table could not tell them apart")
        return self._looked_up(checkpoints)

    def found(self, model: str) -> PickCandidates:
        """The most downloaded that the hub knows of a model. Raises SourceError if it cannot be asked."""
        if not is_on_hub(model):
            raise SourceError(f"{model!r} is no hub id, so the hub knows no quantizations of it; name checkpoints")
        gguf = GGUF_FORMAT in registry.engine(self.engine).reads
        return self._looked_up(hub.quantizations_of(model, gguf), MOST_FOUND)

    def _looked_up(self, names: Iterable[str], most: float = math.inf) -> PickCandidates:
        kept: list[PickCandidate] = []
        left_out: list[LeftOut] = []
        for name in names:
            if len(kept) >= most:
                break
            try:
                for candidate in self._candidates(name):
                    label = candidate.chosen.label
                    if label_of(label) in [label_of(each.chosen.label) for each in kept]:
                        left_out.append(LeftOut(label, "a table could not tell it from one of the same name"))
                    else:
                        kept.append(candidate)
            except SourceError as error:
                left_out.append(LeftOut(name, str(error).removeprefix(f"{name!r}: ")))
        return PickCandidates(tuple(kept), tuple(left_out))

    def _candidates(self, named: str) -> Iterator[PickCandidate]:
        """The checkpoint of that name or, of a repository of GGUF files, each of these."""
        method = registry.method(CHECKPOINT)
        if locate(named, Path(), SourceError).exists():
            yield PickCandidate(Chosen(method, method.params(id=as_seen_from(self.folder, named)), named), 0)
            return
        if not (HUB_FILE.fullmatch(named) or is_hub_id(named)):
            raise SourceError("checkpoint not found: it is no file or folder, and no hub id")
        repository, file = on_hub(named)
        found = hub.newest(repository)
        for name, size in self._readable(repository, file, found).items():
            chosen = Chosen(method, method.params(id=name, revision=found.commit), name)
            yield PickCandidate(chosen, 0 if is_here(name, found.commit) else size)

    def _readable(self, repository: str, file: str | None, found: hub.Published) -> Mapping[str, int]:
        """The bytes of each checkpoint that the engine may read of a repository, or of that file of it, by hub id.

        Raises SourceError, which says why, if there are none.
        """
        runtime = registry.engine(self.engine)
        if GGUF_FORMAT in runtime.reads:
            whole = {name: size for name, size in found.gguf_bytes.items() if not _PART.search(name)}
            chosen = [name for name in whole if (name == file if file else not _NOT_COMPARED.search(name))]
            if not chosen:
                of_that_name = " of that name" if file else ""
                raise SourceError(f"{runtime.name} reads GGUF files of one part, and it holds none{of_that_name}")
            return {f"{repository}/{name}": whole[name] for name in chosen}
        if file is not None:
            raise SourceError(f"{runtime.name} does not read GGUF files; give --engine llamacpp")
        if reason := self._unreadable(found, runtime):
            raise SourceError(reason)
        return {repository: found.bytes}

    def _unreadable(self, found: hub.Published, runtime: Engine[Any]) -> str | None:
        """Why an engine reads nothing of a repository, as far as the hub shows what is in it; None if it may."""
        if TRANSFORMERS_FORMAT not in runtime.reads:
            return f"{runtime.name} does not read safetensors; download a file that it reads, and name that"
        if not found.loadable:
            return "holds no safetensors" + ("; give --engine llamacpp for its GGUF files" if found.gguf_bytes else "")
        if found.quantization is None:
            return None
        known = {MAIN_ENGINE: published.READERS, "vllm": READ}.get(runtime.name, (found.quantization,))
        if found.quantization not in known:
            return f"{runtime.name} is not known to read {found.quantization}"
        return published.missing(found.quantization, self.site) if runtime.name == MAIN_ENGINE else None


def base_of(checkpoints: Sequence[str]) -> str:
    """The model that checkpoints were made of, by the first card on the hub that names just one.

    Raises SourceError if none does.
    """
    reasons = []
    absent = (name for name in checkpoints if not locate(name, Path(), SourceError).exists())
    for name in filter(is_on_hub, dict.fromkeys(on_hub(name)[0] for name in absent)):
        try:
            bases = hub.newest(name).bases
        except SourceError as error:
            reasons.append(str(error))
            continue
        if len(bases) == 1:
            return bases[0]
        reasons.append(f"the card of {name!r} names {', '.join(bases) or 'no model'}")
    why = "; ".join(reasons) or "no hub id is among them, whose card could name it"
    raise SourceError(f"name the model that the checkpoints were made of, with --of MODEL: {why}")
