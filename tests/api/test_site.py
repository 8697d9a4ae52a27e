"""``qharness site``: one page for each sweep and each model, brought up to date by the next build."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from run_specs import changed as with_hardware
from typer.testing import CliRunner

from harness.analysis.keyed import KeyedFigure, keyed_figures
from harness.api.bundle import bundle
from harness.api.pool import pool
from harness.api.results import NamedRecords, read_folder
from harness.api.site import KEPT, SiteBuild, write_site
from harness.cli.app import app
from harness.core.job import VariantJob
from harness.core.model import ModelRef
from harness.core.parts import with_parts
from harness.core.record import Failure, RunRecord
from harness.errors import ExitCode, HarnessError, ResultsError, UsageError
from harness.figures.table import VariantRow
from harness.report.agreement import agreement_numbers
from harness.report.page import page
from harness.report.renderers.html import SitePlace, html
from harness.storage.reading import attempt_folders, read_records
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The example twice, the second without one of its variants' runs: two sweeps of one model."""
    root = tmp_path_factory.mktemp("results")
    first, second = root / "first", root / "second"
    shutil.copytree(EXAMPLE, first)
    shutil.copytree(EXAMPLE, second)
    gone = next(run for run in read_records(second) if "nf4" in run.spec.title and run.spec.kind == "quality")
    for path in second.rglob(gone.spec.run_id):
        shutil.rmtree(path)
    return first, second


@pytest.fixture(scope="module")
def built(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SiteBuild]:
    out = tmp_path_factory.mktemp("built") / "site"
    return out, write_site(folders, out, "Ours")


def measured_again(folder: Path, session: str, hardware: str | None = None, factor: float = 1) -> Path:
    """The example as another session measured it, maybe on another machine, with losses of tokens times a factor."""
    for record in read_records(EXAMPLE):
        scaled = tuple(
            replace(each, values=tuple(factor * value for value in each.values)) if each.metric == "nll" else each
            for each in record.outcome.measurements
        )
        spec = record.spec if hardware is None else with_hardware(record.spec, hardware=hardware)
        outcome = replace(record.outcome, measurements=scaled)
        Store(folder).save(replace(record, spec=spec, outcome=outcome, session=session))
    return folder


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {KEPT}


def model_of(out: Path) -> Path:
    (path,) = (out / "models").glob("*.html")
    return path


def rows(records: list[RunRecord]) -> list[VariantRow]:
    return [row for table in page(records).tables for row in table.rows]


def test_every_sweep_and_every_model_has_a_page_and_no_link_is_broken(built: tuple[Path, SiteBuild]) -> None:
    out, site = built
    assert site.sweeps == ("first", "second")
    assert site.built == 2
    found = names(out)
    assert {"index.html", "sweeps/first.html", "sweeps/second.html"} < found
    assert len(found) == 4
    for name in found:
        for link in re.findall(r'href="([^"#]+)"', text_of(out / name)):
            assert ((out / name).parent / link).resolve().relative_to(out.resolve()).as_posix() in found, (name, link)


def test_a_long_table_names_a_file_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.report.renderers.html.MOST_STATIC", 1)
    whole = page(read_records(EXAMPLE))
    links = [
        set(re.findall(r'href="([^"#]*(?:csv|bundle|qhb|zip))"', html(whole, place)))
        for place in (None, SitePlace("Ours", ()), SitePlace("Ours", (), "one.bundle"))
    ]
    assert links == [{"report.csv"}, set(), {"../bundles/one.bundle"}]


def test_the_index_finds_a_sweep_by_its_variants(built: tuple[Path, SiteBuild], folders: tuple[Path, Path]) -> None:
    out, _ = built
    words = {
        name: unescape(found)
        for found, name in re.findall(
            r'data-words="([^"]*)"><th scope="row"><a href="sweeps/(\w+)\.html', text_of(out / "index.html")
        )
    }
    for folder in folders:
        for row in rows(read_records(folder)):
            assert row.status != "ok" or not row.runs_with_figures or row.label in words[folder.name]


def test_a_model_s_page_joins_what_two_sweeps_measured_alike(built: tuple[Path, SiteBuild]) -> None:
    out, _ = built
    text = text_of(model_of(out))
    lines = re.findall(r'<tr><th scope="row">Quality: Perplexity <code.*?</tr>', text, re.DOTALL)
    counts = [int(re.findall(r"<td>(\d+)</td>", line)[0]) for line in lines]
    assert sorted(counts)[0] == 1, "the variant whose run is gone"
    assert sorted(counts)[-1] == 2
    assert all(line.count("<circle") == count for line, count in zip(lines, counts, strict=True))
    (perplexity,) = {
        f"{row.perplexity.value:.4g}" for row in rows(read_records(EXAMPLE)) if row.is_baseline and row.perplexity
    }
    assert f">{perplexity}</a>" in lines[0]


def test_a_series_lists_its_sources_and_says_that_they_are_copies(built: tuple[Path, SiteBuild]) -> None:
    """Each source with its sweep, machine, day and value. Copies are one measurement, which nothing is tested with."""
    sources = re.findall(r'<tr class="sources">(.*?)</tr>', text_of(model_of(built[0])), re.DOTALL)
    assert len(sources) > 10
    records = read_records(EXAMPLE)
    (machine,) = {table.hardware for table in page(records).tables}
    (day,) = {each.started_at[:10] for each in records}
    for each in sources:
        assert re.findall(r"<summary>(.*?)</summary>", each)[0].startswith("2 sweeps"), each
        assert sorted(re.findall(r'<li><a href="../sweeps/(\w+)\.html">', each)) == ["first", "second"]
        assert each.count(f" · {machine} · {day} · ") == 2
        assert '<p class="soft">' not in each
    assert "<summary>2 sweeps: copies</summary>" in sources[0]


def test_sources_that_differ_are_tested_as_for_merged_figures(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """And what was tested is known to the next build, which reads nothing."""
    other, out = measured_again(tmp_path / "other", "other", factor=1.01), tmp_path / "site"
    write_site([folders[0], other], out)
    text = unescape(text_of(model_of(out)))
    perplexities = [each for each in pool([folders[0], other]).figures if each.metric == "perplexity"]
    assert {each.agreement for each in perplexities} == {"heterogeneous"}
    for each in perplexities:
        assert f'<p class="soft">2 sources: {agreement_numbers(each)}</p>' in text
    assert text.count("<summary>2 sweeps: heterogeneous</summary>") >= len(perplexities)
    (out / "index.html").unlink()
    assert write_site([folders[0], other], out).written == (out / "index.html",)
    assert unescape(text_of(model_of(out))) == text


def test_of_many_sources_the_newest_of_each_machine_are_tested(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.analysis.pooling.MOST_INDEPENDENT", 2)
    again = measured_again(tmp_path / "again", "again", factor=1.01)
    third = measured_again(tmp_path / "third", "third", "another CPU")
    out = tmp_path / "site"
    write_site([folders[0], again, third], out)
    sources = re.findall(r'<tr class="sources">(.*?)</tr>', text_of(model_of(out)), re.DOTALL)
    of_three = [each for each in sources if "<summary>3 sweeps: " in each]
    assert of_three
    assert all("3 sweeps: identical</summary>" in each and '<p class="soft">2 sources' in each for each in of_three)


def test_a_run_that_was_withdrawn_at_one_place_counts_at_none(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Until the place that withdrew it is no part of the site any more."""
    mine, out = tmp_path / "mine", tmp_path / "site"
    shutil.copytree(EXAMPLE, mine / "example")
    assert write_site([folders[0], mine], out).built == 2
    counted = {name: text_of(out / name) for name in ("sweeps/first.html", "sweeps/mine.html")}
    gone = next(run for run in read_records(mine) if "nf4" in run.spec.title and run.spec.kind == "quality")
    Store(mine).withdraw(gone, Failure("inputs", "InvalidRunError", "the text changed meanwhile"))
    for _ in range(2):
        site = write_site([folders[0], mine], out)
        assert "the text changed meanwhile" in text_of(out / "sweeps" / "mine.html")
        assert "another place of this site has the same run as invalid" in text_of(out / "sweeps" / "first.html")
        lines = re.findall(r'<tr><th scope="row">Quality: Perplexity <code.*?</tr>', text_of(model_of(out)), re.DOTALL)
        assert [re.findall(r"<td>(\d+)</td>", line)[0] for line in lines] == ["2"] * (len(rows(read_records(mine))) - 1)
    assert (site.built, site.written) == (0, ()), "what it found is known to the next build"
    write_site([folders[0]], out)
    assert text_of(out / "sweeps" / "first.html") == counted["sweeps/first.html"]


def test_pages_show_the_keys_of_figures_that_may_stand_side_by_side(built: tuple[Path, SiteBuild]) -> None:
    """On the page of a sweep each column's; on that of the model the same. Rows of one table share them."""
    out, _ = built
    records = read_records(EXAMPLE)
    whole = page(records)
    keyed = keyed_figures(whole.tables, records)
    keys = {each.conditions.key for found in keyed.values() for each in found if each.figure.name == "perplexity"}
    (key,) = {each[:8] for each in keys}
    first = text_of(out / "sweeps" / "first.html")
    assert f"Comparability key: {key}." in first
    entry = rf'<dt>Quality: Perplexity <code title="{keys.pop()} [^"]*figure: perplexity[^"]*">{key}</code>.*?<dd>[^<]*'
    assert re.search(rf"{entry}text_sha256: ", first)
    assert first.count("text_sha256: ") == 1, "the figures of one measurement stand together"
    assert f'side by side.">{key}</code>' in text_of(model_of(out))


def test_a_variant_on_another_engine_is_compared_and_is_no_point_of_the_same_line() -> None:
    """What makes variants differ is no part of a key, and tells the lines of a model's page apart."""

    def on(engine: str) -> KeyedFigure:
        changed = [
            replace(each, spec=replace(each.spec, job=replace(job, variant=replace(job.variant, engine=engine))))
            if isinstance(job := each.spec.job, VariantJob)
            else each
            for each in read_records(EXAMPLE)
        ]
        found = keyed_figures(page(changed).tables, changed)
        return next(each for figures in found.values() for each in figures if each.figure.name == "perplexity")

    one, other = on("transformers"), on("llamacpp")
    assert one.conditions.key == other.conditions.key
    assert one.whole.key != other.whole.key


def test_a_redacted_site_names_no_folder_model_or_path_and_offers_no_bundle(tmp_path: Path) -> None:
    secret = tmp_path / "secret-project"
    shutil.copytree(EXAMPLE, secret)
    given = bundle(EXAMPLE, tmp_path / "their-secret.qh.zip").path
    label = read_records(EXAMPLE)[0].spec.model.label
    plain, out = tmp_path / "plain", tmp_path / "site"
    write_site([secret, given], plain)
    site = write_site([secret, given], out, redact=True)
    assert site.sweeps == ("example", "example-2")
    shown = {name: "".join(map(text_of, folder.rglob("*.html"))) for name, folder in (("plain", plain), ("out", out))}
    for word in ("secret", label):
        assert word in shown["plain"]
        assert word not in shown["out"]
    assert "Redacted: paths" in text_of(out / "sweeps" / "example.html")
    assert not (out / "bundles").exists()
    assert write_site([secret, given], out, redact=True).built == 0
    assert write_site([secret], out, redact=True).built == 1, "numbers of names depend on all sweeps"
    assert write_site([secret, given], out).built == 2
    with pytest.raises(UsageError, match="--bundles"):
        write_site([secret], out, bundles=True, redact=True)


def test_models_of_a_redacted_site_have_a_number_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models are two, also in sweeps of their own, and one is one, also when a sweep comes before it later."""

    def read(location: Path) -> NamedRecords:
        def changed(part: object) -> ModelRef | None:
            other = isinstance(part, ModelRef) and location.name == "second"
            return replace(part, id="/their", label="their", content="other") if other else None

        found = read_folder(location)
        records = tuple(with_parts(record, changed) for record in found.records)
        return replace(found, records=records, seals=(), folder=None)

    first, second, out = tmp_path / "first", tmp_path / "second", tmp_path / "site"
    for folder in (first, second):
        shutil.copytree(EXAMPLE, folder)
    monkeypatch.setattr("harness.api.site.read_folder", read)
    for given in ((first,), (first, second), (second, first)):
        write_site(given, out, redact=True)
        named = re.findall(r'href="(models/[^"]+)">(model-[^<]+)</a>', text_of(out / "index.html"))
        assert sorted({label for _, label in named}) == ["model-1", "model-2"][: len(given)]
        assert len(set(named)) == len(given)


def test_a_second_build_writes_nothing(built: tuple[Path, SiteBuild], folders: tuple[Path, Path]) -> None:
    out, _ = built
    again = write_site(folders, out, "Ours")
    assert (again.built, again.written, again.removed) == (0, (), ())


def test_one_more_sweep_leaves_the_pages_of_others_as_they_are(
    built: tuple[Path, SiteBuild], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    third = tmp_path / "third"
    shutil.copytree(EXAMPLE, third)
    out = tmp_path / "site"
    shutil.copytree(built[0], out)
    more = write_site([*folders, third], out, "Ours")
    assert more.built == 1
    assert {path.relative_to(out).parts[0] for path in more.written} == {"sweeps", "models", "index.html"}
    assert out / "sweeps" / "third.html" in more.written
    assert not {out / "sweeps" / f"{name}.html" for name in ("first", "second")} & set(more.written)
    fewer = write_site(folders, out, "Ours")
    assert (fewer.built, fewer.removed) == (0, (out / "sweeps" / "third.html",))
    assert {name: text_of(out / name) for name in names(out)} == {
        name: text_of(built[0] / name) for name in names(built[0])
    }


@pytest.mark.heavy
def test_several_processes_build_the_same_pages(
    built: tuple[Path, SiteBuild], folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.api.site.LEAST_PER_PROCESS", 1)
    (tmp_path / "none").mkdir()
    skipped: list[str | Path] = []
    out, given = tmp_path / "site", [folders[0], tmp_path / "none", folders[1]]
    site = write_site(given, out, "Ours", on_skipped=lambda location, error: skipped.append(location), processes=2)
    assert skipped == [tmp_path / "none"]
    assert (site.sweeps, site.built) == (built[1].sweeps, 2)
    assert {path.relative_to(out) for path in site.written} == {path.relative_to(built[0]) for path in built[1].written}
    assert {name: text_of(out / name) for name in names(out)} == {
        name: text_of(built[0] / name) for name in names(built[0])
    }


def test_an_interrupted_build_goes_on_where_it_was(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.api.site as module

    read = module.read_folder

    def stopped(location: Path) -> object:
        if location == folders[1]:
            raise KeyboardInterrupt
        return read(location)

    out = tmp_path / "site"
    monkeypatch.setattr(module, "read_folder", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_site(folders, out)
    monkeypatch.undo()
    assert write_site(folders, out).built == 1


def test_a_bundle_is_offered_as_it_was_given(tmp_path: Path) -> None:
    given = bundle(EXAMPLE, tmp_path / "theirs.qh.zip").path
    out = tmp_path / "site"
    write_site([given], out)
    offered = out / "bundles" / "theirs.qh.zip"
    assert offered.read_bytes() == given.read_bytes()
    assert 'href="../bundles/theirs.qh.zip" download' in text_of(out / "sweeps" / "theirs.html")
    own = tmp_path / "own"
    write_site([EXAMPLE], own, bundles=True)
    assert (own / "bundles" / "example.qh.zip").read_bytes() == given.read_bytes()
    offered.unlink()
    assert write_site([given], out).built == 1, "a file that is gone is made again"


def test_each_recipe_of_a_folder_has_a_bundle_of_its_own(tmp_path: Path) -> None:
    folder, out = tmp_path / "both", tmp_path / "site"
    for recipe in ("one", "two"):
        for record in read_records(EXAMPLE)[:2]:
            Store(folder).save(replace(record, spec=replace(record.spec, recipe=recipe)))
    assert write_site([folder], out, bundles=True).sweeps == ("both--one", "both--two")
    alone = {name: bundle(folder / name, tmp_path / f"{name}.qh.zip").path.read_bytes() for name in ("one", "two")}
    assert alone["one"] != alone["two"]
    assert {name: (out / "bundles" / f"both--{name}.qh.zip").read_bytes() for name in alone} == alone
    with pytest.raises(ResultsError, match="no results of the recipe three"):
        bundle(folder, tmp_path / "three.qh.zip", recipe="three")


def test_damage_takes_the_bundle_of_its_own_recipe_and_is_said(tmp_path: Path) -> None:
    folder, out = tmp_path / "both", tmp_path / "site"
    for recipe in ("one", "two"):
        for record in read_records(EXAMPLE)[:2]:
            Store(folder).save(replace(record, spec=replace(record.spec, recipe=recipe)))
    broken = next(attempt_folders(folder / "one")) / "record.json"
    broken.write_bytes(broken.read_bytes()[:-100])
    ended = CliRunner().invoke(app, ["site", str(folder), "-o", str(out), "--bundles"])
    assert ended.exit_code == 0
    assert "no bundle of both--one: it has damaged attempts" in ended.output
    assert [each.name for each in (out / "bundles").iterdir()] == ["both--two.qh.zip"]
    assert "record.json" not in text_of(out / "sweeps" / "both--two.html")
    bundle(folder, tmp_path / "two.qh.zip", recipe="two")
    with pytest.raises(ResultsError, match="'qharness repair' may restore it"):
        bundle(folder, tmp_path / "one.qh.zip", recipe="one")


def test_a_bundle_of_one_recipe_of_many_reads_the_records_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site of a folder with 1,000 recipes would else read each record 1,000 times."""
    folder = tmp_path / "three"
    for recipe in ("one", "two", "three"):
        Store(folder).save(
            replace(read_records(EXAMPLE)[0], spec=replace(read_records(EXAMPLE)[0].spec, recipe=recipe))
        )
    asked: list[Path] = []
    monkeypatch.setattr("harness.api.bundle._recipe", lambda attempt: asked.append(attempt))
    monkeypatch.setattr("harness.api.bundle.read_folder", lambda results: asked.append(results))
    write_site([folder], tmp_path / "site", bundles=True)
    assert len(list((tmp_path / "site" / "bundles").iterdir())) == 3
    assert asked == []


def test_runs_of_two_recipes_in_one_folder_are_bundled_by_what_their_records_say(tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    for recipe, record in zip(("one", "two"), read_records(EXAMPLE), strict=False):
        own = Store(tmp_path / recipe).save(replace(record, spec=replace(record.spec, recipe=recipe)))
        shutil.copytree(own.parents[1], folder / own.parents[1].name)
    assert bundle(folder, tmp_path / "one.qh.zip", recipe="one").attempts == 1


def test_a_folder_that_cannot_be_bundled_is_said_and_the_others_are_built(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    twice, out = tmp_path / "twice", tmp_path / "site"
    shutil.copytree(folders[0], twice)
    attempt = next(iter(attempt_folders(twice)))
    shutil.copytree(attempt.parent, twice / "example" / attempt.parent.name)
    skipped: list[tuple[str | Path, HarnessError]] = []
    made = write_site([twice, folders[1]], out, bundles=True, on_skipped=lambda *each: skipped.append(each))
    assert made.sweeps == ("second",)
    ((location, error),) = skipped
    assert location == twice
    assert "holds an attempt twice" in str(error)
    assert (out / "bundles" / "second.qh.zip").is_file()
    (again,) = [write_site([twice, folders[1]], out, bundles=True, on_skipped=lambda *each: skipped.append(each))]
    assert again.built == 0
    assert len(skipped) == 2, "it is tried again each time"


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path) -> None:
    note = tmp_path / "README.md"
    note.write_text("no results")
    out = tmp_path / "site"
    ended = CliRunner().invoke(app, ["site", str(EXAMPLE), str(note), "-o", str(out)])
    assert ended.exit_code == ExitCode.GATE_FAILED
    assert "README.md" in ended.output
    assert (out / "sweeps" / "example.html").is_file()
    with pytest.raises(ResultsError, match="none of these can be read"):
        write_site([note], tmp_path / "empty")


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("my own")
    with pytest.raises(UsageError, match="no site of qharness"):
        write_site([EXAMPLE], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_a_spoiled_note_of_the_last_build_costs_time_and_deletes_nothing(tmp_path: Path) -> None:
    out, other = tmp_path / "site", tmp_path / "precious.html"
    other.write_text("mine")
    write_site([EXAMPLE], out)
    kept = out / KEPT
    kept.write_text(kept.read_text().replace('"example"', '"../precious"'))
    assert write_site([EXAMPLE], out).built == 1
    for spoiled in ("{", "[null, []]", '{"sweeps": {"example": null}, "models": {}}'):
        kept.write_text(spoiled)
        assert write_site([EXAMPLE], out).built == 1
    assert other.read_text() == "mine"
