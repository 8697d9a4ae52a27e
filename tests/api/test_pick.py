"""Published checkpoints compared one at a time: what is on the disk meanwhile, what is left, and how one is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.api import pick, propose
from harness.api.pick import PickRequest, measure_each, serving, write_recipe
from harness.core.model import ModelRef
from harness.core.record import RunRecord
from harness.core.site import Machine
from harness.errors import UsageError
from harness.execution.local import LocalSite
from harness.models import hub
from harness.models.hub import Published
from harness.recipe import Recipe, load_recipe

COMMIT = "a" * 40


class Hub:
    """A hub with repositories of 1 GB, and its cache: which of them are on the disk."""

    def __init__(self, cached: Sequence[str] = ()) -> None:
        self.cached = set(cached)
        self.most_at_once = 0

    def fetch(self, name: str) -> None:
        self.cached.add(name)
        self.most_at_once = max(self.most_at_once, len(self.cached))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalSite, "machine", lambda site, device: Machine("cpu", "a test machine"))
    monkeypatch.setattr(hub, "newest", lambda name: Published(COMMIT, 10**9))
    monkeypatch.setattr(hub, "is_cached", lambda name, commit: name in made.cached)
    monkeypatch.setattr(hub, "forget", lambda name, commit: made.cached.discard(name))
    monkeypatch.setattr(pick, "_is_done", lambda recipe, *where: False)
    return made


def entry(recipe: Recipe) -> str:
    """The one checkpoint that a recipe measures beside the baseline."""
    baseline, checkpoint = recipe.methods
    assert baseline.name == "none"
    return str(checkpoint.params["id"])


def test_one_checkpoint_at_a_time_is_on_the_disk_and_none_is_left(published: Hub, tiny: Path) -> None:
    path = write_recipe(PickRequest(str(tiny), ("who/gptq", "who/awq", "who/fp8")))
    measured = []

    def run(recipe: Recipe, *where: Any, on_event: Any) -> tuple[RunRecord, ...]:
        measured.append(entry(recipe))
        published.fetch(entry(recipe))
        return ()

    measure_each(path, runner=run)
    assert measured == ["who/gptq", "who/awq", "who/fp8"]
    assert (published.most_at_once, published.cached) == (1, set())


def test_what_was_in_the_cache_before_stays(published: Hub, tiny: Path) -> None:
    published.cached = {"who/awq"}
    path = write_recipe(PickRequest(str(tiny), ("who/gptq", "who/awq")))
    measure_each(path, runner=lambda recipe, *where, on_event: published.fetch(entry(recipe)) or ())
    assert published.cached == {"who/awq"}


def test_an_interrupt_deletes_the_download_and_the_next_call_goes_on(
    published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = PickRequest(str(tiny), ("who/gptq", "who/awq"))
    finished: list[str] = []
    interrupted = ["who/awq"]

    def run(recipe: Recipe, *where: Any, on_event: Any) -> tuple[RunRecord, ...]:
        published.fetch(entry(recipe))
        if entry(recipe) in interrupted:
            raise KeyboardInterrupt
        finished.append(entry(recipe))
        return ()

    monkeypatch.setattr(pick, "_is_done", lambda recipe, *where: entry(recipe) in finished)
    with pytest.raises(KeyboardInterrupt):
        measure_each(write_recipe(request), runner=run)
    assert published.cached == set()
    interrupted.clear()
    monkeypatch.setattr(hub, "newest", lambda name: Published("b" * 40, 1))  # published anew: the pick goes on as begun
    path = write_recipe(request)
    measure_each(path, runner=run)
    assert finished == ["who/gptq", "who/awq"]
    assert {each.params["revision"] for each in load_recipe(path).methods[1:]} == {COMMIT}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoints": ("nowhere",)}, "checkpoint not found: 'nowhere'"),
        ({"disk_bytes": 10**8}, "'who/gptq': takes 1.0 GB, and the disk may take 0.1 GB more"),
        ({"checkpoints": ("a/same", "b/same")}, "two checkpoints are named 'same'"),
        ({"engine": "steam"}, "unknown engine"),
        ({"model": "nowhere"}, "model not found: 'nowhere'"),
    ],
)
def test_what_cannot_be_picked_is_refused_before_anything_is_written(
    published: Hub, tiny: Path, changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=expected):
        write_recipe(PickRequest(**{"model": str(tiny), "checkpoints": ("who/gptq",), **changes}))
    assert not list(tmp_path.glob("*.yaml"))
    assert published.cached == set()


def test_no_room_on_the_disk_is_said(published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pick, "free_bytes", lambda folder: 10**6)
    with pytest.raises(UsageError, match=r"the disk may take 0.0 GB more"):
        write_recipe(PickRequest(str(tiny), ("who/gptq",)))


def test_a_hub_that_cannot_be_reached_is_one_message(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def fail(*given: Any, **named: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", fail)
    with pytest.raises(UsageError, match="the hub did not give its newest commit: no route to host"):
        write_recipe(PickRequest(str(tiny), ("who/gptq",)))
    assert propose.is_hub_id("who/gptq")


def test_the_pick_is_served_by_what_reads_its_format() -> None:
    gguf = ModelRef("m.gguf", "m", "0", "gguf", "/models/a b/m.gguf")
    assert serving(gguf) == "llama-server --model '/models/a b/m.gguf'"
    repository = ModelRef("who/gptq", "gptq", "0", "hub", "/cache/x", revision=COMMIT)
    assert serving(repository) == f"vllm serve who/gptq --revision {COMMIT}"
    local = ModelRef("./m", "m", "0", "directory", "/models/m", native_quantization="compressed-tensors")
    assert serving(local) == "vllm serve /models/m"
    assert serving(replace(local, native_quantization="qharness-rtn")) is None
