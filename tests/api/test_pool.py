"""Results of several people: bundles are read like folders, merged, and their figures laid side by side."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from run_specs import changed, run_spec
from typer.testing import CliRunner, Result

import harness
from harness.analysis.pooling import independent
from harness.analysis.pooling import pool as pooled
from harness.api.bundle import bundle
from harness.api.merge import merge
from harness.api.pool import pool
from harness.cli.app import app
from harness.core.job import MeasureQuality
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Measurement, Outcome, RunRecord
from harness.core.workload import ThroughputWorkload
from harness.errors import ExitCode, ResultsError, UsageError
from harness.storage.reading import read_records
from harness.storage.store import Store

NONE = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
ITEMS = tuple(f"{number:02}" for number in range(40))
GRID = ThroughputWorkload((1,), (8,), 4, 1, 3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quality(session: str, noise: float = 0.0, shift: float = 0.0, content: str = "one", text: str = "1") -> RunRecord:
    model = ModelRef("m", "m", content, "directory", "/m")
    spec = run_spec("quality", "sweep", model, NONE, NONE)
    draw = np.random.default_rng(sum(map(ord, session)))
    values = np.random.default_rng(0).normal(3, 1, len(ITEMS)) + noise * draw.standard_normal(len(ITEMS)) + shift
    protocol = {"protocol": "gptq", "text_sha256": text * 64}
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", tuple(values), protocol, item_ids=ITEMS)
    return RunRecord(
        spec, Outcome("ok", measurements=(nll,)), session, 1, f"2026-01-01T00:00:{len(session):02}+00:00", 1
    )


def timed(session: str, speeds: tuple[float, ...], hardware: str = "A") -> list[RunRecord]:
    point = {"batch_size": 1, "prompt_tokens": 8, "new_tokens": 4, "decode_mode": "eager", "warmup": 1, "iterations": 3}
    records = []
    for number, speed in enumerate(speeds):
        spec = run_spec(
            "performance", "sweep", ModelRef("m", "m", "one", "directory", "/m"), NONE, NONE, throughput=GRID
        )
        step = Measurement("decode_step_s", 1, "s", "lower", "samples", (1 / speed,) * 3, point)
        spec = changed(spec, hardware=hardware, repetition=number)
        outcome = Outcome("ok", measurements=(step,))
        records.append(RunRecord(spec, outcome, session, 1, f"2026-01-01T00:01:{number:02}+00:00", 1))
    return records


def bundled(folder: Path, name: str, *records: RunRecord) -> Path:
    for each in records:
        Store(folder / name).save(each)
    return bundle(folder / name, folder / f"{name}.qh.zip").path


def test_a_run_that_several_sources_hold_is_measured_once() -> None:
    """A folder that was merged into another, and a copy, are no sources of their own."""
    mine, theirs = quality("mine", 0.001), quality("theirs", 0.001)
    both = [mine, replace(theirs, attempt=2)]
    places = [("both", both), ("theirs", [theirs]), ("mine", [mine]), ("copy", [mine])]
    found = independent(places, mine.spec.model.content_id)
    assert list(found) == ["both", "mine"]
    alone = pooled({"theirs": [theirs], "mine": [mine]}).figures
    assert alone
    assert [each.test for each in pooled(found).figures] == [each.test for each in alone]
    assert independent(places, "another model") == {}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_bundles_of_two_sessions_are_merged_and_read_like_folders(tmp_path: Path) -> None:
    mine, theirs = quality("mine", 0.001), quality("theirs", 0.001)
    one, two = bundled(tmp_path, "one", mine), bundled(tmp_path, "two", theirs)
    assert [step.action for step in merge([one, two], tmp_path / "all")] == ["copied", "renumbered"]
    merged = read_records(tmp_path / "all")
    assert {each.session for each in merged} == {"mine", "theirs"}
    assert [replace(each, attempt=1) for each in merged] == [mine, theirs]
    assert len(harness.load_results(one)) == 1
    assert {each.verdict for each in harness.compare(one, two).findings if each.metric == "perplexity"} == {"unchanged"}
    assert command("report", one, "--out", tmp_path / "reports").exit_code == ExitCode.OK


def test_a_bundle_that_was_changed_is_not_read(tmp_path: Path) -> None:
    path = bundled(tmp_path, "one", quality("mine"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("results/more.txt", b"more")
    with pytest.raises(ResultsError, match=r"results/more\.txt: is not in the manifest"):
        merge([path], tmp_path / "all")
    with pytest.raises(ResultsError, match=r"more\.txt"):
        harness.load_results(path)


def test_figures_stand_together_where_their_keys_agree_each_with_its_source(tmp_path: Path) -> None:
    sources = [bundled(tmp_path, name, quality(name, 0.01)) for name in ("one", "two", "three")]
    (found,) = (each for each in pool(sources).figures if each.metric == "perplexity")
    assert [each.session for each in found.sources] == ["one", "two", "three"]
    assert [Path(each.source).name for each in found.sources] == [path.name for path in sources]
    assert found.agreement == "agree within noise"
    assert found.test is not None
    assert found.test.mean.n == 3
    assert found.scale == "nat/token"


def test_sources_that_differ_by_more_than_their_noise_are_heterogeneous(tmp_path: Path) -> None:
    alike, apart = quality("alike", 0.01), quality("apart", 0.01, shift=0.02)
    sources = [bundled(tmp_path, "one", alike), bundled(tmp_path, "two", apart)]
    (found,) = (each for each in pool(sources).figures if each.metric == "perplexity")
    assert found.agreement == "heterogeneous"
    assert found.test is not None
    assert found.test.i_squared > 0.8
    ended = command("merge", *sources, "--into", tmp_path / "all", "--figures")
    assert ended.exit_code == ExitCode.OK, ended.output
    assert "heterogeneous" in ended.stdout
    assert "one.qh.zip" in ended.stdout


def test_a_copy_a_bundle_and_a_merge_of_both_are_no_second_source(tmp_path: Path) -> None:
    """Pooled with itself, a folder would agree with itself: its runs count in the source that is named first."""
    packed = bundled(tmp_path, "mine", quality("mine", 0.01))
    folder, copy, both = tmp_path / "mine", tmp_path / "copy", tmp_path / "both"
    shutil.copytree(folder, copy)
    theirs = bundled(tmp_path, "theirs", quality("theirs", 0.01))
    for _ in merge([folder, theirs], both):
        pass
    for twice in ([folder, copy], [folder, packed], [copy, packed, folder]):
        found = pool(twice)
        assert (found.figures, found.unlike) == ((), ())
        assert [(Path(each.source).name, Path(each.holder).name, each.runs, each.total) for each in found.shared] == [
            (path.name, twice[0].name, 1, 1) for path in twice[1:]
        ]
    alone = pool([folder, theirs])
    (expected,) = (each for each in alone.figures if each.metric == "perplexity")
    assert alone.shared == ()
    for sources, shared in (([folder, theirs, both], "both"), ([both, folder, theirs, copy], "theirs.qh.zip")):
        found = pool(sources)
        (perplexity,) = (each for each in found.figures if each.metric == "perplexity")
        assert len(perplexity.sources) == 2
        assert perplexity.test is not None
        assert expected.test is not None
        assert perplexity.test.p == pytest.approx(expected.test.p)
        assert Path(found.shared[0].source).name == shared


@pytest.mark.parametrize("order", [("mine", "copy", "theirs"), ("copy", "theirs", "mine")])
def test_a_run_that_its_owner_withdrew_counts_in_no_copy(tmp_path: Path, order: tuple[str, ...]) -> None:
    """As when the folders are merged; wherever the copy is named, and although its own record says that it is well."""
    mine = quality("mine", 0.01)
    bundled(tmp_path, "mine", mine)
    shutil.copytree(tmp_path / "mine", tmp_path / "copy")
    bundled(tmp_path, "theirs", quality("theirs", 0.01))
    Store(tmp_path / "mine").withdraw(mine, Failure("inputs", "InvalidRunError", "the text changed meanwhile"))
    places = [tmp_path / name for name in order]
    found = pool(places)
    assert (found.figures, found.unlike, found.shared) == ((), (), ())
    assert [(Path(each.source).name, Path(each.by).name, each.runs) for each in found.withdrawn] == [
        ("copy", "mine", 1)
    ]
    ended = command("merge", *places, "--into", tmp_path / "all", "--figures")
    said = " ".join(ended.stdout.split())
    assert f"not counted: {tmp_path / 'copy'}: 1 of its runs was withdrawn in {tmp_path / 'mine'}" in said
    assert "no figure was measured alike" in said


def test_of_sources_that_overlap_in_part_each_counts_with_what_it_alone_has(tmp_path: Path) -> None:
    mine, speeds = quality("mine", 0.01), timed("speeds", (100.0, 102.0, 101.0))
    one = bundled(tmp_path, "one", mine, *speeds)
    two = bundled(tmp_path, "two", mine, *timed("others", (101.0, 100.0, 103.0)))
    found = pool([one, two])
    assert {each.metric for each in found.figures} == {"decode"}
    assert {each.session for figure in found.figures for each in figure.sources} == {"speeds", "others"}
    assert [(Path(each.source).name, each.runs, each.total) for each in found.shared] == [("two.qh.zip", 1, 4)]
    ended = command("merge", one, two, "--into", tmp_path / "all", "--figures")
    assert f"counted once: {two}: 1 of its 4 current runs is in {one} too" in " ".join(ended.stdout.split())
    ended = command("merge", one, two, "--into", tmp_path / "again", "--figures", "--json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["runs"], line["total"]) for line in lines if line.get("counted_once")] == [(1, 4)]


def test_a_copy_that_went_on_is_not_incomparable_with_what_it_was_copied_from(tmp_path: Path) -> None:
    """It holds another text, and the text of its original too, although that does not count twice."""
    mine, more = quality("mine", 0.01), quality("more", 0.01, text="2")
    grown = bundled(tmp_path, "grown", mine, replace(more, spec=changed(more.spec, threads=3)))
    found = pool([bundled(tmp_path, "mine", mine), grown])
    assert (found.figures, found.unlike) == ((), ())
    assert [(each.runs, each.total) for each in found.shared] == [(1, 2)]


def test_what_is_bit_for_bit_the_same_needs_no_test(tmp_path: Path) -> None:
    same = [bundled(tmp_path, name, replace(quality("s"), session=name)) for name in ("one", "two")]
    (found,) = (each for each in pool(same).figures if each.metric == "perplexity")
    assert (found.agreement, found.test) == ("identical", None)


def test_another_text_or_model_stands_apart_and_the_difference_is_named(tmp_path: Path) -> None:
    records = {"one": quality("one"), "text": quality("text", text="2"), "model": quality("model", content="two")}
    sources = {name: bundled(tmp_path, name, record) for name, record in records.items()}
    for name, condition in (("text", "text_sha256"), ("model", "asked model")):
        found = pool([sources["one"], sources[name]])
        assert "perplexity" not in {each.metric for each in found.figures}
        (apart,) = (each for each in found.unlike if each.metric == "perplexity")
        assert [named for named, *_ in apart.differing] == [condition]
    ended = command("merge", sources["one"], sources["text"], "--into", tmp_path / "all", "--figures", "--json")
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["comparable"] for line in lines if line.get("metric") == "perplexity"] == [False]


def test_who_calls_a_model_or_a_method_otherwise_measured_the_same(tmp_path: Path) -> None:
    mine, theirs = quality("mine", 0.01), quality("theirs", 0.01)
    job = theirs.spec.job
    assert isinstance(job, MeasureQuality)
    named = replace(job.variant, model=replace(job.variant.model, label="theirs"), method=replace(NONE, label="plain"))
    theirs = replace(theirs, spec=replace(theirs.spec, job=replace(job, variant=named)))
    found = pool([bundled(tmp_path, "one", mine), bundled(tmp_path, "two", theirs)])
    (pooled,) = (each for each in found.figures if each.metric == "perplexity")
    assert len(pooled.sources) == 2
    assert found.unlike == ()


def test_what_two_sources_share_is_not_incomparable_because_one_has_more(tmp_path: Path) -> None:
    mine, theirs, more = quality("mine", 0.01), quality("theirs", 0.01), quality("further", 0.01, text="2")
    second = replace(more, spec=changed(more.spec, threads=3))
    found = pool([bundled(tmp_path, "one", mine), bundled(tmp_path, "two", theirs, second)])
    assert [len(each.sources) for each in found.figures if each.metric == "perplexity"] == [2]
    assert found.unlike == ()


def test_speeds_are_compared_on_one_class_of_machine_only(tmp_path: Path) -> None:
    one = bundled(tmp_path, "one", *timed("one", (100.0, 102.0, 101.0)))
    two = bundled(tmp_path, "two", *timed("two", (101.0, 100.0, 103.0)))
    slow = bundled(tmp_path, "slow", *timed("slow", (50.0, 51.0, 50.5)))
    other = bundled(tmp_path, "other", *timed("other", (100.0, 102.0, 101.0), hardware="B"))
    (found,) = (each for each in pool([one, two]).figures if each.metric.startswith("decode"))
    assert found.agreement == "agree within noise"
    (found,) = (each for each in pool([one, slow]).figures if each.metric.startswith("decode"))
    assert found.agreement == "heterogeneous"
    apart = pool([one, other])
    assert not [each for each in apart.figures if each.metric.startswith("decode")]
    (unlike,) = (each for each in apart.unlike if each.metric.startswith("decode"))
    assert [name for name, *_ in unlike.differing] == ["hardware"]


def test_nothing_is_written_into_a_bundle(tmp_path: Path) -> None:
    one, two = bundled(tmp_path, "one", quality("one")), bundled(tmp_path, "two", quality("two"))
    before = one.read_bytes()
    for words in (["merge", two, "--into", one], ["store", "pack", one]):
        ended = command(*words)
        assert isinstance(ended.exception, UsageError), ended.output
        assert "only read" in str(ended.exception)
    assert one.read_bytes() == before


def test_one_source_is_not_several(tmp_path: Path) -> None:
    path = bundled(tmp_path, "one", quality("one"))
    for sources in ([path], [path, path]):
        with pytest.raises(UsageError, match="two sources"):
            pool(sources)
