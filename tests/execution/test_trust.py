"""Code that comes with a checkpoint runs only where the recipe trusts that checkpoint, and sees no token even then."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from harness.api.plan import plan
from harness.core.record import RunRecord
from harness.errors import RecipeError
from harness.host.compilers import worker_path
from harness.recipe import load_recipe
from harness.stacks import variables
from harness.stacks.variables import compiled_kernels, for_fetching, for_workers

CODE = """
import json, os, pathlib
marker = pathlib.Path({marker!r})
marker.with_name(marker.name + "-{what}").write_text(json.dumps(dict(os.environ)))
from transformers import {base}
class Own({base}):
    pass
"""
SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HUGGING_FACE_HUB_TOKEN": "hf_secret",
    "HUGGINGFACE_TOKEN": "hf_secret",
    "AWS_ACCESS_KEY_ID": "aws",
    "AWS_SECRET_ACCESS_KEY": "aws",
    "OPENAI_API_KEY": "sk-1",
    "GITHUB_TOKEN": "ghp_1",
    "DATABASE_URL": "postgres://me:secret@host",
    "HTTPS_PROXY": "http://me:secret@proxy",
    "PIP_INDEX_URL": "https://me:secret@index",
    "UV_DEFAULT_INDEX": "https://me:secret@index",
    "QHARNESS_SECRET": "mine",
    "CUDA_API_KEY": "x",
    "TORCH_PASSWORD": "x",
    "MLFLOW_TRACKING_PASSWORD": "x",
}
NEEDED = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F",
    "OMP_WAIT_POLICY": "passive",
    "QHARNESS_SHARED": "/shared",
    "GPTQMODEL_CPU_WORKERS": "2",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_DEBUG_CPU_TYPE": "5",
    "CXX": "g++",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, **NEEDED}.items():
        monkeypatch.setenv(name, value)


PARTS = {
    "tokenizer_config.json": ("AutoTokenizer", [None, "own_tokenizer.Own"], "tokenizer", "PreTrainedTokenizerFast"),
    "config.json": ("AutoConfig", "own_config.Own", "config", "LlamaConfig"),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny: Path, sweep_type) -> Path:
    """What the harness itself quantized: for others a published checkpoint."""
    sweeps = sweep_type(tmp_path_factory.mktemp("quantized"))
    content = {
        "models": [{"id": str(tiny), "dtype": "float32"}],
        "methods": [{"rtn": {"bits": 8, "group_size": 32}}],
        "measure": {"perplexity": {"context": 64, "windows": 1}},
    }
    made = next(record for record in sweeps.run(content) if record.spec.kind == "quantize")
    assert made.status == "ok", made.outcome.failure
    return sweeps.cache.folder("quantize", made.spec.run_id)


def with_code(folder: Path, marker: Path, *names: str) -> Path:
    """Has a checkpoint bring classes of its own, which leave a file where they are run."""
    for name in names:
        kind, place, what, base = PARTS[name]
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "auto_map": {kind: place}}), encoding="utf-8")
        code = CODE.format(marker=str(marker), what=what, base=base)
        (folder / f"own_{what}.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture
def stranger(quantized: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint that somebody else published, with code in it."""
    return with_code(shutil.copytree(quantized, tmp_path / "stranger"), tmp_path / "ran", "tokenizer_config.json")


def measured(sweeps, base: Path, trusted: bool, windows: int = 2, **published: object) -> RunRecord:
    records = sweeps.run(
        {
            "models": [{"id": str(base), "dtype": "float32", "label": "tiny", "trust_remote_code": trusted}],
            "methods": ["none", {"checkpoint": published}],
            "measure": {"perplexity": {"context": 64, "windows": windows}},
            "threads": 1,
        }
    )
    return next(record for record in records if record.spec.title.startswith("quality checkpoint"))


def ran(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("ran-*"))


@pytest.mark.heavy
def test_trust_in_the_model_is_no_trust_in_a_published_checkpoint(sweeps, tiny, stranger, tmp_path, secrets) -> None:
    with_code(stranger, tmp_path / "ran", "config.json")
    record = measured(sweeps, tiny, True, id=str(stranger))
    assert ran(tmp_path) == []
    assert record.spec.model.trust_remote_code
    assert not record.spec.method.published.trust_remote_code
    assert record.outcome.failure is None or "trust_remote_code=True" in record.outcome.failure.message


@pytest.mark.heavy
def test_a_trusted_checkpoints_code_runs_and_sees_no_token(sweeps, tiny, stranger, tmp_path, secrets) -> None:
    record = measured(sweeps, tiny, False, id=str(stranger), trust_remote_code=True)
    assert record.status == "ok", record.outcome.failure
    assert ran(tmp_path) == ["ran-tokenizer"]
    for name in ran(tmp_path):
        seen = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        assert not seen.keys() & SECRETS.keys()
        assert not {value for value in seen.values() if "secret" in value}
        assert {key: seen.get(key) for key in NEEDED} == NEEDED
        assert seen["PATH"] == worker_path(sys.executable, os.environ["PATH"])
        assert seen["HF_HUB_OFFLINE"] == "1"


@pytest.mark.heavy
@pytest.mark.thorough
def test_the_models_own_flag_is_the_models(sweeps, tiny, quantized, tmp_path, secrets) -> None:
    """And code of the model's is not run where only the checkpoint is trusted."""
    source = with_code(shutil.copytree(tiny, tmp_path / "source"), tmp_path / "ran", "tokenizer_config.json")
    measured(sweeps, source, False, id=str(quantized), trust_remote_code=True)
    assert ran(tmp_path) == []
    record = measured(sweeps, source, True, windows=3, id=str(quantized))  # two were measured just now
    assert record.status == "ok", record.outcome.failure
    assert ran(tmp_path) == ["ran-tokenizer"]


@pytest.mark.heavy
def test_trust_in_a_checkpoint_changes_no_question_and_no_label(sweeps, tiny, stranger) -> None:
    def planned(**said: object):
        content = {
            "models": [{"id": str(tiny)}],
            "methods": [{"checkpoint": {"id": str(stranger), **said}}],
            "measure": {"perplexity": {"context": 64, "windows": 2}},
        }
        return next(run.spec for run in plan(load_recipe(sweeps.recipe(content))) if len(run.spec.job.models) == 2)

    plain, trusted = planned(), planned(trust_remote_code=True)
    assert trusted.method.published.trust_remote_code
    assert (trusted.run_id, trusted.case_id, trusted.method.label) == (plain.run_id, plain.case_id, plain.method.label)
    assert dict(trusted.method.params) == {"id": str(stranger), "revision": None}  # as in records made before


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"id": "someone/model-GPTQ", "trust_remote_code": True}, "needs 'revision'"),
        ({"id": "model.gguf", "trust_remote_code": True}, "'trust_remote_code' has no effect on a GGUF file"),
        ({"id": "{stranger}", "trust_remote_code": "yes"}, "trust_remote_code"),
    ],
)
def test_trust_is_pinned_as_a_models_is(sweeps, tiny, stranger, said: dict[str, object], expected: str) -> None:
    (sweeps.folder / "model.gguf").write_bytes(b"GGUF")
    said = {**said, "id": str(said["id"]).format(stranger=stranger)}
    content = {"models": [str(tiny)], "methods": [{"checkpoint": said}], "measure": {"memory": {}, "perplexity": {}}}
    with pytest.raises(RecipeError, match=expected):
        plan(load_recipe(sweeps.recipe(content)))


@pytest.mark.parametrize(
    "name",
    [*SECRETS, "hf_token", "SSH_AUTH_SOCK", "XDG_SESSION_COOKIE", "VLLM_CPU_INT4_W4A8", "LLAMA_ARG_N_PARALLEL", "ELSE"],
)
def test_what_no_worker_gets(name: str) -> None:
    assert for_workers({name: "x", "PATH": "/bin"}) == {"PATH": "/bin", **compiled_kernels({})}


@pytest.mark.parametrize(
    "name", [*NEEDED, "HOME", "HF_HOME", "KERNELS_CACHE", "XDG_CACHE_HOME", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR"]
)
def test_what_a_worker_needs(name: str) -> None:
    assert for_workers({name: "x"})[name] == "x"


def test_code_that_is_run_while_fetching_has_a_way_out_and_no_token() -> None:
    given = {**SECRETS, **NEEDED, "https_proxy": "http://proxy", "HF_ENDPOINT": "https://hub"}
    kept = for_fetching(given)
    assert kept["https_proxy"] == "http://proxy"
    assert kept["HF_ENDPOINT"] == "https://hub"
    assert not kept.keys() & {name for name in SECRETS if "PROXY" not in name}


def test_kernels_of_two_instruction_sets_never_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch finds a kernel by its graph alone; one for other vector registers aborts the process."""
    here = for_workers({})["TORCHINDUCTOR_CACHE_DIR"]
    assert for_workers({"ATEN_CPU_CAPABILITY": "avx2"})["TORCHINDUCTOR_CACHE_DIR"] != here
    monkeypatch.setattr(variables, "instruction_sets", lambda: ("sse2",))
    assert for_workers({})["TORCHINDUCTOR_CACHE_DIR"] != here
    assert for_workers({"TORCHINDUCTOR_CACHE_DIR": "/mine"})["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
