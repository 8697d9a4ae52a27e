"""What is in the wheel and in the source distribution that a release uploads, and what they say of themselves."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = ROOT / ".github" / "workflows" / "release.yml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    ended = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(built / f"qharness-{PROJECT['version']}-py3-none-any.whl") as archive:
        yield archive


def committed(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_and_what_its_recipes_need(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    model = {f"harness/{name}" for name in committed("tests/data/tiny-llama")}
    recipes = {f"harness/{name}" for name in committed("recipes")}
    assert len(model) > 3
    assert len(recipes) > 3
    assert held >= committed("harness") | model | recipes
    assert all(name.startswith("harness/") for name in held)
    assert not any(name.startswith("harness/tests/") for name in held - model)


def test_paths_in_recipes_lead_to_files_of_the_wheel(wheel: zipfile.ZipFile) -> None:
    paths = [
        model["id"]
        for name in wheel.namelist()
        if name.startswith("harness/recipes/")
        for model in yaml.safe_load(wheel.read(name)).get("models", [])
        if model["id"].startswith("../")
    ]
    assert paths
    for path in paths:
        assert "harness/" + path.removeprefix("../") + "/config.json" in wheel.namelist()


def test_the_metadata_are_valid_and_describe_the_project(wheel: zipfile.ZipFile) -> None:
    folder = f"qharness-{PROJECT['version']}.dist-info"
    metadata = Metadata.from_email(wheel.read(f"{folder}/METADATA"), validate=True)
    assert metadata.name == "qharness"
    assert str(metadata.version) == PROJECT["version"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(metadata.provides_extra or []) == set(PROJECT["optional-dependencies"])
    assert "qharness = harness.cli:main" in wheel.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_the_source_distribution_builds_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    with tarfile.open(built / f"qharness-{PROJECT['version']}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, capture_output=True, check=True)
    (again,) = tmp_path.glob("*.whl")
    assert again.read_bytes() == (built / again.name).read_bytes()
    assert wheel.testzip() is None


def test_the_changelog_has_a_section_for_this_version_or_an_open_one() -> None:
    """A release moves the open section under its version; no other order of the two can be released."""
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## [")]
    assert headings[0].startswith(("## [Unreleased]", f"## [{PROJECT['version']}]"))


def test_the_release_holds_no_secret_and_publishes_what_it_tested() -> None:
    workflow = yaml.safe_load(RELEASE.read_text(encoding="utf-8"))
    assert "secrets." not in RELEASE.read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    publish = workflow["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])
    run = "\n".join(step["run"] for step in workflow["jobs"]["build"]["steps"] if "run" in step)
    for command in ("hatchling build", "twine check", "tests/test_wheel.py tests/test_installed.py"):
        assert command in run
