"""A recipe for a model without writing one: what ``qharness try`` and ``qharness init`` share."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness import plugins as registry
from harness.api.forecasting import forecast_basis
from harness.api.workplace import USUAL_PLACE, Workplace
from harness.core.foreign import locate, read_file, shown
from harness.core.identity import NAME
from harness.errors import SourceError, UsageError
from harness.execution.local import LocalSite
from harness.models import hub
from harness.models.native import FORMATS
from harness.models.sources import HUB_ID, SourceModel, fetch, inspect, label_of
from harness.planning.draft.candidates import PURPOSES, Purpose
from harness.planning.draft.draft import RecipeDraft
from harness.planning.draft.propose import LEAST, Forecaster, Proposal, SweepRoom
from harness.planning.draft.propose import propose as propose_at
from harness.planning.estimate.gpus import budget as parse_budget
from harness.recipe import Model, load_recipe
from harness.recipe.fields import MAX_RECIPE_NAME
from harness.recipe.yaml_file import MAX_BYTES
from harness.storage.disk import Disk
from harness.storage.store import Store

MOST_MINUTES = 60 * 24 * 30
LEAST_LIMIT_MIN = 10
"""The shortest time limit of one run, in minutes: the forecast of a short sweep may be off by more than its time."""
Command = Literal["try", "init", "pick"]


@dataclass(frozen=True)
class TryRequest:
    """What a user wants compared, as on the command line.

    ``methods`` are written as tables label them; without any, those that suit the ``purpose`` are taken. ``budget`` is
    the memory of the device that will serve the model: a size, or the name of a GPU.
    """

    model: str
    methods: tuple[str, ...] = ()
    budget: str | None = None
    minutes: float = 30.0
    purpose: Purpose = "size"
    engine: str = "transformers"
    text: str = "demo"
    revision: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= MOST_MINUTES:
            raise UsageError(f"--minutes: expected a number above 0, at most {MOST_MINUTES}, not {self.minutes:g}")
        if self.purpose not in PURPOSES:
            raise UsageError(f"--for: expected {', '.join(PURPOSES)}, not {self.purpose!r}")
        registry.engine(self.engine)
        if self.budget is not None:
            parse_budget(self.budget, "--budget")

    @property
    def objective(self) -> Mapping[str, str]:
        """What to optimize for the purpose, as ``harness.recommend`` takes it; none: its default, stored bytes.

        The unquantized model always has the best quality, so that is an objective only within a budget.
        """
        if self.purpose == "speed":
            return {"maximize": "decode"}
        return {"minimize": "kl"} if self.purpose == "quality" and self.budget is not None else {}

    @property
    def arguments(self) -> str:
        """The arguments of a command that asks for the same, without defaults."""
        given = {
            "--methods": ", ".join(self.methods),
            "--budget": self.budget,
            "--minutes": f"{self.minutes:g}",
            "--for": self.purpose if self.purpose != "size" else None,
            "--engine": self.engine if self.engine != "transformers" else None,
            "--text": self.text if self.text != "demo" else None,
            "--revision": self.revision,
        }
        return shlex.join([self.model, *(part for name, value in given.items() if value for part in (name, value))])


@dataclass(frozen=True)
class Proposed:
    """A recipe's file, its name, and how it was chosen; None if an earlier call with the same request wrote it."""

    path: Path
    name: str
    proposal: Proposal | None


def propose(
    request: TryRequest,
    place: Workplace = USUAL_PLACE,
    out: Path | None = None,
    command: Command = "try",
    replace: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Proposed:
    """Writes a recipe for what the user asks, with methods and sizes that fit this machine, the time and the disk.

    ``out`` is its file (default: named after the model, in the working folder). A file that ``qharness try`` wrote for
    the same request is left as it is, so that asking again resumes. ``say`` receives what takes long.
    Raises SourceError for a model that cannot be found or compared, and UsageError for a wrong method, budget or time,
    and for another file at ``out`` unless ``replace``.
    """
    name = recipe_name(command, request.model)
    path = out or Path(f"{name}.yaml")
    first = f"qharness {command} {request.arguments}"
    if is_written(path, first if command == "try" else None, replace):
        return Proposed(path, load_recipe(path).name, None)  # which the user may have changed
    site = place.site()
    entry, source = find_model(request.model, request.revision, path.parent, say)
    if request.purpose == "quality" and source.ref.kind == "synthetic":
        raise UsageError(
            "--for quality: a synthetic model has random weights, so it has no quality to lose; "
            "give --for size or --for speed"
        )
    budget = None if request.budget is None else parse_budget(request.budget, "--budget")
    draft = RecipeDraft(
        name=name,
        model=entry,
        source=source,
        engine=request.engine,
        effort=LEAST,
        text=_text(request.text, path.parent),
        time_limit=f"{max(round(request.minutes), LEAST_LIMIT_MIN)}m",
        budget=None if budget is None else budget.size,
    )
    room = SweepRoom(request.minutes * 60, free_bytes(site.artifacts.root), budget)
    forecaster = forecaster_of(site, place.store(site), name)
    proposal = propose_at(draft, request.purpose, request.methods, room, path, site, forecaster)
    content = proposal.draft.text_with([first, *_head(proposal)])
    Disk().write_whole(path, content.encode())
    return Proposed(path, name, proposal)


def _head(proposal: Proposal) -> Sequence[str]:
    expected_min = proposal.forecast.total_s.expected / 60
    return [
        f"Written by the command above; expected to take {expected_min:.2g} min there. 'qharness run' takes this file "
        "too, and measures only what is new.",
        *(f"Left out: {each.label}: {each.reason}" for each in proposal.left_out),
    ]


def recipe_name(command: Command, model: str) -> str:
    """A recipe's name after its model: that of ``init`` is the model's alone."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", label_of(model)).strip("-._") or "model"
    name = plain[:MAX_RECIPE_NAME] if command == "init" else f"{command}-{plain}"[:MAX_RECIPE_NAME]
    assert NAME.fullmatch(name)
    return name


def is_written(path: Path, first: str | None, replace: bool) -> bool:
    """Whether a command wrote the recipe before, with ``first`` as its first line (None: a command that writes anew).

    Raises UsageError for another file there, unless it is to be replaced.
    """
    if replace or not path.exists():
        return False
    if first is not None:
        line = read_file(path, MAX_BYTES, UsageError).split(b"\n", 1)[0].decode("utf-8", "replace")
        if line == f"# {shown(first)}":
            return True
    raise UsageError(
        f"{shown(path)}: exists, and was not written for this request; --force replaces it, --out names another"
    )


def find_model(
    model: str, revision: str | None, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], SourceModel]:
    """The model's entry in a recipe in that folder, and what it names; a hub model is fetched, for its shapes.

    Weights that were published in 4 bits are moved off their grid, on which some methods would seem to lose nothing.
    """
    entry: dict[str, Any] = {"id": as_seen_from(folder, model)}
    on_hub = is_on_hub(model)
    if on_hub:
        entry["revision"] = revision or hub.newest(model).commit
    elif revision is not None:
        raise SourceError(f"--revision: {model!r} is no hub model; leave it out")
    source = inspect(Model(**entry), folder)
    if on_hub and not source.matrices:
        _fetch(model, source, say)
        source = inspect(Model(**entry), folder)
    if not source.matrices:
        raise SourceError(f"{model!r}: transformers does not know its shapes; name another model, or its config.json")
    if source.quantization in FORMATS:
        entry["native"] = "dequantize"
        source = inspect(Model(**entry), folder)
    elif source.quantization is not None:
        raise SourceError(
            f"{model!r} is already quantized ({source.quantization}): name the model that it was made of, or "
            "compare published checkpoints with 'qharness pick'"
        )
    elif source.ref.kind == "gguf" and source.ref.native_quantization is not None:
        moved = inspect(Model(**entry, degrid=0), folder)
        if moved.degrid_obstacle is None:
            entry["degrid"] = 0
            source = moved
    return entry, source


def _fetch(model: str, source: SourceModel, say: Callable[[str], None]) -> None:
    """Raises SourceError if the hub does not give it or the disk has no room for it."""
    size, free = hub.newest(model).bytes, free_bytes(hub.cache_folder())
    if size > free:
        raise SourceError(f"{model!r}: takes {size / 1e9:.1f} GB, and the disk of the hub's cache has {free / 1e9:.1f}")
    say(f"fetching {model} ({size / 1e9:.1f} GB)")
    fetch(source.ref)


def is_on_hub(model: str) -> bool:
    """Whether it is a hub id, and no file or folder here."""
    return is_hub_id(model) and not locate(model, Path(), SourceError).exists()


def is_hub_id(model: str) -> bool:
    return ":" not in model and HUB_ID.fullmatch(model) is not None and not model.endswith(".gguf")


def as_seen_from(folder: Path, model: str) -> str:
    """A path that starts at the working folder, as one that starts at the recipe's; anything else as it is."""
    scheme, colon, rest = model.partition(":")
    if scheme == "synthetic" and rest.endswith(".json"):
        return f"{scheme}{colon}{as_seen_from(folder, rest)}"
    if colon and scheme in ("synthetic", "package"):
        return model
    path = Path(model)
    if path.is_absolute() or model.startswith("~") or not locate(model, Path(), SourceError).exists():
        return model
    return os.path.relpath(path, folder)


def _text(text: str, folder: Path) -> str:
    """A text's name, or its file as seen from the recipe's folder."""
    return as_seen_from(folder, text) if "/" in text or Path(text).suffix else text


def forecaster_of(site: LocalSite, store: Store, name: str) -> Forecaster:
    """From this machine's speeds and its earlier runs."""
    basis = forecast_basis(site.speeds("auto"), store, name, store.read(name).records)
    return partial(basis.forecast, nodes=site.nodes("auto"))


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder is on, or would be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
