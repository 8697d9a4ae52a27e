"""No output of a real sweep names its user, home folder, host or tokens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from command_line import qharness

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

DRIVER = Path(__file__).with_name("support") / "private_sweep.py"
USER, HOST, TOKEN = "planted-alice", "planted-box", "planted/token+0123456789"
PLUGIN = """
import os, platform, warnings
from pathlib import Path
from typing import Any
from harness.core.method import Method, MethodParams, QuantizeJob
from harness.methods.rtn.rtn import RTN, RtnParams

class LeakyParams(MethodParams):
    fail: bool = False

def quantize(job: QuantizeJob[LeakyParams]) -> Any:
    home = Path.home()
    token, host = ((home / name).read_text() for name in (".token", ".host"))
    print(dict(os.environ), platform.node(), job.source, job.out, token)
    warnings.warn(f"{home}/cache on {host}: http://someone:planted-word@proxy/ said {token}")
    job.note("where", str(job.source))
    if job.params.fail:
        raise OSError(f"{home}/missing of {os.environ['USER']} on {host}: https://hub/x?token={token}")
    RTN.enable()
    rtn = RtnParams(bits=8, group_size=32)
    return RTN.quantize(QuantizeJob(rtn, job.source, job.out, job.device, job.dtype, job.seed, job.load))

LEAKY = Method(name="leaky", version=1, summary="tells", params=LeakyParams, quantize=quantize, enable=RTN.enable)
"""


def environment(home: Path) -> dict[str, str]:
    """The variables of the user with this home folder; of those of the tests only what Python needs."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "USER": home.name,
        "LOGNAME": home.name,
        "HF_TOKEN": TOKEN,
        "HTTPS_PROXY": "http://someone:planted-word@proxy:3128",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "PYTHONPATH": str(home / "plugins"),
        "PYTHONWARNINGS": "always",
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A planted user's project after a sweep and every command on its results."""
    home = tmp_path_factory.mktemp("homes") / USER
    project = home / "project"
    (project / "recipes").mkdir(parents=True)
    (project / ".git").mkdir()
    shutil.copytree(tiny, home / "models" / "tiny")
    plugins = home / "plugins"
    (plugins / "leaky.dist-info").mkdir(parents=True)
    (plugins / "leaky.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (plugins / "leaky.dist-info" / "entry_points.txt").write_text("[qharness.methods]\nleaky = leaky:LEAKY\n")
    (plugins / "leaky.py").write_text(PLUGIN)
    (home / ".token").write_text(TOKEN)
    (home / ".host").write_text(HOST)
    (project / "text.txt").write_text("One line of words for a model to read.\n" * 200)
    recipe = {
        "name": "private",
        "models": [{"id": "~/models/tiny", "dtype": "float32"}],
        "methods": ["none", {"leaky": {"fail": [False, True]}}],
        "measure": {"perplexity": {"text": "../text.txt", "context": 64, "windows": 2}, "memory": {}},
        "threads": 1,
        "device": "cpu",
    }
    (project / "recipes" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    recipe["models"] = [str(home / "absent")]
    (project / "recipes" / "wrong.yaml").write_text(yaml.safe_dump(recipe))
    subprocess.run([sys.executable, DRIVER, HOST], cwd=project, env=environment(home), check=True)
    return project


def planted(content: bytes) -> list[str]:
    """The planted words in an output."""
    if b"planted" not in content:  # as nearly always
        return []
    found = re.findall(rb"[^\s\"']{0,60}planted[-/%\\][^\s\"']{0,40}", content)
    return sorted({each.decode(errors="replace") for each in found})


def outputs(project: Path) -> list[Path]:
    """Every file that the commands wrote, except those that only MLflow's own store needs to find itself."""
    cache = project.parent / ".cache" / "qharness"
    files = [file for folder in (project, cache) for file in folder.rglob("*") if file.is_file()]
    written = [file for file in files if "recipes" not in file.relative_to(project.parent).parts[:2]]
    return [file for file in written if file.name != "meta.yaml"]


def test_the_sweep_did_what_it_should(project: Path) -> None:
    """Otherwise the other tests would search nothing."""
    first = sorted((project / "output").iterdir())[0].read_text()
    assert "exit 3" in first, first
    assert "3 ok, 1 failed, 1 unsupported" in first, first
    names = {file.name for file in outputs(project)}
    wanted = {
        "record.json",
        "log.txt",
        "outcome.json",
        "report.html",
        "report.md",
        "report.csv",
        "report.parquet",
        "summary.md",
    }
    assert wanted <= names
    logs = b"".join(file.read_bytes() for file in outputs(project) if file.name == "log.txt")
    for replaced in (b"'USER': '$USER'", b"~/cache on $HOST", b"said $HF_TOKEN", b"http://$SECRET@proxy"):
        assert replaced in logs


def test_no_output_holds_a_planted_word(project: Path) -> None:
    found = {
        str(file.relative_to(project.parent)): words
        for file in outputs(project)
        if (words := planted(file.read_bytes()))
    }
    assert found == {}


def test_no_evidence_or_table_holds_a_planted_word(project: Path) -> None:
    """Parquet is compressed, so its bytes say nothing."""
    tables = [file for file in outputs(project) if file.suffix == ".parquet"]
    assert len(tables) >= 3
    for file in tables:
        table = pq.read_table(file)
        whole = f"{table.to_pydict()} {table.schema} {table.schema.metadata}"
        assert planted(whole.encode()) == [], file


def test_a_project_in_another_home_folder_resumes(project: Path, tmp_path: Path) -> None:
    home = tmp_path / "bob"
    shutil.copytree(project.parent, home)
    planned = qharness("plan", "recipes/recipe.yaml", "--json", cwd=home / "project", env=environment(home))
    assert planned.returncode == 0, planned.stderr
    states = {f"{run['kind']} {run['method']}": run["state"] for run in map(json.loads, planned.stdout.splitlines())}
    assert states == {
        "quality none": "done",
        "quantize leaky": "done",
        "quality leaky": "done",
        "quantize leaky fail": "to do",
        "quality leaky fail": "to do",
    }
