"""Code that a task's definition names runs only where the recipe trusts it; held against what lm-eval really runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from harness.api.plan import plan
from harness.cli.app import app
from harness.core.workload import TaskWorkload
from harness.errors import RecipeError, UnsupportedError
from harness.recipe import load_recipe
from harness.tasks import trust
from harness.tasks.catalog import catalog
from harness.tasks.definitions import load

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")

PLAIN = """\
task: endings
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "The {{{{subject}}}} was"
doc_to_choice: "{{{{endings}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
OWN = """
from pathlib import Path
Path({marker!r}).write_text("ran")
def questions(data):
    return data
def score(*given, **said):
    return 1.0
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with questions, and a module beside them that leaves a file where it is run."""
    rows = ({"subject": name, "endings": ["wide.", "old."], "answer": 0} for name in ("river", "road"))
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN.format(marker=str(tmp_path / "ran")), encoding="utf-8")
    return tmp_path


def plain(place: Path) -> str:
    return PLAIN.format(data=place / "q.jsonl")


def write(place: Path, text: str, name: str = "task.yaml") -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def recipe(tiny: Path, task: Path, **said: object) -> dict[str, object]:
    return {
        "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
        "methods": ["none"],
        "measure": {"tasks": [{"name": str(task), **said}]},
        "threads": 1,
    }


FUNCTION = "process_docs: !function own.questions\n"
CASES = {
    "a function": (lambda place: plain(place) + FUNCTION, 10),
    "in a list": (lambda place: plain(place).replace("metric: acc", "metric: !function own.score"), 9),
    "in a nested mapping": (lambda place: plain(place) + "filter_list:\n  - name: x\n    y: !function own.score\n", 12),
    "a class": (lambda place: "task: endings\nclass: !function own.Task\n", 2),
    "an installed module": (lambda place: plain(place) + "process_docs: !function os.path.join\n", 10),
    "a path": (lambda place: plain(place) + f"process_docs: !function {place / 'own'}.questions\n", 10),
    "an anchor": (lambda place: plain(place) + "metadata: &x {a: !function own.score}\ndescription: *x\n", 10),
    "a merge": (lambda place: "x: &x\n  process_docs: !function own.questions\n<<: *x\n" + plain(place), 2),
    "a member": (lambda place: "group: both\ntask:\n  - task: inline\n    doc_to_text: !function own.score\n", 4),
    "python": (lambda place: plain(place) + "doc_to_image: !!python/name:os.system\n", 10),
    "a metric of a hub": (lambda place: plain(place).replace("metric: acc", "metric: someone/metric"), 9),
    "a metric of a folder": (lambda place: plain(place).replace("metric: acc", f"metric: {place}/own.py"), 9),
    "evaluate's own": (lambda place: plain(place).replace("metric: acc", "metric: acc, hf_evaluate: true"), 9),
}


@pytest.mark.parametrize(
    "said",
    [
        "process_results: null\nmetric_list: [{metric: MODULE}]",
        "task: [{task: a, process_results: !function utils.x}, {task: b, metric_list: [{metric: MODULE}]}]",
        "metric_list: [{metric: MODULE, <<: {metric: acc}}]",
        "metric_list: [{metric: acc, <<: {metric: MODULE}}]",
    ],
)
def test_a_metric_of_ones_own_is_code_however_it_is_named(place: Path, said: str) -> None:
    """lm-eval looks a metric up where ``process_results`` is null, and of two spellings of a key takes one."""
    module = place / "own.py"
    found = trust.definition(write(place, f"group: g\n{said}\n".replace("MODULE", str(module))))
    assert any(f"the metric '{module}' is not lm-eval's" in each for each in found.code)


@pytest.mark.parametrize("name", CASES)
def test_code_is_refused_with_file_and_line_before_anything_runs(sweeps, tiny: Path, place: Path, name: str) -> None:
    make, line = CASES[name]
    path = write(place, make(place))
    written = sweeps.recipe(recipe(tiny, path))
    ended = CliRunner().invoke(app, ["run", str(written), "--results", str(place / "r"), "--cache", str(place / "c")])
    assert isinstance(ended.exception, RecipeError)
    assert ended.exception.exit_code == 2
    message = str(ended.exception)
    assert f"{path}:{line}: " in message
    assert "measure.tasks[0].name" in message
    assert "trust_task_code: true" in message
    assert not (place / "ran").exists()
    assert not (place / "r").exists()
    assert plan(load_recipe(sweeps.recipe(recipe(tiny, path, trust_task_code=True))))


@pytest.mark.parametrize("absolute", [False, True])
def test_code_in_what_is_included_is_found(sweeps, tiny: Path, place: Path, absolute: bool) -> None:
    deep = write(place, plain(place) + FUNCTION.replace("own.", "../own."), "inner/base.yaml")
    (place / "inner" / "own.py").write_text((place / "own.py").read_text())
    write(place, "include: inner/base.yaml\n", "middle.yaml")
    top = write(place, f"include: [{place / 'middle.yaml' if absolute else 'middle.yaml'}]\ntask: mine\n")
    with pytest.raises(RecipeError, match=rf"{deep}:10: !function "):
        plan(load_recipe(sweeps.recipe(recipe(tiny, top))))


def test_what_lm_eval_brings_is_trusted(sweeps, tiny: Path, place: Path) -> None:
    """Its definitions name functions of theirs; a user's may include one, and name a function of the package."""
    theirs = catalog().paths["hellaswag"]
    assert "!function" in theirs.read_text()
    top = write(place, f"include: {theirs}\ntask: mine\ntest_split: validation\n")
    named = write(
        place, plain(place) + "process_docs: !function lm_eval.tasks.hellaswag.utils.process_docs\n", "n.yaml"
    )
    scored = catalog().paths["squad_completion"]
    for path in (theirs, top, named, scored):
        assert trust.definition(path).code == ()
        assert plan(load_recipe(sweeps.recipe(recipe(tiny, path))))


def test_a_module_beside_the_definition_goes_before_lm_evals(place: Path) -> None:
    """As lm-eval itself looks them up: a folder called lm_eval is the user's."""
    write(place, OWN.format(marker=str(place / "ran")), "lm_eval/utils.py")
    path = write(place, plain(place) + "process_docs: !function lm_eval.utils.questions\n")
    (told,) = trust.definition(path).code
    assert f"{path}:10" in told
    load(TaskWorkload("endings", str(path), own="0", trust_task_code=True))
    assert (place / "ran").exists()


def test_every_definition_of_lm_evals_that_is_copied_is_seen_to_run_code(tmp_path: Path) -> None:
    """Held against lm-eval's own loader: a copy is code exactly where its loader meets a function."""
    from lm_eval.tasks import _yaml_loader

    met: list[str] = []
    folder = Path(lm_eval.__file__).parent / "tasks"
    chosen = [
        path for name in ("hellaswag", "gsm8k", "ifeval", "squadv2", "arc") for path in (folder / name).rglob("*")
    ]
    plainly = _yaml_loader._mk_function_ctor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _yaml_loader,
            "_mk_function_ctor",
            lambda base, resolve: lambda loader, node: met.append(plainly(base, False)(loader, node)),
        )
        for path in (path for path in chosen if path.suffix == ".yaml"):
            copy = shutil.copy(path, tmp_path / path.name)
            met.clear()
            _yaml_loader.load_yaml(copy, recursive=False)
            functions = [told for told in _own_code(Path(copy)) if "!function" in told]
            assert len(functions) == len(met), path


def _own_code(path: Path) -> tuple[str, ...]:
    """Of the file alone."""
    content = path.read_text(encoding="utf-8")
    path.write_text("".join(line for line in content.splitlines(True) if not line.startswith("include:")))
    return trust.definition(path).code


@pytest.mark.heavy
def test_trusted_code_runs_in_a_worker_and_untrusted_does_not(sweeps, tiny: Path, place: Path) -> None:
    path = write(place, plain(place) + FUNCTION)
    (record,) = sweeps.run(recipe(tiny, path, trust_task_code=True))
    assert record.status == "ok", record.outcome.failure
    assert (place / "ran").exists()
    (place / "ran").unlink()
    with pytest.raises(UnsupportedError, match=r"task\.yaml:10: !function own\.questions"):
        load(TaskWorkload("endings", str(path), own="0"))
    assert not (place / "ran").exists()


def test_a_template_reaches_no_function_of_python(place: Path) -> None:
    visible_until = "{{ cycler.__init__.__globals__.os.mkdir('" + str(place / "made") + "') }}"
    path = write(place, plain(place).replace("The {{subject}} was", visible_until))
    assert yaml.safe_load(path.read_text())["doc_to_text"] == visible_until
    with pytest.raises(Exception, match="unsafe"):
        load(TaskWorkload("endings", str(path), own="0"))
    assert not (place / "made").exists()


def test_trust_changes_no_question_and_has_no_effect_on_lm_evals_own(sweeps, tiny: Path, place: Path) -> None:
    path = write(place, plain(place))
    found = [
        next(run.spec for run in plan(load_recipe(sweeps.recipe(recipe(tiny, path, **said)))) if run.spec.task)
        for said in ({}, {"trust_task_code": True})
    ]
    assert [spec.task.trust_task_code for spec in found] == [False, True]  # type: ignore[union-attr]
    assert len({spec.run_id for spec in found}) == 1
    with pytest.raises(RecipeError, match="has no effect on a task that lm-eval brings"):
        plan(load_recipe(sweeps.recipe(recipe(tiny, Path("hellaswag"), trust_task_code=True))))


def test_a_definition_is_known_by_all_of_its_files(place: Path) -> None:
    """One file by its own sha256, as in records made before; several by all of theirs, wherever the folder lies."""
    from harness.storage.checksums import file_sha256

    alone = write(place, plain(place), "alone.yaml")
    assert trust.definition(alone).hash_content() == file_sha256(alone)
    base = write(place, plain(place), "base.yaml")
    top = write(place, "include: base.yaml\ntask: mine\ndoc_to_text: !function own.score\n")
    assert trust.definition(top).files == (top, base, place / "own.py")
    first = trust.definition(top).hash_content()
    moved = shutil.copytree(place, place.with_name("moved"))
    assert trust.definition(moved / "task.yaml").hash_content() == first
    for path in (base, place / "own.py"):
        before = path.read_text()
        path.write_text(before + "\n")
        assert trust.definition(top).hash_content() != first
        path.write_text(before)
    assert trust.definition(top).hash_content() == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task: x\nmetadata: [", r"task\.yaml:\d+: not valid YAML"),
        ("- task: x\n", r"names no 'task'|a task's definition is a mapping"),
        ("task: x\ninclude: absent.yaml\n", r"absent\.yaml: no such file"),
        ("task: x\ninclude: task.yaml\n", None),
        ("task: x\nmetadata: &a [*a]\n", None),
        ("group: x\ntask: &a [*a]\n", None),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_hangs(sweeps, tiny: Path, place: Path, text: str, expected) -> None:
    written = sweeps.recipe(recipe(tiny, write(place, text)))
    if expected is None:
        assert plan(load_recipe(written))
    else:
        with pytest.raises(RecipeError, match=expected):
            plan(load_recipe(written))
