"""``qharness pick`` as a user runs it, with a hub on loopback that huggingface_hub asks as it asks the real one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from command_line import COMMAND
from hub_server import HubServer, Repository, hub_server, repository

from harness import load_results
from harness.api.pick import serving
from harness.core.model import ModelRef
from harness.errors import ExitCode, SourceError
from harness.execution.fetch import fetch_into
from harness.libraries import llamacpp
from harness.models.gguf.convert import convert
from harness.recipe import load_recipe
from harness.stacks import Stacks

pytestmark = pytest.mark.heavy(minutes=1)
ODD_NAME = "it's [v2] {a}, #1.Q4_0.gguf"
"""A file's name that means something else to a shell, to YAML and to a pattern."""
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def published(sweep_type: Any, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[HubServer]:
    """A model, two quantizations of it that were really made of it, and one in a format that nobody knows."""
    sweeps = sweep_type(tmp_path_factory.mktemp("made"))
    made = sweeps.run(
        {
            "models": [{"id": str(tiny), "dtype": "float32"}],
            "methods": [{"rtn": {"bits": [8, 4], "group_size": 32}}],
            "measure": {"memory": {}},
        }
    )
    folders = {
        f"who/tiny-w{record.spec.method.params['bits']}": sweeps.cache.folder("quantize", record.spec.run_id)
        for record in made
        if record.spec.kind == "quantize"
    }
    quantized = {
        name: repository(folder, "who/tiny", downloads) for downloads, (name, folder) in enumerate(folders.items())
    }
    files = {"config.json": b'{"quantization_config": {"quant_method": "steam"}}', WEIGHTS: b"?"}
    odd = repository(tiny, "who/tiny", 9)
    with hub_server({"who/tiny": repository(tiny), "who/odd": type(odd)(files, "who/tiny", 9), **quantized}) as hub:
        yield hub


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the hub's cache, the results and the harness's cache."""
    return tmp_path_factory.mktemp("place")


def start(hub: HubServer, place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_OFFLINE"))},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(place / "hf"),
        "QHARNESS_CACHE": str(place / "cache"),
        "QHARNESS_START": "",  # as users start it
    }
    return subprocess.Popen(
        [*COMMAND, "pick", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def served(command: str, hub: HubServer, place: Path) -> bytes:
    """The file that a command line gives to llama-server, for which a script stands in that copies it."""
    server = place / "bin" / "llama-server"
    server.parent.mkdir()
    server.write_text('#!/bin/sh\n[ "$1" = --model ] && cp "$2" served\n')
    server.chmod(0o755)
    programs = os.pathsep.join([str(server.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "PATH": programs, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(place / "hf")}
    subprocess.run(command, shell=True, cwd=place, env=variables, check=True)
    return (place / "served").read_bytes()


def on_disk(place: Path) -> dict[str, list[str]]:
    """The repositories of which files, or parts of some, are in the user's hub cache, and in one of the harness."""
    folders = {
        "user's": (place / "hf" / "hub").glob("models--*"),
        "own": (place / "cache").glob("downloads/.*/models--*"),
    }
    return {
        name: [
            each.name.removeprefix("models--").replace("--", "/")
            for each in found
            if any(each.glob("snapshots/*/*")) or any(each.glob("blobs/*"))
        ]
        for name, found in folders.items()
    }


@pytest.mark.thorough
def test_a_killed_pick_leaves_a_part_that_counts_for_nothing(published: HubServer, place: Path) -> None:
    """What another tool begins to download of the same repository meanwhile, in the hub's own cache, is not touched."""
    published.held.add(WEIGHTS)
    arguments = ("who/tiny-w8", "--of", "tiny", "--out", "killed.yaml")
    (place / "tiny").symlink_to(Path(__file__).parents[1] / "data" / "tiny-llama")
    command = start(published, place, *arguments)
    assert published.stopped.wait(600), command.communicate()[0]
    command.send_signal(signal.SIGKILL)
    command.wait()
    published.held.clear()
    assert on_disk(place) == {"user's": [], "own": ["who/tiny-w8"]}  # half of its weights
    commit = published.repositories["who/tiny-w8"].commit
    others = place / "hf" / "hub" / "models--who--tiny-w8" / "snapshots" / commit / "config.json"
    others.parent.mkdir(parents=True)
    others.write_bytes(published.repositories["who/tiny-w8"].files["config.json"])
    published.release.set()
    resumed = start(published, place, *arguments)
    output = resumed.communicate()[0]
    assert resumed.returncode == ExitCode.OK, output
    assert re.search(r"removed what interrupted sweeps left: .*, \d+ unfinished files? or folders?", output)
    assert on_disk(place) == {"user's": ["who/tiny-w8"], "own": []}
    assert [path.name for path in others.parent.iterdir()] == ["config.json"]
    frame = load_results(place / "results" / "pick-tiny")
    assert set(frame.status) == {"ok"}
    assert set(frame.method.dropna()) == {"none", "checkpoint tiny-w8"}
    assert "no server is known for the pick" in output


@pytest.mark.thorough
def test_what_the_hub_knows_of_a_model_is_downloaded_measured_and_deleted(published: HubServer, place: Path) -> None:
    command = start(published, place, "--of", "who/tiny", "--out", "found.yaml", "--results", "found")
    output = command.communicate()[0]
    assert command.returncode == ExitCode.OK, output
    recipe = load_recipe(place / "found.yaml")
    commits = {name: each.commit for name, each in published.repositories.items()}
    assert recipe.models[0].revision == commits["who/tiny"]
    assert [(each.params["id"], each.params["revision"]) for each in recipe.methods[1:]] == [
        (name, commits[name]) for name in ("who/tiny-w4", "who/tiny-w8")
    ]
    assert "who/odd" in output
    assert output.rstrip().endswith("next: qharness report found/pick-tiny")
    assert "who/tiny" in on_disk(place)["user's"]
    assert on_disk(place)["own"] == []
    frame = load_results(place / "found" / "pick-tiny")
    assert set(frame.status) == {"ok"}
    assert set(frame.method.dropna()) == {"none", "checkpoint tiny-w4", "checkpoint tiny-w8"}
    published.requests.clear()
    again = start(published, place, "--of", "who/tiny", "--out", "found.yaml", "--results", "found")
    assert again.wait() == ExitCode.OK
    assert published.requests == []  # the recipe names the commits, and every run is done


@pytest.mark.thorough
def test_a_bad_id_does_not_end_the_pick_and_its_exit_code_says_so(published: HubServer, place: Path) -> None:
    """The base is the one that the card names, and the disk must hold it and a checkpoint."""
    assert published.repositories["who/tiny-w8"].bytes > 200_000
    few = start(published, place, "who/none", "who/tiny-w8", "--disk", "0.0002GB")
    output = few.communicate()[0]
    assert few.returncode == ExitCode.USAGE, output
    assert "the disk may take" in output
    command = start(published, place, "who/none", "who/tiny-w8", "--results", "found")
    output = command.communicate()[0]
    assert command.returncode == ExitCode.RUNS_FAILED, output
    text = (place / "pick-tiny.yaml").read_text()
    assert "# Left out: who/none: " in text
    assert "id: who/tiny, " in text
    assert "measured before" in output or "checkpoint tiny-w8" in output


@pytest.mark.stack
def test_each_gguf_file_of_a_repository_is_measured_and_deleted(
    llamacpp_stacks: Stacks, llama_cpp: ModuleType, tiny: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.gguf"
    convert(tiny, plain, "float32")
    files = {}
    for kind, name in (("Q8_0", "m.Q8_0.gguf"), ("Q4_0", ODD_NAME)):
        llamacpp.quantize(plain, tmp_path / name, kind, 1, None, (), None)
        files[name] = (tmp_path / name).read_bytes()
    (tmp_path / "tiny").symlink_to(tiny)
    python = f"llamacpp={llamacpp_stacks.find('llamacpp').python}"
    with hub_server({"who/tiny-GGUF": Repository(files)}) as hub:
        command = start(
            hub,
            tmp_path,
            "who/tiny-GGUF",
            "--of",
            "tiny",
            "--engine",
            "llamacpp",
            "--python",
            python,
            "--budget",
            "1GiB",
        )
        output = command.communicate()[0]
        assert command.returncode == ExitCode.OK, output
        assert set(hub.downloaded("who/tiny-GGUF")) == set(files)
    assert on_disk(tmp_path) == {"user's": [], "own": []}
    frame = load_results(tmp_path / "results" / "pick-tiny")
    assert set(frame.status) == {"ok"}
    assert {f"checkpoint {name.removesuffix('.gguf')}" for name in files} < set(frame.method.dropna())
    assert "serve it: hf download who/tiny-GGUF " in output


def test_the_serve_command_gives_the_server_the_file_of_that_commit(tmp_path: Path) -> None:
    content = b"GGUF and what follows"
    with hub_server({"who/tiny-GGUF": Repository({ODD_NAME: content, "other.gguf": b"GGUF?"})}) as hub:
        commit = hub.repositories["who/tiny-GGUF"].commit
        ref = ModelRef(f"who/tiny-GGUF/{ODD_NAME}", "m", "0", "gguf", "", revision=commit)
        command = serving(ref)
        assert command is not None
        assert served(command, hub, tmp_path) == content
        asked = [each for each in hub.requests if "/resolve/" in each]
        assert set(asked) <= {f"{verb} /who/tiny-GGUF/resolve/{commit}/{ODD_NAME}" for verb in ("HEAD", "GET")}
        assert asked


def test_a_gguf_file_of_any_name_is_fetched_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"GGUF and what follows"
    with hub_server({"who/tiny-GGUF": Repository({ODD_NAME: content})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        ref = ModelRef(f"who/tiny-GGUF/{ODD_NAME}", "m", "0", "gguf", "", revision="a" * 40)
        fetch_into(tmp_path, ref)
        (fetched,) = tmp_path.glob("models--who--tiny-GGUF/snapshots/*/*")
        assert fetched.name == ODD_NAME
        assert fetched.read_bytes() == content
        with pytest.raises(SourceError, match="its repository has no such file at this commit"):
            fetch_into(tmp_path, replace(ref, id="who/tiny-GGUF/other.gguf"))
