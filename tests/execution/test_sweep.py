"""Sweeps: what is done is not done twice, and whatever becomes of a run, there is a record of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import COMMAND, qharness
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from harness import plugins as registry
from harness.cli.app import app
from harness.core.record import RunRecord
from harness.core.run import HourlyPrice
from harness.errors import ResultsError, UsageError
from harness.execution.events import Ended
from harness.storage.store import Store

pytestmark = pytest.mark.heavy(minutes=0.5)

FAULTY = Path(__file__).with_name("faulty_plugin")
ENDS = {
    "killed": "crashed",
    "abort": "crashed",
    "memory": "out_of_memory",
    "raise": "failed",
    "unsupported": "unsupported",
    "nothing": "invalid",
    "nan": "invalid",
    "nan-fact": "invalid",
    "reload": "invalid",
    "unprobed": "invalid",
}


@pytest.fixture(scope="module", autouse=True)
def faulty():
    """Makes the faulty method known here and in the workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAULTY)
        patch.setenv("PYTHONPATH", str(FAULTY))
        yield


def recipe(tiny: Path, methods: list[object], **changes: object) -> dict[str, object]:
    return {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "methods": methods,
        "measure": {"perplexity": {"context": 64, "windows": 2}},
        **changes,
    }


def words(sweeps, *options: str) -> list[str]:
    """The arguments of ``qharness`` that run the sweep's recipe."""
    places = ["--results", str(sweeps.store.root), "--cache", str(sweeps.cache.root)]
    return ["run", str(sweeps.folder / "recipe.yaml"), *places, *options]


def made(sweeps) -> list[str]:
    """The titles of the runs that the last sweep really made."""
    return [event.record.spec.title for event in sweeps.events if isinstance(event, Ended) and not event.reused]


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sweep_type) -> dict[str, RunRecord]:
    """One sweep in which everything goes wrong: for each fault, the first record that is not ok."""
    sweeps = sweep_type(tmp_path_factory.mktemp("faults"))
    records = sweeps.run(recipe(tiny, ["none", {"faulty": {"how": list(ENDS)}}], limits={"memory": "3GiB"}))
    found: dict[str, RunRecord] = {}
    for record in records:
        if record.status != "ok":
            found.setdefault(str(record.spec.method.params.get("how", "none")), record)
    return found


def by_title(records: tuple[RunRecord, ...]) -> dict[str, RunRecord]:
    return {record.spec.title: record for record in records}


@pytest.mark.parametrize("how", ENDS)
def test_every_end_is_told_apart_and_recorded(failures: dict[str, RunRecord], how: str) -> None:
    record = failures[how]
    assert record.status == ENDS[how], record.outcome.failure
    assert record.outcome.failure is not None
    assert record.outcome.failure.message


def test_the_sweep_goes_on_after_failures(failures: dict[str, RunRecord]) -> None:
    assert set(failures) == set(ENDS)  # the baseline is not among them


def test_a_failure_names_its_phase_and_keeps_the_end_of_the_log(failures: dict[str, RunRecord]) -> None:
    killed, raised = failures["killed"].outcome.failure, failures["raise"].outcome.failure
    assert killed is not None
    assert (killed.phase, killed.type) == ("quantize", "SIGKILL")
    assert "about to be killed" in killed.log_tail
    assert raised is not None
    assert (raised.phase, raised.type, raised.message) == ("quantize", "RuntimeError", "the library is unhappy")
    assert "Traceback" in raised.log_tail


def test_an_invalid_run_says_what_is_wrong(failures: dict[str, RunRecord]) -> None:
    messages = {how: failures[how].outcome.failure.message for how in ENDS}  # type: ignore[union-attr]
    assert "only 0.0% of the decoder's parameters are quantized" in messages["nothing"]
    assert "reloaded differs" in messages["reload"]
    assert messages["unprobed"] == "faulty returned no model and gave none to probe: nothing to compare with"
    assert messages["nan"] == "wrong scales: 384 of 384 in model.layers.1.mlp.up_proj.scale are NaN or infinite"


def test_experts_that_a_library_passes_over_make_the_run_invalid(sweeps) -> None:
    """A method declares that it quantizes the experts of this type, and leaves one of four."""
    shape = {"hidden_size": 64, "moe_intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes = {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 1, "vocab_size": 128}
    model = {"id": "synthetic:qwen3_moe", "label": "mixture", "config": {**shape, **sizes}}
    records = sweeps.run({"models": [model], "methods": [{"faulty": {"how": "partly"}}], "measure": {"memory": {}}})
    record = by_title(records)["performance faulty how=partly #1"]
    expert, attention = 3 * 64 * 32, 2 * 64 * 64 + 2 * 32 * 64
    share = (3 * expert + attention) / (4 * expert + attention)
    assert record.status == "invalid"
    assert record.outcome.failure is not None
    assert record.outcome.failure.message == (
        f"only {share:.1%} of the decoder's parameters are quantized; "
        "not: " + ", ".join(f"model.layers.0.mlp.experts.3.{name}" for name in ("down_proj", "gate_proj", "up_proj"))
    )


@pytest.mark.thorough
def test_no_library_quantizes_a_checkpoint_that_lacks_a_tensor(sweeps, tiny: Path, tmp_path: Path) -> None:
    """transformers would fill it with random numbers."""
    source, lacking = shutil.copytree(tiny, tmp_path / "lacking"), "model.layers.0.mlp.up_proj.weight"
    file = source / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != lacking}, file, {"format": "pt"})
    methods = ["rtn", "gptq", "llmc-rtn"]
    grouped = [{method: {"group_size": 32}} for method in methods]
    made = sweeps.run(recipe(source, ["none", *grouped], calibration={"samples": 2, "length": 32}))
    failures = {record.spec.method.name: record.outcome.failure for record in made if record.status == "failed"}
    assert failures.keys() == {"none", *methods}
    assert {lacking in failure.message for failure in failures.values()} == {True}


def test_what_is_not_finite_is_named_and_its_artifact_is_not_kept(failures: dict[str, RunRecord]) -> None:
    record = failures["nan-fact"]
    assert record.spec.kind == "quantize"
    assert record.outcome.failure.message == "facts: training_loss_last is not finite"  # type: ignore[union-attr]
    assert "training_loss_last" not in {fact.name for fact in record.outcome.facts}


def test_what_needs_a_failed_run_is_unsupported(sweeps, tiny: Path) -> None:
    records = sweeps.run(recipe(tiny, [{"faulty": {"how": "raise"}}]))
    (quality,) = [r for r in records if r.spec.title == "quality faulty how=raise"]
    assert quality.status == "unsupported"
    assert "no quantize: the library is unhappy" in quality.outcome.failure.message  # type: ignore[union-attr]


def working_in(cache: Path) -> str:
    """The processes that name this cache, as workers do and as what the faulty method starts does."""
    return subprocess.run(["pgrep", "-f", str(cache)], capture_output=True, text=True, check=False).stdout


def test_a_hang_is_ended_with_all_its_children(sweeps, tiny: Path) -> None:
    records = sweeps.run(recipe(tiny, [{"faulty": {"how": "hang"}}], limits={"time": "3s"}))
    (record,) = [r for r in records if r.spec.kind == "quantize"]
    assert record.status == "timeout"
    assert "time limit of 3 s" in record.outcome.failure.message  # type: ignore[union-attr]
    assert working_in(sweeps.cache.root) == ""


def test_a_second_run_redoes_only_what_is_missing(sweeps, tiny: Path, tmp_path: Path) -> None:
    cure = tmp_path / "cure"
    content = recipe(tiny, ["none", {"faulty": {"how": "killed", "marker": str(cure)}}])
    sweeps.recipe(content)
    first = CliRunner().invoke(app, words(sweeps))
    assert first.exit_code == 3, first.output
    assert "crashed" in first.stdout
    cure.touch()
    second = CliRunner().invoke(app, words(sweeps, "--json"))
    assert second.exit_code == 0, second.output
    ended = [line for line in map(json.loads, second.stdout.splitlines()) if line["event"] == "ended"]
    assert [line["kind"] for line in ended if not line["reused"]] == ["quantize", "quality"]
    assert [line["status"] for line in ended] == ["ok"] * 3
    statuses = [(r.attempt, r.status) for r in sweeps.store.read().records if r.spec.kind == "quantize"]
    assert statuses == [(1, "crashed"), (2, "ok")]
    third = sweeps.run(content)
    assert made(sweeps) == []
    assert [record.status for record in third] == ["ok"] * 3
    planned = CliRunner().invoke(app, ["plan", *words(sweeps, "--json")[1:]])
    assert [json.loads(line)["state"] for line in planned.stdout.splitlines()] == ["done"] * 3


def test_an_artifact_is_reused_by_another_recipe_and_made_again_when_evicted(sweeps, tiny: Path) -> None:
    import shutil

    content = recipe(tiny, [{"rtn": {"group_size": 32}}], exclude=[{"method": "none"}])
    title = "quantize rtn group_size=32"
    first = by_title(sweeps.run(content))
    other = by_title(sweeps.run({"name": "other", **content}))
    assert title not in made(sweeps)
    assert other[title].spec.run_id == first[title].spec.run_id
    assert other[title].outcome == first[title].outcome  # with what it cost when it was made
    assert other[title].spec.recipe == "other"
    shutil.rmtree(sweeps.cache.root / "quantize")
    sweeps.run(content)
    assert made(sweeps) == []  # nothing that is left needs it
    sweeps.run({**content, "measure": {"perplexity": {"context": 64, "windows": 3}}, "exclude": [{"method": "none"}]})
    assert made(sweeps) == ["quality none", title, "quality rtn group_size=32"]


@pytest.mark.thorough
def test_a_resumed_sweep_measures_the_baselines_speed_again(sweeps, tiny: Path) -> None:
    throughput = {"throughput": {"prompt_tokens": 8, "new_tokens": 2, "iterations": 1}}
    sweeps.run(recipe(tiny, ["none"], measure=throughput))
    records = sweeps.run(recipe(tiny, ["none", {"none": {"dtype": "bfloat16"}}], measure=throughput))
    assert made(sweeps) == ["performance none #1", "performance none dtype=bfloat16 #1"]
    machine, *timed = records
    assert (machine.spec.kind, machine.attempt) == ("machine", 1)
    assert len({record.session for record in timed}) == 1
    assert timed[0].attempt == 2


@pytest.mark.thorough
def test_another_price_budget_or_gate_is_recorded_and_nothing_is_measured_again(sweeps, tiny: Path) -> None:
    measure = {"memory": {}, "throughput": {"prompt_tokens": 8, "new_tokens": 2, "iterations": 1}}
    _, first = sweeps.run(recipe(tiny, ["none"], measure=measure))
    priced = {**measure, "memory": {"budget": "1GB"}}
    said = {"price": {"per_hour": 2, "currency": "EUR"}, "gates": {"decode": "5%"}}
    for content in (priced, priced):
        _, again = sweeps.run(recipe(tiny, ["none"], measure=content, **said))
        assert made(sweeps) == []
        assert again.attempt == 2  # once, not each time
    assert again.outcome == first.outcome
    assert (again.session, again.spec.run_id) == (first.session, first.spec.run_id)
    assert (again.spec.readers.budget_bytes, again.spec.readers.price) == (10**9, HourlyPrice(2.0, "EUR"))
    assert again.spec.readers.gates == {"decode": 0.05}
    assert [(m.metric, len(m.values)) for m in again.outcome.measurements if m.metric == "decode_step_s"]
    assert Store(sweeps.store.root).read().records[-1] == again


@pytest.mark.slow
def test_an_interrupt_leaves_whole_records_and_no_worker(sweeps, tiny: Path) -> None:
    """As users start it; by default tests/faults makes this and other endings of sweeps whose processes are forked."""
    sweeps.recipe(recipe(tiny, ["none", {"faulty": {"how": "hang"}}]))
    process = subprocess.Popen(
        [*COMMAND, *words(sweeps, "--json")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if '"name": "quantize"' in line:
            break
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait() == 130
    assert [record.status for record in Store(sweeps.store.root).read().records] == ["ok"]
    assert not list(sweeps.cache.root.rglob("*.part"))
    assert working_in(sweeps.cache.root) == ""


def test_a_plugin_that_fails_at_import_is_told(sweeps, tiny: Path) -> None:
    with pytest.raises(UsageError, match=r"methods\[0\]: the plugin 'faulty' fails at import: ModuleNotFoundError"):
        sweeps.run(recipe(tiny, ["broken"]))
    assert "broken" in registry.method_names()
    for arguments in (["list", "methods"], ["doctor"]):
        ended = qharness(*arguments)
        assert ended.returncode == 0
        assert "broken: the plugin 'faulty' fails at import" in " ".join(ended.stdout.split())


def test_results_that_cannot_be_a_folder_are_told(sweeps, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="cannot create the results folder"), Store(tmp_path / "file").locked("x"):
        pass


def test_records_say_what_machine_they_were_made_on(sweeps, tiny: Path) -> None:
    for record in sweeps.run(recipe(tiny, ["none"])):
        before, after = record.outcome.before, record.outcome.after
        assert before is not None
        assert after is not None
        assert before.hardware["cores"] == len(os.sched_getaffinity(0))
        assert before.software["torch"].startswith("2.")
        assert before.installed["pydantic-core"] == version("pydantic_core")
        assert (
            before.installed.items()
            >= {name: each for name, each in before.software.items() if name != "python"}.items()
        )
        assert after.installed == {}, "said once"
        assert before.hardware == after.hardware
