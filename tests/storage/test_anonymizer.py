"""What is stored names no path, user, host or secret of the machine that wrote it, and ids do not change by that."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from run_specs import run_spec

import harness
from harness.core.job import JOBS, VariantJob
from harness.core.label import Fact, Label
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Fingerprint, Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.variant import Variant
from harness.core.workload import CalibrationRef, PerplexityWorkload, TaskWorkload, TextRef
from harness.storage import anonymizer as anonymizing
from harness.storage.anonymizer import Anonymizer
from harness.storage.json_codec import encode
from harness.storage.reading import read_records
from harness.storage.store import Store

TOKEN = "planted-token/0123+45"


def machine(home: str, login: str = "planted-alice", host: str = "planted-box.example.org") -> Anonymizer:
    """An anonymizer of a user whose home holds a repository, the recipe's folder in it, and the cache."""
    environment = {
        "HOME": home,
        "USER": login,
        "HOSTNAME": host,
        "HF_TOKEN": TOKEN,
        "TOKENIZERS_PARALLELISM": "falsely",
    }
    whole = Anonymizer.here(Path(home, "repo/recipes"), Path(home, ".cache/qharness"), environment)
    return replace(whole, places={**whole.places, f"{home}/repo": ".."})


PLANTED = machine("/home/planted-alice")


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("/home/planted-alice/repo/recipes/models/m.gguf", "models/m.gguf"),
        ("/home/planted-alice/repo/recipes", "."),
        ("/home/planted-alice/repo/data/x", "../data/x"),
        ("/home/planted-alice/models/x", "~/models/x"),
        ("/home/planted-alice", "~"),
        ("/home/planted-alice/.cache/qharness/quantize/0", "$QHARNESS_CACHE/quantize/0"),
        ("/srv/models/x", "/srv/models/x"),
        ("/scratch/planted-alice/x", "/scratch/$USER/x"),
        ("/scratch/planted-alice_models", "/scratch/$USER_models"),
        ("/home/planted-alice2/x", "/home/planted-alice2/x"),  # somebody else
        ("/mnt/home/planted-alice/x", "/mnt/home/$USER/x"),  # not below the home folder
        ("file:///home/planted-alice/x.", "file://~/x."),
        ("planted-alice on planted-box and planted-box.example.org", "$USER on $HOST and $HOST"),
        (f"401 for {TOKEN}", "401 for $HF_TOKEN"),
        ("GET /?t=planted-token%2F0123%2B45", "GET /?t=$HF_TOKEN"),
        ("TOKENIZERS_PARALLELISM is falsely", "TOKENIZERS_PARALLELISM is falsely"),
        ("http://someone:word@proxy:3128/", "http://$SECRET@proxy:3128/"),
        ("https://cdn/x?a=1&X-Amz-Signature=9f&b=2", "https://cdn/x?a=1&X-Amz-Signature=$SECRET&b=2"),
        ("hf_" + "a1" * 17, "$SECRET"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer $SECRET"),
        (f'File "{Path(harness.__file__)}", line 3', 'File "$HARNESS/__init__.py", line 3'),
    ],
)
def test_each_kind_of_detail_is_replaced(text: str, stored: str) -> None:
    assert PLANTED.message(text) == stored
    assert PLANTED.log(b"\xff " + text.encode()) == b"\xff " + stored.encode()


def test_a_common_name_is_replaced_only_where_it_is_a_name() -> None:
    common = machine("/home/user", login="user", host="vm")
    assert common.message("the user sets vm.overcommit") == "the user sets vm.overcommit"
    assert common.message("user@vm: /data/user/x http://vm:80/") == "$USER@$HOST: /data/$USER/x http://$HOST:80/"


def test_a_secret_is_its_value_without_the_end_of_its_line() -> None:
    someone = Anonymizer.here(environment={"QHARNESS_KEY": "planted-key-0123\r\n"})
    assert someone.message("401: planted-key-0123 is wrong") == "401: $QHARNESS_KEY is wrong"


def test_without_a_home_folder_nothing_is_replaced_by_its_absence() -> None:
    nobody = Anonymizer.here(environment={"HOME": "/"})
    assert nobody.message("/srv/x and / and a/b") == "/srv/x and / and a/b"


@given(
    st.lists(
        st.sampled_from(
            [
                *PLANTED.places,
                "planted-alice",
                "planted-box",
                TOKEN,
                "/",
                "x",
                " ",
                "@",
                "~",
                ".",
                "://",
                "?token=",
                "\n",
                ":",
            ]
        ),
        max_size=8,
    ).map("".join)
)
@example("//home/planted-alice/repo/recipes/tmp")
def test_stored_text_stays_as_it_is_when_it_is_stored_again(text: str) -> None:
    once = PLANTED.message(text)
    assert PLANTED.message(once) == once
    assert TOKEN not in once


def spec_at(home: str) -> RunSpec:
    """A run whose every part names a file in a home folder."""
    text = TextRef("t.jsonl", f"{home}/repo/recipes/t.jsonl", sha256="1" * 64)
    model = ModelRef(f"{home}/m", "m", "0" * 64, "directory", f"{home}/m")
    checkpoint = ModelRef(f"{home}/repo/q", "q", "2" * 64, "directory", f"{home}/repo/q")
    return run_spec(
        "task",
        model=model,
        method=MethodRef("checkpoint", 1, {"id": f"{home}/repo/q"}, "checkpoint q", "published", checkpoint),
        calibration=CalibrationRef(text, "concat", "auto", False, 4, 8, 0),
        task=TaskWorkload("own", f"{home}/own.yaml", own="3" * 64, data=text, fewshot_data=text),
    )


def test_ids_do_not_depend_on_the_machine() -> None:
    for home in ("/home/planted-alice", "/Users/bob"):
        spec = spec_at(home)
        stored = machine(home).spec(spec)
        assert home not in encode(stored)
        assert (stored.case_id, stored.run_id) == (spec.case_id, spec.run_id)
        assert stored.variant.key == spec.variant.key
        assert stored.variant.name_key == spec.variant.name_key
    assert machine("/home/planted-alice").spec(spec_at("/home/planted-alice")) == stored


@pytest.mark.parametrize("kind", JOBS)
def test_every_kind_of_run_is_stored_without_the_home_folder(kind: str) -> None:
    whole = spec_at("/home/planted-alice")
    text = whole.variant.calibration.text  # type: ignore[union-attr]
    scored = PerplexityWorkload(text, "gptq", 64, None)
    given = {
        "model": whole.model,
        "method": whole.method,
        "baseline": whole.method,
        "task": whole.task,
        "perplexity": scored,
        "evaluations": (scored,),
        "calibration": whole.variant.calibration,
    }
    of_variant = (Variant,) if issubclass(JOBS[kind], VariantJob) else ()
    own = {each.name for part in (JOBS[kind], *of_variant) for each in fields(part)}
    spec = run_spec(kind, **{name: value for name, value in given.items() if name in own})
    stored = PLANTED.spec(spec)
    assert "/home/" not in encode(stored)
    assert (stored.case_id, stored.run_id) == (spec.case_id, spec.run_id)


def test_a_hub_model_keeps_its_name() -> None:
    hub = ModelRef("planted-alice/m", "m", "planted-alice/m@0", "hub", "/home/planted-alice/.cache/huggingface/x")
    stored = PLANTED.spec(run_spec("quality", model=hub)).model
    assert (stored.id, stored.path) == ("planted-alice/m", "~/.cache/huggingface/x")


def found_on_a_machine() -> RunRecord:
    home = "/home/planted-alice"
    warned = f"{home}/lib.py: {TOKEN} on planted-box"
    print_ = Fingerprint(
        {"cpu": "x", "platform": "Linux-planted-box"},
        {"torch": f"2 {home}/torch"},
        {"load": 1.0},
        {"mine": f"1+{home}"},
        {"vllm": {"mine": f"1+{home}"}},
    )
    outcome = Outcome(
        "failed",
        Failure("load", "OSError", f"{home}/m: no file for planted-alice", warned),
        (
            Measurement(
                "m", 1, "", "lower", "paired", (1.0, 2.0), {"text": f"{home}/t"}, (), ("a", f"{home}:1"), (home, "c")
            ),
        ),
        labels=(Label("left_alone", {"modules": (f"{home}/k", "dense")}),),
        facts=(
            Fact("noted", {"name": "where", "value": f"{home}/x"}),
            Fact("noted", {"name": "k", "value": 1}),
        ),
        before=print_,
        after=print_,
    )
    return RunRecord(spec_at(home), outcome, "s", 1, "2026-01-01T00:00:00+00:00", 1.0)


def test_a_saved_record_and_its_log_name_nothing_of_the_machine(tmp_path: Path) -> None:
    record = found_on_a_machine()
    path = Store(tmp_path, PLANTED).save(record, f"{TOKEN} /home/planted-alice/x".encode())
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for planted in (b"/home/", b"planted-"):
        assert planted not in content
    (stored,) = read_records(tmp_path)
    assert stored.outcome.measurements[0].values == (1.0, 2.0)
    assert stored.outcome.measurements[0].item_ids == ("a", "~:1")
    assert stored.spec.run_id == record.spec.run_id
    Store(tmp_path, PLANTED).withdraw(stored, Failure("inputs", "E", "changed: /home/planted-alice/m"))
    (withdrawn,) = read_records(tmp_path)
    assert withdrawn.outcome.failure == Failure("inputs", "E", "changed: ~/m")


def test_a_repository_in_the_home_folder_is_found_and_a_home_that_is_one_is_not(tmp_path: Path) -> None:
    recipes = tmp_path / "home" / "repo" / "recipes"
    recipes.mkdir(parents=True)
    environment = {"HOME": str(tmp_path / "home")}
    (tmp_path / "home" / ".git").mkdir()
    model = str(tmp_path / "home" / "repo" / "m")
    assert Anonymizer.here(recipes, environment=environment).path(model) == "~/repo/m"
    (tmp_path / "home" / "repo" / ".git").mkdir()
    assert Anonymizer.here(recipes, environment=environment).path(model) == "../m"


def test_the_host_is_the_one_that_the_system_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anonymizing.platform, "node", lambda: "planted-node.lan")
    assert Anonymizer.here(environment={}).message("on planted-node") == "on $HOST"


def test_what_a_node_sends_keeps_the_paths_that_it_shares_and_not_its_own_cache(tmp_path: Path) -> None:
    own = f"{tmp_path}/own/quantize: missing; /shared/m"
    assert Anonymizer.for_nodes().message(own) == own
    assert Anonymizer.for_nodes(tmp_path / "own").message(own) == "$QHARNESS_CACHE/quantize: missing; /shared/m"
