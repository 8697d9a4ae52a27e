"""Published checkpoints compared one at a time: what is on the disk meanwhile, what is left, and how one is served."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_q8_0

from harness.api import pick, propose
from harness.api.candidates import base_of
from harness.api.pick import PickRequest, measure_each, measured_earlier, serving, serving_variant, write_recipe
from harness.api.propose import find_model
from harness.api.run import RunSettings
from harness.core.model import MethodRef, ModelRef
from harness.core.owner import current_owner
from harness.core.record import Outcome, RunRecord
from harness.core.site import Machine
from harness.core.variant import Variant
from harness.errors import SourceError, UsageError
from harness.execution.events import Cleared, Event
from harness.execution.local import LocalSite, local_site
from harness.host.speeds import TYPICAL
from harness.models import hub
from harness.models.hub import Published
from harness.models.sources import is_here, on_hub
from harness.planning.plan import plan
from harness.recipe import Recipe, load_recipe
from harness.storage.store import Store

COMMIT = "a" * 40


class Hub:
    """A hub with repositories of 1 GB, and what of them is on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: list[str] = []
        self.changed: dict[str, Published] = {}
        self.absent: set[str] = set()
        self.fetched: list[str] = []

    @property
    def users(self) -> Path:
        """The user's hub cache."""
        return self.folder / "hub"

    @property
    def downloaded(self) -> list[str]:
        """The repositories that are on the disk and not in the user's hub cache."""
        return [path.name for path in (self.folder / "cache" / "downloads").glob(".*/models--*")]

    def newest(self, name: str) -> Published:
        if name in self.absent:
            raise SourceError(f"{name!r}: the hub lacks it")
        return self.changed.get(name, Published(COMMIT, 10**9, quantization="gptq"))

    def fetch_into(self, cache: Path, model: ModelRef) -> None:
        if model.id in self.absent:
            raise SourceError(f"could not fetch it: {model.id!r}: the hub is closed")
        self.fetched.append(model.id)
        snapshot(cache, on_hub(model.id)[0]).mkdir(parents=True)


def snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(LocalSite, "machine", lambda site, device: Machine("cpu", "a test machine"))
    monkeypatch.setattr(hub, "newest", made.newest)
    monkeypatch.setattr(hub, "quantizations_of", lambda name, gguf: iter(made.known))
    monkeypatch.setattr(pick, "fetch_into", made.fetch_into)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.users))
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.execution.local.machine_speeds", lambda machine, root: TYPICAL)
    monkeypatch.setattr(pick, "_is_done", lambda recipe, *where: False)
    return made


def entry(recipe: Recipe) -> str:
    """The one checkpoint that a recipe measures beside the baseline."""
    baseline, checkpoint = recipe.methods
    assert baseline.name == "none"
    return str(checkpoint.params["id"])


def test_one_checkpoint_at_a_time_is_on_the_disk_and_none_is_left(published: Hub, tiny: Path) -> None:
    path = write_recipe(PickRequest(str(tiny), ("who/gptq", "who/awq", "who/fp8"))).path
    measured = []

    def run(recipe: Recipe, settings: RunSettings) -> tuple[RunRecord, ...]:
        measured.append((entry(recipe), published.downloaded))
        assert recipe.downloads is not None
        assert snapshot(recipe.downloads, entry(recipe)).exists()
        return ()

    measure_each(path, RunSettings(), runner=run)
    names = ("gptq", "awq", "fp8")
    assert measured == [(f"who/{name}", [f"models--who--{name}"]) for name in names]
    assert published.downloaded == []
    assert not published.users.exists()


def test_what_is_in_the_users_cache_is_used_and_stays(published: Hub, tiny: Path) -> None:
    shutil.copytree(tiny, snapshot(published.users, "who/awq"))
    path = write_recipe(PickRequest(str(tiny), ("who/gptq", "who/awq"))).path
    measure_each(path, RunSettings(), runner=lambda recipe, settings: ())
    assert published.fetched == ["who/gptq"]
    assert is_here("who/awq", COMMIT)


def test_an_interrupt_deletes_the_download_and_the_next_call_goes_on(
    published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = PickRequest(str(tiny), ("who/gptq", "who/awq"))
    finished: list[str] = []
    interrupted = ["who/awq"]

    def run(recipe: Recipe, settings: RunSettings) -> tuple[RunRecord, ...]:
        if entry(recipe) in interrupted:
            raise KeyboardInterrupt
        finished.append(entry(recipe))
        return ()

    monkeypatch.setattr(pick, "_is_done", lambda recipe, place: entry(recipe) in finished)
    with pytest.raises(KeyboardInterrupt):
        measure_each(write_recipe(request).path, RunSettings(), runner=run)
    assert published.fetched == ["who/gptq", "who/awq"]
    assert published.downloaded == []
    interrupted.clear()
    monkeypatch.setattr(hub, "newest", lambda name: Published("b" * 40, 1))  # published anew: the pick goes on as begun
    path = write_recipe(request).path
    measure_each(path, RunSettings(), runner=run)
    assert finished == ["who/gptq", "who/awq"]
    assert {each.params["revision"] for each in load_recipe(path).methods[1:]} == {COMMIT}


def test_what_was_measured_is_known_when_its_checkpoint_is_deleted(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.execution.local.machine_speeds", lambda machine, root: TYPICAL)
    monkeypatch.setattr(LocalSite, "machine", lambda site, device: Machine("cpu", "a test machine"))
    monkeypatch.setattr(hub, "newest", lambda name: Published(COMMIT, 10**9))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    recipe = load_recipe(write_recipe(PickRequest(str(tiny), ("who/gptq",))).path)
    snapshot = tmp_path / "hub" / "models--who--gptq" / "snapshots" / COMMIT
    shutil.copytree(tiny, snapshot)
    config = json.loads((snapshot / "config.json").read_text())
    quantized = config | {"quantization_config": {"quant_method": "compressed-tensors"}}
    (snapshot / "config.json").write_text(json.dumps(quantized))
    for number, run in enumerate(plan(recipe, local_site(None, None))):
        Store(tmp_path / "results").save(RunRecord(run.spec, Outcome("ok"), "s", 1, f"2026-01-01T00:00:{number:02}", 1))
    shutil.rmtree(tmp_path / "hub")

    def fetched_again(cache: Path, model: ModelRef) -> None:
        raise AssertionError("a checkpoint was fetched again")

    monkeypatch.setattr(pick, "fetch_into", fetched_again)
    measure_each(tmp_path / "pick-tiny-llama.yaml", RunSettings())
    monkeypatch.setattr(LocalSite, "version", lambda site, package, stack="main": "newer than the records")
    with pytest.raises(AssertionError, match="fetched again"):  # other libraries may give other figures
        measure_each(tmp_path / "pick-tiny-llama.yaml", RunSettings())


def test_another_budget_is_another_request(published: Hub, tiny: Path) -> None:
    path = write_recipe(PickRequest(str(tiny), ("who/gptq",), budget="8GiB")).path
    assert "memory: {budget: 8GiB}" in path.read_text()
    with pytest.raises(UsageError, match="not written for this request"):
        write_recipe(PickRequest(str(tiny), ("who/gptq",), budget="16GiB"))


def test_what_is_in_the_users_cache_needs_no_room(published: Hub, tiny: Path) -> None:
    shutil.copytree(tiny, snapshot(published.users, "who/gptq"))
    assert write_recipe(PickRequest(str(tiny), ("who/gptq",), disk_bytes=10**7)).path.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"checkpoints": ("nowhere",)}, "'nowhere': checkpoint not found"),
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
    assert published.fetched == []


def test_what_a_killed_pick_had_downloaded_is_deleted_first_and_says_so(published: Hub, tiny: Path) -> None:
    left = published.folder / "cache" / "downloads" / f".0.{replace(current_owner(), start=1)}.part"
    snapshot(left, "who/gptq").mkdir(parents=True)
    told: list[Event] = []
    write_recipe(PickRequest(str(tiny), ("who/gptq",)), on_event=told.append)
    assert not left.exists()
    assert [event.debris.paths for event in told if isinstance(event, Cleared)] == [(left,)]


def test_no_room_on_the_disk_is_said(published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pick, "free_bytes", lambda folder: 10**6)
    with pytest.raises(UsageError, match=r"the disk may take 0.0 GB more"):
        write_recipe(PickRequest(str(tiny), ("who/gptq",)))


def test_a_hub_that_cannot_be_reached_is_one_message(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def fail(*given: Any, **named: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "model_info", fail)
    said = "'who/gptq': no file or folder here, and the hub did not give its newest commit: no route to host"
    with pytest.raises(UsageError, match=re.escape(said)):
        write_recipe(PickRequest(str(tiny), ("who/gptq",)))
    assert propose.is_hub_id("who/gptq")


def test_a_checkpoint_that_cannot_be_had_does_not_stop_the_others(published: Hub, tiny: Path) -> None:
    published.absent = {"who/gone"}
    published.changed = {
        "who/huge": Published(COMMIT, 10**18),
        "who/gguf": Published(COMMIT, 10**6, loadable=False, gguf_bytes={"m.Q8_0.gguf": 1}),
        "who/odd": Published(COMMIT, 10**6, quantization="steam"),
    }
    written = write_recipe(
        PickRequest(str(tiny), ("who/gone", "nowhere", "who/gptq", "who/huge", "who/gguf", "who/odd"))
    )
    assert written.checkpoints == ("who/gptq",)
    reasons = {each.label: each.reason for each in written.left_out}
    assert reasons["who/gone"] == "the hub lacks it"
    assert "no hub id" in reasons["nowhere"]
    assert reasons["who/huge"].startswith("takes 1000000000.0 GB")
    assert reasons["who/gguf"] == "holds no safetensors; give --engine llamacpp for its GGUF files"
    assert reasons["who/odd"] == "transformers is not known to read steam"
    assert "# Left out: who/gone: the hub lacks it" in written.path.read_text()


def test_one_that_cannot_be_fetched_does_not_stop_the_others(published: Hub, tiny: Path) -> None:
    path = write_recipe(PickRequest(str(tiny), ("who/gone", "who/gptq"))).path
    alone = write_recipe(PickRequest(str(tiny), ("who/gone",)), out=Path("alone.yaml")).path
    published.absent = {"who/gone"}
    measured = []
    made = measure_each(path, RunSettings(), runner=lambda recipe, settings: measured.append(entry(recipe)) or ())
    assert measured == ["who/gptq"]
    assert [(each.label, each.reason) for each in made.left_out] == [
        ("who/gone", "could not fetch it: the hub is closed")
    ]
    with pytest.raises(SourceError, match="could not fetch it"):
        measure_each(alone, RunSettings())


def test_each_whole_gguf_file_of_a_repository_is_a_checkpoint(published: Hub, tiny: Path) -> None:
    parts = ("mmproj-m.Q8_0.gguf", "imatrix.gguf")  # no language model
    names = (
        *parts,
        "m.Q8_0.gguf",
        "m.Q4_K_M.gguf",
        "m.F16.gguf",
        "big/m-00001-of-00002.gguf",
        "big/m-00002-of-00002.gguf",
    )
    published.changed = {"who/gguf": Published(COMMIT, 1, loadable=False, gguf_bytes=dict.fromkeys(names, 10**6))}
    of = {"model": str(tiny), "engine": "llamacpp"}
    written = write_recipe(PickRequest(checkpoints=("who/gguf",), **of))
    assert written.checkpoints == ("who/gguf/m.Q8_0.gguf", "who/gguf/m.Q4_K_M.gguf")
    entries = load_recipe(written.path).methods[1:]
    assert [each.params for each in entries] == [{"id": name, "revision": COMMIT} for name in written.checkpoints]
    measure_each(written.path, RunSettings(), runner=lambda recipe, settings: ())
    assert published.fetched == list(written.checkpoints)
    named = PickRequest(checkpoints=("who/gguf/m.F16.gguf", "who/gguf/m.Q2_K.gguf"), **of)
    one = write_recipe(named, out=Path("one.yaml"))
    assert one.checkpoints == ("who/gguf/m.F16.gguf",)
    assert [each.reason for each in one.left_out] == [
        "llamacpp reads GGUF files of one part, and it holds none of that name"
    ]
    several = write_recipe(PickRequest(checkpoints=("who/gguf", "who/gguf/m.F16.gguf"), **of), out=Path("several.yaml"))
    assert several.checkpoints == (*written.checkpoints, "who/gguf/m.F16.gguf")
    with pytest.raises(UsageError, match="transformers does not read GGUF files; give --engine llamacpp"):
        write_recipe(PickRequest(str(tiny), ("who/gguf/m.Q8_0.gguf",)), out=Path("two.yaml"))


def test_a_gguf_file_may_have_any_name_that_leads_nowhere_else(published: Hub, tiny: Path) -> None:
    odd = "more/it's [v2] {a}, #1: x.Q4_0.gguf"
    here = published.folder / "my [models]" / "m: {b}.Q8_0.gguf"
    here.parent.mkdir()
    write_q8_0(here)
    published.changed = {"who/gguf": Published(COMMIT, 1, loadable=False, gguf_bytes={odd: 1})}
    asked = ("who/gguf", str(here.relative_to(published.folder)))
    path = write_recipe(PickRequest(str(tiny), asked, "llamacpp")).path
    assert [each.params["id"] for each in load_recipe(path).methods[1:]] == [f"who/gguf/{odd}", asked[1]]
    measure_each(path, RunSettings(), runner=lambda recipe, settings: ())
    assert published.fetched == [f"who/gguf/{odd}"]
    for name in ("../x.gguf", "a/../../x.gguf", "/etc/x.gguf", "a//x.gguf", "a\\x.gguf", "a\nx.gguf"):
        assert on_hub(f"who/gguf/{name}") == (f"who/gguf/{name}", None), name


def test_what_the_hub_knows_of_a_model_is_compared(published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most downloaded that can be read, each name once."""
    monkeypatch.setattr(pick, "find_model", lambda model, *given: find_model(str(tiny), *given))
    monkeypatch.setattr(pick, "_download_bytes", lambda *given: 0)
    published.changed = {"b/odd": Published(COMMIT, 10**6, quantization="steam")}
    published.known = ["a/m0", "b/odd", "b/m0", *(f"c/m{number}" for number in range(1, 12))]
    written = write_recipe(PickRequest("who/base"))
    assert written.checkpoints == ("a/m0", *(f"c/m{number}" for number in range(1, 8)))
    assert [each.label for each in written.left_out] == ["b/odd", "b/m0"]
    published.known = []
    with pytest.raises(UsageError, match="the hub knows no quantization"):
        write_recipe(PickRequest("who/other"))
    with pytest.raises(UsageError, match="is no hub id"):
        write_recipe(PickRequest(str(tiny)))


def test_the_model_is_the_one_that_the_cards_name(published: Hub) -> None:
    published.changed = {
        "who/merged": Published(COMMIT, 1, bases=("who/one", "who/two")),
        "who/gptq": Published(COMMIT, 1, bases=("who/base",)),
    }
    published.absent = {"who/gone"}
    assert base_of(("./folder", "who/gone", "who/merged", "who/gptq")) == "who/base"
    assert base_of(("who/gptq/m.Q8_0.gguf",)) == "who/base", "a file has the card of its repository"
    with pytest.raises(UsageError, match="--of MODEL: the card of 'who/merged' names who/one, who/two"):
        base_of(("who/merged",))
    with pytest.raises(UsageError, match="no hub id is among them"):
        base_of(("./folder",))
    with pytest.raises(UsageError, match="name checkpoints to compare"):
        PickRequest(None)


def test_the_disk_must_hold_the_model_what_is_kept_of_it_and_a_checkpoint(
    published: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "_download_bytes", lambda *given: 5 * 10**8)
    request = PickRequest(str(tiny), ("who/gptq",), disk_bytes=15 * 10**8)
    with pytest.raises(UsageError, match=r"takes 1.0 GB, and the disk may take 1.0 GB more"):
        write_recipe(request)  # it would hold the two, and not the baseline's reference beside them
    with pytest.raises(UsageError, match=r"takes 1.0 GB, and the disk may take 0.9 GB more"):
        write_recipe(replace(request, disk_bytes=14 * 10**8))
    assert write_recipe(replace(request, disk_bytes=16 * 10**8)).checkpoints == ("who/gptq",)


def test_what_an_earlier_pick_measured_is_told_apart(published: Hub, tiny: Path) -> None:
    path = write_recipe(PickRequest(str(tiny), ("who/gptq",))).path
    base = Variant(
        ModelRef("m", "m", "0", "directory", "m"), MethodRef("none", 1, {}, "none", "none"), "transformers", "decoder"
    )
    refs = [ModelRef(f"who/{name}", name, "0", "hub", "", revision=COMMIT) for name in ("gptq", "awq")]
    found = [base, *(replace(base, method=replace(base.method, name="checkpoint", published=ref)) for ref in refs)]
    assert measured_earlier(found, path) == ["who/awq"]


def test_the_pick_is_served_by_what_reads_its_format() -> None:
    gguf = ModelRef("m.gguf", "m", "0", "gguf", "/models/a b/m.gguf")
    assert serving(gguf) == "llama-server --model '/models/a b/m.gguf'"
    deleted = replace(gguf, id="who/gguf/more/m [v2].gguf", revision=COMMIT)
    assert serving(deleted) == (
        f"hf download who/gguf 'more/m [v2].gguf' --revision {COMMIT} --local-dir gguf"
        " && llama-server --model 'gguf/more/m [v2].gguf'"
    )
    repository = ModelRef("who/gptq", "gptq", "0", "hub", "/cache/x", revision=COMMIT)
    assert serving(repository) == f"vllm serve who/gptq --revision {COMMIT}"
    local = ModelRef("./m", "m", "0", "directory", "/models/m", native_quantization="compressed-tensors")
    assert serving(local) == "vllm serve /models/m"
    assert serving(replace(local, native_quantization="qharness-rtn")) is None


def test_the_unquantized_model_is_served_too_as_it_was_published() -> None:
    model = ModelRef("who/m", "m", f"who/m@{COMMIT}", "hub", "", revision=COMMIT)
    plain = Variant(model, MethodRef("none", 1, {}, "none", "none"), "transformers", "decoder")
    assert serving_variant(plain) == f"vllm serve who/m --revision {COMMIT}"
    assert serving_variant(replace(plain, model=replace(model, dequantize="fp8"))) is None
    made_here = MethodRef("rtn", 1, {"bits": 4}, "rtn bits=4", "checkpoint")
    assert serving_variant(replace(plain, method=made_here)) is None
