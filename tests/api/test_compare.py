"""``qharness compare`` and ``baseline``, and the same from Python: what a word names, and exit codes."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from newer_records import make_newer
from run_specs import run_spec
from typer.testing import CliRunner, Result

import harness
from harness.analysis.regression.track import track
from harness.api.baselines import Baselines
from harness.api.results import read_named
from harness.cli.app import app
from harness.core.model import MethodRef, ModelRef
from harness.core.owner import current_owner
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.workload import PerplexityWorkload, TextRef
from harness.errors import ExitCode, RecipeError, ResultsError, StorageError, UsageError
from harness.figures.gate import shown, threshold
from harness.planning.validate import thresholds
from harness.plugins import gates as gated
from harness.recipe import load_recipe
from harness.storage.disk import Disk
from harness.storage.reading import read_records
from harness.storage.store import Store

RTN = MethodRef("rtn", 1, {"bits": 4}, "rtn", "on_load")
NLL = tuple(3 + 0.01 * window for window in range(12))


def record(session: str, damage: float = 0.0, method: MethodRef = RTN, **said: object) -> RunRecord:
    """A quality run of one variant; ``damage`` is what every window lost, more or less, in nats."""
    text = PerplexityWorkload(TextRef("demo", sha256="f" * 64), "gptq", 64, len(NLL))
    model = ModelRef("tiny", "tiny", "c" * 64, "directory", "/tiny")
    base = MethodRef("none", 1, {}, "none", "none")
    spec = run_spec("quality", "sweep", model, method, base, perplexity=text, **said)
    values = tuple(nat + damage * (1 + 0.05 * (-1) ** window) for window, nat in enumerate(NLL))
    items = tuple(map(str, range(len(NLL))))
    nll = Measurement("nll", 1, "nat/token", "lower", "paired", values, {"stride": 64}, (63.0,) * 12, items)
    return RunRecord(
        spec, Outcome("ok", measurements=(nll,)), session, int(session[1:]), f"2026-11-2{session[1:]}", 1.0
    )


def save(folder: Path, records: Sequence[RunRecord]) -> Path:
    for each in records:
        Store(folder).save(each)
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return save(tmp_path / "good", [record("s1")])


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    return save(tmp_path / "worse", [record("s2", 0.02)])


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)))

    return run


class TestCommand:
    def test_exit_codes(self, command, good: Path, worse: Path) -> None:
        assert command("compare", good, good).exit_code == ExitCode.OK
        regressed = command("compare", good, worse)
        assert regressed.exit_code == ExitCode.GATE_FAILED
        assert regressed.stdout.startswith("REGRESSED: 1 of 1 gate failed")
        assert command("compare", good, worse, "--gate", "perplexity=5%").exit_code == ExitCode.OK
        unmeasured = command("compare", good, good, "--gate", "decode=5%")
        assert unmeasured.exit_code == ExitCode.INCONCLUSIVE
        assert "gate decode was not evaluated: neither side measures it" in unmeasured.stdout

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("--gate", "perplexty=1%"), "unknown gate 'perplexty'; did you mean 'perplexity'?"),
            (("--gate", "perplexity"), "expected NAME=THRESHOLD"),
            (("--gate", "kl=1%"), "expected a number of nats"),
            (("--gate", "decode=0"), "measured with noise"),
            (("--gate", "decode=120%"), "less than 100%"),
            (("--gates", "absent.yaml"), "absent.yaml: no such file"),
        ],
    )
    def test_a_wrong_gate_is_told(self, command, good: Path, arguments: tuple[str, ...], expected: str) -> None:
        ended = command("compare", good, good, *arguments)
        assert isinstance(ended.exception, UsageError)
        assert expected in str(ended.exception)

    def test_it_writes_files_whole(self, command, good: Path, worse: Path, tmp_path: Path) -> None:
        """What the same command prints, which goes on with the end of the last line."""
        for name in ("json", "junit", "markdown", "terminal"):
            out = tmp_path / "made" / f"comparison.{name}"
            ended = command("compare", good, worse, "--format", name, "--out", out)
            assert ended.exit_code == ExitCode.GATE_FAILED
            assert f"written to {out}" in ended.stdout.replace("\n", "")
            printed = command("compare", good, worse, "--format", name).stdout
            assert out.read_text().rstrip("\n") == printed.rstrip("\n")
        assert json.loads((tmp_path / "made" / "comparison.json").read_text())["outcome"] == "regressed"
        assert Xml.fromstring((tmp_path / "made" / "comparison.junit").read_text()).get("failures") == "1"
        assert not list((tmp_path / "made").glob(".*"))  # nothing half-written is left beside them

    def test_a_recipe_names_the_gates(self, command, good: Path, worse: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("name: r\nmodels: [m]\nmethods: [none]\nmeasure: {memory: {}}\ngates: {perplexity: 5%}\n")
        assert thresholds(load_recipe(recipe)) == {"perplexity": 0.05}
        assert command("compare", good, worse, "--gates", recipe).exit_code == ExitCode.OK
        own = ("--gates", recipe, "--gate", "perplexity=1%")
        assert command("compare", good, worse, *own).exit_code == ExitCode.GATE_FAILED
        recipe.write_text("name: r\nmodels: [m]\nmethods: [none]\nmeasure: {memory: {}}\ngates: {perplexty: 5%}\n")
        with pytest.raises(RecipeError, match=r"recipe.yaml:5: gates: unknown gate 'perplexty'; did you mean"):
            thresholds(load_recipe(recipe))
        assert "recipe.yaml:5: gates: " in str(command("compare", good, worse, "--gates", recipe).exception)
        recipe.write_text("name: r\nmodels: [m]\nmethods: [none]\nmeasure: {memory: {}}\n")
        assert "names no gates" in str(command("compare", good, worse, "--gates", recipe).exception)

    def test_a_baseline_outlives_its_results(self, command, good: Path, worse: Path) -> None:
        assert command("baseline", "set", "main", good).exit_code == ExitCode.OK
        shutil.rmtree(good)
        assert command("compare", "main", worse).exit_code == ExitCode.GATE_FAILED
        assert "main  2026-11-21  1 runs of tiny: rtn" in command("baseline", "list").stdout
        assert "--replace" in str(command("baseline", "set", "main", worse).exception)
        command("baseline", "set", "main", worse, "--replace")
        assert command("compare", "main", worse).exit_code == ExitCode.OK
        command("baseline", "remove", "main")
        assert "no baselines" in command("baseline", "list").stdout
        assert "no baseline 'main'" in str(command("baseline", "remove", "main").exception)


class TestWords:
    def test_a_session_of_a_folder(self, tmp_path: Path) -> None:
        results = save(tmp_path / "results", [record("s1"), record("s2", 0.02)])
        found = harness.compare(f"{results}@s1", f"{results}@s2")
        assert found.exit_code is ExitCode.GATE_FAILED
        assert harness.compare("s1", "s2", results=results).exit_code is ExitCode.GATE_FAILED
        assert harness.compare(results, "s2", results=results).exit_code is ExitCode.OK  # the newest counts
        assert read_named(record("s1").spec.run_id[:9], results, tmp_path).records == read_records(results)

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            ("s", "2 sessions and runs in .* begin with s: s1, s2"),
            ("s3", "neither a folder, a baseline, nor a session or run in .*; sessions: s1, s2"),
        ],
    )
    def test_what_names_nothing_says_what_there_is(self, tmp_path: Path, word: str, expected: str) -> None:
        results = save(tmp_path / "results", [record("s1"), record("s2")])
        with pytest.raises(UsageError, match=expected):
            read_named(word, results, tmp_path / "baselines")

    def test_without_any_folder(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="neither a results folder nor a baseline"):
            read_named("main", tmp_path / "results", tmp_path / "baselines")

    def test_nothing_in_common(self, good: Path, tmp_path: Path) -> None:
        other = save(tmp_path / "other", [record("s1", method=MethodRef("fp8", 1, {}, "fp8", "on_load"))])
        with pytest.raises(ResultsError, match=r"nothing in common to compare: .*good has tiny × rtn .* × fp8"):
            harness.compare(good, other)


class TestHalfWritten:
    def test_the_rest_is_used_and_what_is_torn_is_told(self, good: Path, tmp_path: Path) -> None:
        torn = save(tmp_path / "torn", [record("s2"), record("s3", method=MethodRef("fp8", 1, {}, "fp8", "on_load"))])
        for path in torn.rglob("record.json"):
            if "fp8" in path.read_text():
                path.write_text(path.read_text()[:100])
        part = torn / "sweep" / "0123" / ".1.part"
        part.mkdir(parents=True)
        (part / "record.json").write_text("{")
        found = harness.compare(good, torn)
        assert found.exit_code is ExitCode.INCONCLUSIVE, "the torn record might have failed a gate"
        (damaged,) = found.head.damaged
        assert damaged.reason.startswith("record.json: not valid JSON")

    def test_lost_evidence_is_told(self, good: Path, tmp_path: Path) -> None:
        lost = save(tmp_path / "lost", [record("s2")])
        next(lost.rglob("evidence.parquet")).unlink()
        with pytest.raises(ResultsError, match=r"evidence\.parquet: no such file"):
            harness.compare(good, lost)

    def test_a_record_from_the_future_is_refused(self, good: Path, tmp_path: Path) -> None:
        future = save(tmp_path / "future", [record("s2"), record("s3")])
        path = next(future.rglob("record.json"))
        make_newer(path, 999)
        with pytest.raises(ResultsError, match="written by a newer qharness"):
            harness.compare(good, future)


class TestNotFinite:
    """A gate fails closed: beside NaN every threshold seems to hold."""

    @pytest.mark.parametrize("written", ["NaN", "Infinity"])
    @pytest.mark.parametrize("side", ["base", "head"])
    def test_a_record_with_it_is_named_and_nothing_passes(
        self, command, good: Path, tmp_path: Path, side: str, written: str
    ) -> None:
        sizes = Measurement("stored_bytes", 1, "byte", "lower", "exact", (100.0,), {"role": "linear", "part": "values"})
        plain = record("s1")
        outcome = replace(plain.outcome, measurements=(*plain.outcome.measurements, sizes))
        whole = save(tmp_path / "whole", [replace(plain, outcome=outcome)])
        other = save(tmp_path / "other", [record("s1"), replace(plain, outcome=outcome, attempt=2)])
        assert command("compare", whole, other).exit_code == ExitCode.OK
        path = next(path for path in other.rglob("record.json") if path.parent.name == "2")
        path.write_text(path.read_text().replace("100.0", written))
        sides = (other, whole) if side == "base" else (whole, other)
        reason = f"left out: {path.parent}: record.json: outcome.measurements.1.values.0 is not a finite number"
        for more in ((), ("--gate", "stored_bytes=0")):
            ended = command("compare", *sides, *more, "--format", "markdown")
            assert ended.exit_code == ExitCode.INCONCLUSIVE
            assert "UNDECIDED: no gate failed; " in ended.stdout
            assert reason in ended.stdout.replace("\\_", "_")
        assert reason in command("history", other, "--format", "markdown").stdout.replace("\\_", "_")
        assert isinstance(command("baseline", "set", "main", other).exception, ResultsError)
        assert not (tmp_path / "baselines").exists()

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("kept", [0, 1])
    def test_no_verdict_is_good_beside_it(self, bad: float, kept: int) -> None:
        """Of every gate, in memory, on one side or on both."""
        sizes = {
            "stored_bytes": {"role": "linear", "part": "values"},
            "parameters": {"role": "linear"},
            "coverage": {},
            "checkpoint_file_bytes": {},
            "kv_cache_bytes_per_token": {"batch_size": 1, "prompt_tokens": 8, "new_tokens": 2, "decode_mode": "eager"},
        }

        def having(value: float) -> RunRecord:
            plain = record("s1")
            counts = [Measurement(name, 1, "byte", "lower", "exact", (value,), said) for name, said in sizes.items()]
            nll = replace(plain.outcome.measurements[0], values=(*NLL[:-1], value))
            return replace(plain, outcome=replace(plain.outcome, measurements=(nll, *counts)))

        broken, whole = having(bad), having(3.0)
        base, head = (broken, broken) if kept == 0 else (whole, broken)
        gates = {name: figure.gate.default for name, figure in gated().items()}
        found = track([base], [head], gates)
        told = {finding.metric: finding.verdict for finding in found.gated}
        metrics = ("perplexity", "stored_bytes", "bits_per_weight", "checkpoint_bytes", "kv_cache", "coverage")
        assert {told[name] for name in metrics} == {"incomparable"}
        assert all("measured NaN or infinity" in finding.reasons[0] for finding in found.gated)
        assert found.outcome == "undecided"
        assert found.exit_code is ExitCode.INCONCLUSIVE
        good = track([whole], [whole], {name: gates[name] for name in metrics})
        assert good.outcome == "passed"


class TestBaselines:
    @pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b"])
    def test_a_name_is_one_plain_word(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="cannot name a baseline"):
            Baselines(tmp_path).set(name, [record("s1")])

    def test_records_that_measure_nothing_are_no_baseline(self, tmp_path: Path) -> None:
        with pytest.raises(ResultsError, match="none of these records measures a variant"):
            Baselines(tmp_path).set("main", [replace(record("s1"), spec=run_spec("prepare"))])

    def test_only_what_counts_is_kept_and_comes_back_as_it_was(self, tmp_path: Path) -> None:
        kept = Baselines(tmp_path)
        kept.set("main", [record("s1"), record("s2", 0.1)])
        assert kept.read("main").records == (record("s2", 0.1),)
        assert not list(tmp_path.rglob("log.txt"))

    def test_what_a_killed_command_left_is_removed_and_what_lives_stays(self, tmp_path: Path) -> None:
        dead = replace(current_owner(), start=1)
        gone = [tmp_path / f".main.{dead}.part", tmp_path / f".main.old.{dead}-0a.removed"]
        stay = [tmp_path / f".other.{current_owner()}.part", tmp_path / ".mine.part"]
        for folder in (*gone, *stay):
            (folder / "sweep").mkdir(parents=True)
        Baselines(tmp_path).set("main", [record("s1")])
        assert sorted(tmp_path.iterdir()) == sorted([*stay, tmp_path / "main"])

    def test_a_full_disk_leaves_the_former_one_and_no_part(self, tmp_path: Path) -> None:
        class Full(Disk):
            def _write(self, path: Path, content: bytes) -> None:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

        Baselines(tmp_path).set("main", [record("s1")])
        with pytest.raises(StorageError, match="No space left"):
            Baselines(tmp_path, Full()).set("main", [record("s2", 0.1)], replace=True)
        assert list(tmp_path.iterdir()) == [tmp_path / "main"]
        assert Baselines(tmp_path).read("main").records == (record("s1"),)

    def test_one_inside_a_results_folder_is_not_read_as_results(self, good: Path) -> None:
        Baselines(good / ".baselines").set("main", [record("s2", 1.0)])
        assert len(read_records(good)) == 1


class TestThresholds:
    @pytest.mark.parametrize(
        ("name", "written", "value"),
        [
            ("perplexity", "0.5%", 0.005),
            ("perplexity", 0.005, 0.005),
            ("kl", "1e-3", 0.001),
            ("accuracy", "1 %", 0.01),
            ("stored_bytes", 0, 0.0),
        ],
    )
    def test_as_users_write_them(self, name: str, written: object, value: float) -> None:
        assert threshold(gated(), name, written) == pytest.approx(value)

    @pytest.mark.parametrize("written", [True, None, "much", "-1%", -0.1, float("nan"), float("inf"), [1]])
    def test_what_is_no_threshold(self, written: object) -> None:
        with pytest.raises(ValueError, match="perplexity: "):
            threshold(gated(), "perplexity", written)

    def test_every_default_is_one_that_could_be_written(self) -> None:
        for name, figure in gated().items():
            default = figure.gate.default
            assert threshold(gated(), name, shown(figure, default).removesuffix(" nat")) == pytest.approx(default)
