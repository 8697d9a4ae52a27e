"""Pins with hashes: only files that are listed are installed, by uv and by pip."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli.app import app
from harness.errors import UsageError
from harness.stacks import Stack, StackDefinition, Stacks, build, stack_definition
from harness.stacks.build import create, remove_obsolete
from harness.stacks.pins import IF_REQUIRED, LIBRARY, LOCAL, missing, read_pins

ZERO = "sha256:" + "0" * 64
LIB = "oldlib==0.1"


def wheel(folder: Path, name: str, version: str, requires: Sequence[str] = ()) -> str:
    """Makes a real wheel of one module; returns its hash."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in requires)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder that both installers take for the index, and the hashes of what is in it.

    The local build of ``base`` requires ``rarely``, which its build on the index does not.
    """
    index = tmp_path / "index"
    index.mkdir()
    for name, value in {
        **{"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null"},
        **{"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(index), "UV_NO_CONFIG": "1"},
    }.items():
        monkeypatch.setenv(name, value)
    return {
        "base==1.0+here": wheel(index, "base", "1.0+here", ["rarely; python_version > '3'", "never; extra == 'x'"]),
        "rarely==2.0": wheel(index, "rarely", "2.0"),
        LIB: wheel(index, "oldlib", "0.1", ["base"]),
    }


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "pip":
        monkeypatch.setattr(build, "uv_command", list)
    elif not build.uv_command():
        pytest.skip("needs uv, of the extra 'dev'")
    return name


@pytest.fixture
def stack_of(tmp_path: Path) -> Callable[[dict[str, str]], Stack]:
    """The stack with these pins."""

    def made(hashes: dict[str, str]) -> Stack:
        lines = {name: f"{name} \\\n    --hash={value}\n" for name, value in hashes.items()}
        text = f"# A test.\nbase==1.0 \\\n    --hash={ZERO}\n"  # what the index has is not on this machine
        text += (
            f"{IF_REQUIRED}\n{lines.get('rarely==2.0', '')}{LOCAL}\n{lines['base==1.0+here']}{LIBRARY}\n{lines[LIB]}"
        )
        (tmp_path / "small.txt").write_text(text, encoding="utf-8")
        definition = StackDefinition("for this test", LIB, "oldlib", tmp_path / "small.txt")
        return Stack("small", definition, tmp_path / "stacks" / "small-0")

    return made


@pytest.mark.heavy
def test_what_is_listed_is_installed(
    hashes: dict[str, str], installer: str, stack_of: Callable[[dict[str, str]], Stack]
) -> None:
    stack = stack_of(hashes)
    said: list[str] = []
    create(stack, said.append)
    assert said[0].startswith(f"creating stack small with {installer}")
    assert not any("no hashes" in line for line in said)
    found = stack.read_versions()
    assert found.items() >= {"base": "1.0+here", "rarely": "2.0", "oldlib": "0.1"}.items()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("installer", "tampered"),
    [
        ("uv", LIB),
        *(pytest.param("uv", name, marks=pytest.mark.thorough) for name in ("base==1.0+here", "rarely==2.0")),
        pytest.param("pip", LIB, marks=pytest.mark.thorough),
        *(pytest.param("pip", name, marks=pytest.mark.slow) for name in ("base==1.0+here", "rarely==2.0")),
    ],
    indirect=["installer"],
)
def test_a_file_with_another_hash_is_refused(
    hashes: dict[str, str], installer: str, stack_of: Callable[[dict[str, str]], Stack], tampered: str
) -> None:
    stack = stack_of({**hashes, tampered: ZERO})
    with pytest.raises(UsageError, match=r"'small' was not created: a downloaded file is not one of those that small"):
        create(stack, lambda line: None)
    assert stack.find_state() == "missing"
    assert not stack.folder.exists()


@pytest.mark.heavy
@pytest.mark.thorough
def test_a_package_that_is_required_and_not_pinned_is_named(
    hashes: dict[str, str], stack_of: Callable[[dict[str, str]], Stack]
) -> None:
    del hashes["rarely==2.0"]
    stack = stack_of(hashes)
    with pytest.raises(UsageError, match=r"small.txt does not pin rarely, which .*qharness stack lock small"):
        create(stack, lambda line: None)
    assert stack.find_state() == "missing"


@pytest.mark.parametrize(
    "line",
    [
        "x==1.0",
        f"x>=1.0 --hash={ZERO}",
        "x==1.0 --hash=md5:00",
        f"x==1.0 --hash={ZERO} --index-url=http://evil.example",
        "--index-url http://evil.example",
        "-r other.txt",
        f"http://evil.example/x.whl --hash={ZERO}",
    ],
)
def test_only_exact_versions_with_hashes_are_pins(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pins.txt"
    path.write_text(f"{LIB} --hash={ZERO}\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"pins.txt: .* is not NAME==VERSION with --hash=sha256"):
        read_pins(path, LIB)


def test_the_library_is_pinned_once(tmp_path: Path) -> None:
    path = tmp_path / "pins.txt"
    for times in (0, 2):
        path.write_text(f"x==1 --hash={ZERO}\n" + f"{LIB} --hash={ZERO}\n" * times, encoding="utf-8")
        with pytest.raises(UsageError, match=f"those of oldlib==0.1 {times} times; expected once"):
            read_pins(path, LIB)


def test_extras_of_what_is_required_are_required_too() -> None:
    installed = {
        "Torch": ["Tool_kit[blas]==1; sys_platform != 'none'", "absent; python_version < '3'"],
        "tool-kit": ["nvidia.blas; extra == 'blas'", "nvidia-fft; extra == 'fft'", "torch"],
    }
    assert missing(installed) == {"nvidia-blas"}


def test_folders_of_other_pins_are_shown_and_removed(tmp_path: Path) -> None:
    stacks = Stacks(tmp_path / "stacks")
    current, old = stacks.find("autoawq").folder, stacks.root / "autoawq-0123456789ab"
    for folder in (current, old, stacks.root / "autoawq-notes"):
        folder.mkdir(parents=True)
    shown = CliRunner().invoke(app, ["stack", "list", "--cache", str(tmp_path)]).output
    assert "made from other pins too: autoawq; qharness stack remove autoawq --obsolete" in shown
    assert remove_obsolete(stacks, "autoawq") == [old]
    assert current.exists()
    assert not old.exists()
    assert "other pins" not in CliRunner().invoke(app, ["stack", "list", "--cache", str(tmp_path)]).output


def test_what_builds_a_library_is_pinned_with_hashes() -> None:
    for name in ("autoawq", "autogptq", "autoround", "llamacpp"):
        definition = stack_definition(name)
        pins = read_pins(definition.requirements, definition.library)
        assert "setuptools" in {pin.name for pin in pins.packages}
