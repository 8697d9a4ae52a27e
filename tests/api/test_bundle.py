"""A bundle is results in one file: the same bytes for the same results, and nothing in it can be changed unseen."""

from __future__ import annotations

import csv
import io
import json
import shutil
import stat
import subprocess
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from imported_files import all_imported
from run_specs import changed
from typer.testing import CliRunner, Result

from harness.api import history, recommend, report
from harness.api.bundle import bundle
from harness.api.verify import verify
from harness.cli.app import app
from harness.core.job import VariantJob
from harness.errors import ExitCode, ResultsError, UsageError
from harness.recipe import load_recipe
from harness.report import code, derived_files, recommendation
from harness.report.derived_files import TABLE, unlike_tables, unlike_texts
from harness.storage import reading, summaries
from harness.storage.bundle import MANIFEST, SIGNATURE, write_bundle
from harness.storage.json_codec import decode_text
from harness.storage.reading import attempt_folders, read_records
from harness.storage.store import Store

EXAMPLE = Path(__file__).parents[2] / "results" / "example"
NAME = "example.qh.zip"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(EXAMPLE, tmp_path_factory.mktemp("made") / NAME).path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, files: Mapping[str, bytes]) -> Path:
    """A zip file with these files, as any program would write it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def resealed(path: Path, files: Mapping[str, bytes]) -> Path:
    """A bundle with a manifest of its own: whoever changes one on purpose can do that."""
    manifest = json.loads(files[MANIFEST])
    plain = sorted((name, content) for name, content in files.items() if name not in (MANIFEST, SIGNATURE))
    with path.open("w+b") as file:
        write_bundle(file, plain, manifest["made_by"], manifest["code"])
    return path


def wrong(path: Path) -> dict[str, str]:
    """What is not ok in a bundle, by its name there."""
    return {
        str(each.path).removeprefix(f"{path}/"): f"{each.state}: {each.reason}"
        for each in verify(path)
        if each.state not in ("ok", "not sealed")
    }


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_equal_results_give_equal_bytes_wherever_they_are(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "example"
    shutil.copytree(EXAMPLE, copy)
    for path in copy.rglob("*"):
        path.touch()
    assert bundle(copy.parent, tmp_path / "again.qh.zip").path.read_bytes() == made.read_bytes()


def test_records_are_named_by_their_recipes_wherever_they_are_and_read_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "two" / "other"
    shutil.copytree(EXAMPLE, tmp_path / "two" / "example")
    for folder in attempt_folders(EXAMPLE):
        record = next(each for each in read_records(EXAMPLE) if each.spec.run_id == folder.parent.name)
        Store(other.parent).save(replace(record, spec=replace(record.spec, recipe="other")))
    expected = {name for name in contents(made) if name.startswith("results/")}
    expected |= {name.replace("/example/", "/other/") for name in expected if not name.endswith("/log.txt")}
    read = []
    monkeypatch.setattr(reading, "decode_text", lambda *given: read.append(given) or decode_text(*given))
    found = contents(bundle(other.parent, tmp_path / "two.qh.zip").path)
    assert {name for name in found if name.startswith("results/")} == expected
    assert len(read) <= len(list(attempt_folders(other.parent)))
    shutil.copytree(EXAMPLE, tmp_path / "flat")  # a recipe's folder under another name
    assert contents(bundle(tmp_path / "flat", tmp_path / "flat.qh.zip").path).keys() == contents(made).keys()
    run = next(attempt_folders(tmp_path / "flat")).parent
    alone = contents(bundle(run, tmp_path / "run.qh.zip").path)
    assert {name for name in alone if name.startswith("results/")} < expected


def test_what_is_derived_lasts_until_code_changes_that_derives_it() -> None:
    """Gates of a recipe are in the key of what is compared by them: what reads recipes need not be the same."""
    made_by = (derived_files, recommendation, history, recommend, report)
    rooms = {path.partition("/")[0] for path in all_imported([each.__file__ for each in made_by])}
    assert rooms == {*summaries.CODE, *code.CODE}


def test_a_bundle_holds_every_file_of_every_record_and_is_whole(made: Path) -> None:
    found = contents(made)
    for folder in attempt_folders(EXAMPLE):
        for file in folder.iterdir():
            assert found[f"results/example/{folder.parent.name}/{folder.name}/{file.name}"] == file.read_bytes()
    assert {"contents.json", "report/report.csv", "report/report.html", "report/report.md"} <= found.keys()
    assert wrong(made) == {}
    ended = command("verify", made)
    assert ended.exit_code == ExitCode.OK, ended.output


def test_its_contents_name_models_and_texts_by_hash_and_the_versions_of_every_stack(made: Path) -> None:
    found = contents(made)
    about = json.loads(found["contents.json"])
    records = read_records(EXAMPLE)
    assert {model["content"] for model in about["models"]} == {each.spec.model.content for each in records}
    assert {text["sha256"] for text in about["texts"]} == {
        text.sha256 for each in records for text in each.spec.job.texts
    }
    assert about["stacks"].keys() == {"main"}
    (lock,) = (content.decode() for name, content in found.items() if name.startswith("locks/main-"))
    assert "torch==" in lock


def test_records_of_two_stacks_bring_the_locks_of_both(tmp_path: Path) -> None:
    llamacpp = {"python": "3.12.1", "llama-cpp-python": "0.3.99"}
    for number, record in enumerate(read_records(EXAMPLE)):
        if record.spec.kind == "quality" and number % 2:
            before = replace(record.outcome.before, software=llamacpp) if record.outcome.before else None
            record = replace(
                record,
                spec=changed(record.spec, stack="llamacpp"),
                outcome=replace(record.outcome, before=before, after=before),
            )
        Store(tmp_path / "both").save(record)
    found = contents(bundle(tmp_path / "both", tmp_path / NAME).path)
    assert json.loads(found["contents.json"])["stacks"].keys() == {"main", "llamacpp"}
    locks = {
        name.removeprefix("locks/").partition("-")[0]: text.decode() for name, text in found.items() if "locks/" in name
    }
    assert locks.keys() == {"main", "llamacpp"}
    assert "torch==" in locks["main"]
    assert locks["llamacpp"] == "# llamacpp, Python 3.12.1\nllama-cpp-python==0.3.99\n"


def test_a_lock_names_every_distribution_that_a_run_found(tmp_path: Path) -> None:
    record = read_records(EXAMPLE)[0]
    assert record.outcome.before is not None
    before = replace(record.outcome.before, installed={"torch": "2.13.0+cpu", "jinja2": "3.1.6"})
    Store(tmp_path / "one").save(replace(record, outcome=replace(record.outcome, before=before)))
    found = contents(bundle(tmp_path / "one", tmp_path / NAME).path)
    (lock,) = (text.decode() for name, text in found.items() if name.startswith("locks/"))
    assert "jinja2==3.1.6\n" in lock
    assert "numpy==" in lock, "and those that affect figures"
    (again,) = read_records(tmp_path / "one")
    assert again.outcome.before == before


def test_a_stack_whose_program_a_run_only_starts_has_a_lock_too(tmp_path: Path) -> None:
    """Such as that of the generator of a load on a server of another engine."""
    record = read_records(EXAMPLE)[0]
    assert record.outcome.before is not None
    beside = {"vllm": {"python": "3.12.1", "vllm": "0.25.0", "aiohttp": "3.14.0"}}
    before = replace(record.outcome.before, beside=beside)
    Store(tmp_path / "one").save(replace(record, outcome=replace(record.outcome, before=before)))
    found = contents(bundle(tmp_path / "one", tmp_path / NAME).path)
    (lock,) = (text.decode() for name, text in found.items() if name.startswith("locks/vllm-"))
    assert lock == "# vllm, Python 3.12.1\naiohttp==3.14.0\nvllm==0.25.0\n"
    (again,) = read_records(tmp_path / "one")
    assert again.outcome.before == before


def test_its_recipe_can_be_read_and_asks_what_the_records_answer(made: Path, tmp_path: Path) -> None:
    (tmp_path / "example.yaml").write_bytes(contents(made)["recipes/example.yaml"])
    recipe = load_recipe(tmp_path / "example.yaml")
    assert recipe.name == "example"
    named = {each.spec.method.name for each in read_records(EXAMPLE) if isinstance(each.spec.job, VariantJob)}
    assert {each.name for each in recipe.methods} == named


def test_a_recipe_that_may_leave_out_no_more_says_so(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = contents(made)["recipes/example.yaml"].decode()
    left_out = yaml.safe_load(whole).get("exclude", [])
    monkeypatch.setattr(derived_files, "MAX_EXCLUDED", len(left_out))
    text = dict(derived_files._recipes(list(read_records(EXAMPLE))))["recipes/example.yaml"]
    assert text.startswith("# 'exclude' holds")
    assert yaml.safe_load(text) == yaml.safe_load(whole)


def _edit(files: dict[str, bytes], name: str) -> None:
    files[name] = files[name] + b" "


def _remove(files: dict[str, bytes], name: str) -> None:
    del files[name]


def _add(files: dict[str, bytes], name: str) -> None:
    files["results/example/notes.txt"] = b"mine"


@pytest.mark.parametrize(
    ("change", "reason"), [(_edit, "not what"), (_remove, "missing"), (_add, "not in the manifest")]
)
def test_a_changed_missing_or_superfluous_file_is_refused_by_name(
    made: Path, tmp_path: Path, change: Callable[[dict[str, bytes], str], None], reason: str
) -> None:
    files = contents(made)
    name = next(name for name in files if name.endswith("record.json"))
    change(files, name)
    faulty = written(tmp_path / NAME, files)
    (found,) = wrong(faulty).items()
    assert found[0] == ("results/example/notes.txt" if change is _add else name)
    assert reason in found[1]
    ended = command("verify", faulty)
    assert ended.exit_code == ExitCode.GATE_FAILED
    assert found[0] in ended.stdout
    assert "repair" not in ended.stdout


def test_a_report_that_does_not_follow_from_the_records_is_refused_though_the_manifest_holds(
    made: Path, tmp_path: Path
) -> None:
    files = contents(made)
    rows = list(csv.reader(files[TABLE].decode().splitlines()))
    column = rows[0].index("perplexity")
    number = next(number for number, row in enumerate(rows) if number and row[column])
    rows[number][column] = str(float(rows[number][column]) * 0.99)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    files[TABLE] = table.getvalue().encode()
    found = wrong(resealed(tmp_path / NAME, files))
    assert found.keys() == {TABLE}
    assert f"row {number}, perplexity" in found[TABLE]
    files[TABLE] = contents(made)[TABLE].replace(b",rtn,", b",gptq,")
    assert wrong(resealed(tmp_path / NAME, files)).keys() == {TABLE}
    files = contents(made)
    files["report/report.md"] = files["report/report.md"].replace(b"int8", b"int9")
    files["report/extra.md"] = b"more"
    del files["contents.json"]
    assert wrong(resealed(tmp_path / NAME, files)).keys() == {"report/report.md", "report/extra.md", "contents.json"}


def test_a_record_that_was_edited_is_refused_by_its_own_seal(tmp_path: Path) -> None:
    for record in read_records(EXAMPLE):
        Store(tmp_path / "sealed").save(record)
    files = contents(bundle(tmp_path / "sealed", tmp_path / NAME).path)
    sealed = [name for name in files if name.endswith("record.json") and b'"seal"' in files[name]]
    files[sealed[0]] = files[sealed[0]].replace(b'"wall_s"', b'"wall_s" ')
    assert wrong(resealed(tmp_path / NAME, files)) == {}  # spaces say nothing
    files[sealed[0]] = files[sealed[0]].replace(b'"attempt": 1', b'"attempt": 2')
    (name,) = wrong(resealed(tmp_path / NAME, files))
    assert name == sealed[0].removesuffix("/record.json")


def test_what_other_code_derived_is_compared_by_its_numbers(made: Path, tmp_path: Path) -> None:
    files = contents(made)
    manifest = json.loads(files[MANIFEST])
    files[MANIFEST] = json.dumps({**manifest, "code": "another"}).encode()
    files["report/report.html"] = b"drawn in another way"
    found = wrong(resealed(tmp_path / NAME, files))
    assert found.keys() == {"report/report.html"}
    assert found["report/report.html"].startswith("not compared: other code made it")
    assert command("verify", tmp_path / NAME).exit_code == ExitCode.INCONCLUSIVE


def test_tables_of_other_code_may_differ_in_words_columns_and_the_last_digits() -> None:
    ours = b"variant,kl,new\nnone,0.25,1\n"
    assert unlike_tables(b"old,kl,variant\n7,0.2500000001,the baseline\n", ours) is None
    assert unlike_tables(b"kl\n0.26\n", ours) == "row 1, kl: 0.26, and 0.25 follows"
    assert unlike_tables(b'kl\n""\n', ours) == "row 1, kl: nothing, and 0.25 follows"
    assert unlike_tables(b"kl,method\n0.25,rtn\n", b"method,kl\ngptq,0.25\n") == "row 1, method: rtn, and gptq follows"
    assert unlike_tables(b"kl\n1e-17\n", b"kl\n0.0\n") is None
    with pytest.raises(ValueError, match="none of its columns"):
        unlike_tables(b"better\n7\n", ours)
    with pytest.raises(ValueError, match="1 cells"):
        unlike_tables(b"kl,variant\n0.25\n", ours)
    assert unlike_tables(b"kl\n0.25\n0.25\n", ours) == "2 rows, and 1 follow from the records"


def test_what_the_same_code_derived_differs_in_the_last_digits_of_numbers_alone() -> None:
    ours = b"rtn 8 bits\nkl 0.25 1e-05 of 1234567890\n"
    assert unlike_texts(b"rtn 8 bits\nkl 0.2500000001 1.0000000000000002e-05 of 1234567890\n", ours) is None
    for other in (ours.replace(b"0.25", b"0.26"), ours.replace(b"890", b"891"), ours.replace(b"kl", b"kL")):
        assert unlike_texts(other, ours) == "line 2 is not what follows"
    assert unlike_texts(ours.replace(b"rtn", b"awq"), ours) == "line 1 is not what follows"
    assert unlike_texts(ours[:10], ours) is not None
    assert unlike_texts(ours + b"0.5", ours) is not None


def test_a_file_among_the_records_that_belongs_to_none_is_refused(made: Path, tmp_path: Path) -> None:
    strangers = {"results/example/notes.txt": b"mine", "results/.hidden/record.json": b"{}"}
    attempt = next(name for name in contents(made) if name.endswith("record.json")).removesuffix("record.json")
    strangers[f"{attempt}more.txt"] = b"more"
    found = wrong(resealed(tmp_path / NAME, contents(made) | strangers))
    assert found == dict.fromkeys(strangers, "damaged: belongs to no record")


def _entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("../../outside.txt", 0o100644, "no name of a file inside a bundle"),
        ("/etc/passwd", 0o100644, "no name of a file inside a bundle"),
        ("results\\..\\outside.txt", 0o100644, "no name of a file inside a bundle"),
        ("C:/outside.txt", 0o100644, "no name of a file inside a bundle"),
        ("results/link", stat.S_IFLNK | 0o777, "is a link"),
        (MANIFEST, 0o100644, "is there twice"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_and_links_that_lead_out_are_refused_before_anything_is_read(
    made: Path, tmp_path: Path, name: str, mode: int, reason: str
) -> None:
    hostile = shutil.copy(made, tmp_path / NAME)
    with zipfile.ZipFile(hostile, "a") as archive:
        archive.writestr(_entry(name, mode), b"/etc/passwd")
    ended = command("verify", hostile)
    assert ended.exit_code == ExitCode.USAGE or isinstance(ended.exception, ResultsError)
    with pytest.raises(ResultsError, match=reason):
        list(verify(Path(hostile)))


def test_a_manifest_cannot_name_files_outside_either(made: Path, tmp_path: Path) -> None:
    files = contents(made)
    manifest = json.loads(files[MANIFEST])
    manifest["files"]["../outside.txt"] = {"bytes": 1, "sha256": "0" * 64}
    files[MANIFEST] = json.dumps(manifest).encode()
    with pytest.raises(ResultsError, match="no name of a file inside a bundle"):
        list(verify(written(tmp_path / NAME, files)))


def test_a_zip_bomb_is_refused_by_its_declared_size_and_a_lie_about_it_is_found(made: Path, tmp_path: Path) -> None:
    bomb = tmp_path / NAME
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(129):
            file.write(bytes(2**20))
    with pytest.raises(ResultsError, match="unpacks to 135266304 bytes"):
        list(verify(bomb))
    many = 64 * 2**20 + 12345
    content = bytearray(resealed(tmp_path / "lie.qh.zip", {**contents(made), "zeros": bytes(many)}).read_bytes())
    size = many.to_bytes(4, "little")
    place = content.rindex(size)  # in the directory at the end
    content[place : place + 4] = (10).to_bytes(4, "little")
    (tmp_path / "lie.qh.zip").write_bytes(content)
    tracemalloc.start()
    found = wrong(tmp_path / "lie.qh.zip")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.keys() == {"zeros"}
    assert "cannot be read" in found["zeros"]
    assert peak_bytes < many / 2, "no more than was declared is unpacked"


def test_broken_files_get_one_message(made: Path, tmp_path: Path) -> None:
    whole = made.read_bytes()
    for content in (b"", b"PK\3\4", whole[: len(whole) // 2], b"no zip file at all", whole[-3000:]):
        (tmp_path / NAME).write_bytes(content)
        with pytest.raises(ResultsError, match=NAME):
            list(verify(tmp_path / NAME))
    with pytest.raises(ResultsError, match="no such file"):
        list(verify(tmp_path / "missing.qh.zip"))
    with pytest.raises(ResultsError, match="a zip file without"):
        list(verify(written(tmp_path / NAME, {"a": b""})))
    manifest = json.dumps({**json.loads(contents(made)[MANIFEST]), "format": 2}).encode()
    with pytest.raises(ResultsError, match="format 2"):
        list(verify(written(tmp_path / NAME, {MANIFEST: manifest})))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.995])
def test_a_flipped_byte_is_named_or_refused(made: Path, tmp_path: Path, place: float) -> None:
    content = bytearray(made.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    (tmp_path / NAME).write_bytes(content)
    try:
        found = wrong(tmp_path / NAME)
    except ResultsError:
        return
    assert found


def test_what_cannot_be_bundled_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends with \.qh\.zip"):
        bundle(EXAMPLE, tmp_path / "example.zip")
    with pytest.raises(ResultsError, match="no such folder"):
        bundle(tmp_path / "nothing", tmp_path / NAME)
    copy = tmp_path / "example"
    shutil.copytree(EXAMPLE, copy)
    next(copy.rglob("record.json")).write_text("{}")
    with pytest.raises(ResultsError, match="whole records"):
        bundle(copy, tmp_path / NAME)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["example"]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("OpenSSH is not here")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", key], check=True)
    return key


def test_a_signature_says_who_made_a_bundle(tmp_path: Path, key: Path) -> None:
    path = bundle(EXAMPLE, tmp_path / NAME, sign_with=key).path
    signers = tmp_path / "signers"
    signers.write_text(f"me@example.org {key.with_suffix('.pub').read_text()}")
    (signed,) = (each for each in verify(path) if each.state == "signed")
    assert "SHA256:" in signed.reason
    assert "--signers" in signed.reason
    (signed,) = (each for each in verify(path, signers=signers) if each.state == "signed")
    assert "me@example.org" in signed.reason
    files = contents(path)
    forged = resealed(tmp_path / "forged.qh.zip", {**files, "report/report.md": b"better"})
    assert "signed" not in {each.state for each in verify(forged)}
    assert wrong(written(tmp_path / "kept.qh.zip", {**contents(forged), SIGNATURE: files[SIGNATURE]}))[SIGNATURE]
    (missing,) = (each for each in verify(forged, signers=signers) if str(each.path).endswith(SIGNATURE))
    assert missing.reason == "it is not signed"
    signers.write_text("")
    (unknown,) = (each for each in verify(path, signers=signers) if str(each.path).endswith(SIGNATURE))
    assert "does not list" in unknown.reason
    with pytest.raises(UsageError, match="no such file"):
        list(verify(path, signers=tmp_path / "missing"))
    with pytest.raises(UsageError, match="cannot sign"):
        bundle(EXAMPLE, tmp_path / "none.qh.zip", sign_with=tmp_path / "no key")
    with pytest.raises(UsageError, match="only bundles are signed"):
        verify(EXAMPLE, signers=signers)


def test_a_bundle_is_written_from_a_url(tmp_path: Path, made: Path) -> None:
    import fsspec

    root = "bundle-test/results"
    system = fsspec.filesystem("memory")
    for path in EXAMPLE.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/{root}/example/{path.relative_to(EXAMPLE).as_posix()}", path.read_bytes())
    assert bundle(f"memory://{root}", tmp_path / NAME).path.read_bytes() == made.read_bytes()


def test_zip_files_are_read_by_any_program(made: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(made.read_bytes())) as archive:
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = [name for name in archive.namelist() if name != MANIFEST]
        assert names == sorted(names)
