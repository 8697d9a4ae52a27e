"""Published checkpoints whose kernels come from the hub: what is planned, and what is fetched before workers run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from elsewhere import CPU, LIBRARIES, Elsewhere

from harness.api.plan import PlanState
from harness.cli.render.plan import show_plan
from harness.core.job import VariantJob
from harness.core.site import MAIN, Machine
from harness.errors import SourceError
from harness.execution import fetch
from harness.models.published import HUB_KERNELS
from harness.planning.plan import PlannedRun, plan
from harness.recipe import load_recipe

CONFIGS: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]},
    "mxfp4": {"quant_method": "mxfp4"},
}
KERNELS = {"kernels": "0.16.2", "triton": "3.7.1"}
T4, A100, H100 = (
    Machine("cuda", f"a rented {name}", capability)
    for name, capability in (("T4", (7, 5)), ("A100", (8, 0)), ("H100", (9, 0)))
)
V100 = Machine("cuda", "a rented V100", (7, 0))
UNPACKS = "transformers unpacks {} into dense matrices while loading: {}"
INSTALL = "pip install 'kernels>=0.16,<0.17'"
# The real function's signature (kernels 0.16.2); it writes what it is called with, and the branch's name on a download.
PACKAGE = """
import os
from pathlib import Path

def install_kernel(repo_id: str, *, revision: str, local_files_only: bool = False, backend: str | None = None,
                   variant_locks=None, user_agent=None, validate_dependencies: bool = False) -> Path:
    cache = Path(os.environ["KERNELS_CACHE"])
    name = cache / (repo_id.replace("/", "--") + "@" + revision)
    if local_files_only:
        if not name.exists():
            raise FileNotFoundError(f"Cannot find a local snapshot for {repo_id}")
        return name
    with (cache / "downloads").open("a") as log:
        log.write(f"{repo_id} {revision}\\n")
    if (cache / "unsuitable").exists():
        raise FileNotFoundError(f"Cannot find a build variant for this system in {repo_id}:\\n\\n- torch211-cu130: no")
    name.touch()
    return name
"""


@pytest.fixture
def planned(sweeps: Any, tiny: Path, tmp_path: Path) -> Any:
    """The measuring runs of a checkpoint of a quant_method, at a site."""

    def make(method: str, site: Elsewhere) -> list[PlannedRun]:
        folder = tmp_path / method
        if not folder.exists():
            shutil.copytree(tiny, folder)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            changed = {**config, "quantization_config": CONFIGS[method]}
            (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        recipe = sweeps.recipe(
            {
                "models": [{"id": str(tiny), "label": "tiny"}],
                "methods": ["none", {"checkpoint": {"id": str(folder)}}],
                "measure": {"perplexity": {"text": "demo", "context": 64, "windows": 2}},
            }
        )
        runs = plan(load_recipe(recipe), site)
        return [run for run in runs if isinstance(run.spec.job, VariantJob) and run.spec.method.name == "checkpoint"]

    return make


def site(machine: Machine, **versions: str) -> Elsewhere:
    return Elsewhere(machine, {MAIN: {**LIBRARIES, **versions}})


@pytest.mark.parametrize(
    ("method", "machine", "installed", "unsupported", "note"),
    [
        ("fp8", H100, KERNELS, None, None),
        ("fp8", H100, {}, f"kernels is not installed; {INSTALL}", None),
        ("fp8", H100, {"kernels": "0.17.0"}, f"kernels 0.17.0 does not suit it; {INSTALL}", None),
        ("fp8", H100, {"kernels": "0.9.0"}, f"kernels 0.9.0 does not suit it; {INSTALL}", None),
        ("fp8", A100, {}, None, "it multiplies the codes from compute capability 8.9 on; this GPU has 8.0"),
        ("fp8", CPU, {}, None, "it multiplies the codes on a GPU only"),
        ("mxfp4", H100, KERNELS, None, None),
        ("mxfp4", T4, KERNELS, None, None),
        ("mxfp4", H100, {"triton": "3.7.1"}, None, f"kernels is not installed; {INSTALL}"),
        ("mxfp4", H100, {**KERNELS, "triton": "3.3.1"}, None, "it needs triton 3.4 or later"),
        ("mxfp4", V100, KERNELS, None, "it multiplies the codes from compute capability 7.5 on; this GPU has 7.0"),
        ("mxfp4", CPU, KERNELS, None, "it multiplies the codes on a GPU only"),
    ],
)
def test_a_plan_says_what_a_checkpoint_needs_and_when_it_is_unpacked(
    planned: Any, method: str, machine: Machine, installed: dict[str, str], unsupported: str | None, note: str | None
) -> None:
    (run,) = planned(method, site(machine, **installed))
    wanted = "transformers multiplies this checkpoint on this GPU with a kernel from the hub, and"
    assert run.unsupported == (unsupported and f"{wanted} {unsupported}")
    assert run.note == (note and UNPACKS.format(method, note))


def test_the_plan_shows_the_note(planned: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runs = planned("mxfp4", site(V100))
    show_plan(PlanState(runs), as_json=False)
    assert "note: tiny × checkpoint mxfp4 × transformers: transformers unpacks mxfp4" in capsys.readouterr().out
    show_plan(PlanState(runs), as_json=True)
    assert json.loads(capsys.readouterr().out)["note"] == runs[0].note


def test_a_checkpoint_that_asks_to_be_unpacked_needs_no_kernel(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "fp8", {**CONFIGS["fp8"], "dequantize": True})
    (run,) = planned("fp8", site(H100))
    assert (run.unsupported, run.note) == (None, UNPACKS.format("fp8", "its quantization_config says so"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a package kernels that writes down its downloads."""
    package, cache = tmp_path / "packages" / "kernels", tmp_path / "kernels"
    package.mkdir(parents=True)
    cache.mkdir()
    (package / "__init__.py").touch()
    (package / "utils.py").write_text(PACKAGE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setenv("KERNELS_CACHE", str(cache))
    return cache


def test_kernels_are_fetched_by_their_branch_once(planned: Any, cache: Path) -> None:
    here = site(H100, **KERNELS)
    specs = [run.spec for method in CONFIGS for run in planned(method, here)]
    for _ in range(2):
        assert not fetch.fetch(specs, here), "no model was fetched"
    wanted = [f"{kernel.repository} v{kernel.version}" for kernel in HUB_KERNELS.values()]
    assert (cache / "downloads").read_text(encoding="utf-8").splitlines() == wanted


@pytest.mark.parametrize(
    ("method", "machine", "installed"),
    [("fp8", CPU, KERNELS), ("fp8", A100, KERNELS), ("mxfp4", H100, {}), ("mxfp4", V100, KERNELS)],
)
def test_no_kernel_is_fetched_that_is_not_used(
    planned: Any, cache: Path, method: str, machine: Machine, installed: dict[str, str]
) -> None:
    here = site(machine, **installed)
    fetch.fetch([run.spec for run in planned(method, here)], here)
    assert not list(cache.iterdir())


def test_a_kernel_without_a_build_for_this_torch_is_named(planned: Any, cache: Path) -> None:
    here = site(H100, **KERNELS)
    (cache / "unsuitable").touch()
    with pytest.raises(
        SourceError, match=r"kernel kernels-community/finegrained-fp8 v4, .*: Cannot find a build variant"
    ):
        fetch.fetch([run.spec for run in planned("fp8", here)], here)
