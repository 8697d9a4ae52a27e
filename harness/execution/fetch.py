"""Downloads what a sweep needs from a hub, before its workers run offline.

Run as ``python -m harness.execution.fetch FILE WHAT``, where FILE holds specs or, for kernels, their names. It is a
separate process because the libraries that read data sets or kernels import a backend, which the parent must not. It
has the user's hub token and runs no code that a recipe names: tasks whose code a recipe trusts are read by a second
such process, without the token. Some of lm-eval's own tasks load a metric's code from the hub; that code is trusted
like lm-eval. Kernels are only downloaded here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from harness.core.model import ModelRef
from harness.core.owner import temporary_folder
from harness.core.run import RunSpec
from harness.core.site import MAIN, Site
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import SourceError, first_line_of
from harness.host.process import MARKER
from harness.models.published import HubKernel, hub_kernel, quantization_config
from harness.stacks.variables import for_fetching
from harness.tasks.catalog import is_own

PLAIN, WITH_CODE, KERNELS, MODEL = "plain", "with-code", "kernels", "model"
"""What to fetch: everything except the tasks whose code a recipe trusts, or only these; or kernels, or one model."""


def fetch(specs: Sequence[RunSpec], site: Site) -> bool:
    """Returns True if it fetched a model that was not here. Raises SourceError if something cannot be fetched.

    The kernels of such a model are known only once it is here: they are fetched by the next call.
    """
    absent = any(model.on_hub and not model.path for model in _models(specs))
    tasks = _hub_tasks(specs)
    if absent or any(text.hub for text in _texts(specs)) or any(not task.trust_task_code for task in tasks):
        _fetch([asdict(spec) for spec in specs], PLAIN, dict(os.environ))
    if any(task.trust_task_code for task in tasks):
        _fetch([asdict(spec) for spec in specs], WITH_CODE, for_fetching())
    if kernels := _kernels(specs, site):
        _fetch([[kernel.repository, kernel.version] for kernel in kernels], KERNELS, dict(os.environ))
    return absent


def fetch_into(cache: Path, model: ModelRef) -> None:
    """Downloads a hub model into that hub cache. Raises SourceError if it cannot be fetched."""
    _fetch([asdict(model)], MODEL, {**os.environ, "HF_HUB_CACHE": str(cache)})


def _fetch(wanted: Sequence[object], what: str, variables: Mapping[str, str]) -> None:
    with temporary_folder() as folder:
        path = folder / "wanted.json"
        path.write_text(json.dumps(wanted), encoding="utf-8")
        command = [sys.executable, "-m", "harness.execution.fetch", str(path), what]
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**variables, "PYTHONSAFEPATH": "1", MARKER: folder.name},  # if this is killed, the next sweep ends it
        )
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise SourceError(f"could not fetch what the recipe names from the hub: {last[0]}")


def main(path: str, what: str) -> None:
    if what == KERNELS:
        for repository, version in json.loads(Path(path).read_text(encoding="utf-8")):
            _install(repository, version)
        return
    from harness.models.sources import fetch as fetch_model
    from harness.storage.json_codec import decode
    from harness.text.sources import rows

    wanted = json.loads(Path(path).read_text(encoding="utf-8"))
    if what == MODEL:
        for model in decode(list[ModelRef], wanted, path):
            fetch_model(model)
        return
    specs = decode(list[RunSpec], wanted, path)
    if what == PLAIN:
        for model in {model.content: model for model in _models(specs) if model.on_hub}.values():
            fetch_model(model)
        for text in dict.fromkeys(text for text in _texts(specs) if text.hub):
            rows(text)
    for task in _hub_tasks(specs):
        if task.trust_task_code == (what == WITH_CODE):
            from harness.tasks.definitions import load

            load(task)


def _install(repository: str, version: int) -> None:
    """Puts a kernel's build for this environment into the hub's cache; ends the process if there is none.

    It is fetched by the name of its branch: without that name in the cache (``get_kernel`` leaves none), the package
    does not find a version offline.
    """
    from kernels.utils import install_kernel

    branch = f"v{version}"
    try:
        install_kernel(repository, revision=branch, local_files_only=True)
    except (OSError, ValueError):  # it is not here, or not the build for this torch
        try:
            install_kernel(repository, revision=branch)
            install_kernel(repository, revision=branch, local_files_only=True)
        except (OSError, ValueError) as error:
            sys.exit(f"kernel {repository} {branch}, with which a checkpoint runs on this GPU: {first_line_of(error)}")


def _kernels(specs: Sequence[RunSpec], site: Site) -> tuple[HubKernel, ...]:
    """The kernels with which transformers runs the published checkpoints that are here, each once."""
    on_gpu = [spec for spec in specs if spec.device == "cuda" and spec.stack == MAIN]
    folders = dict.fromkeys(Path(m.path) for m in _models(on_gpu) if m.path and m.kind in ("directory", "hub"))
    machine = site.machine("cuda") if folders else None
    found = [hub_kernel(quantization_config(folder), machine, site) for folder in folders] if machine else []
    return tuple(dict.fromkeys(kernel for kernel in found if kernel is not None))


def _models(specs: Sequence[RunSpec]) -> Iterator[ModelRef]:
    for spec in specs:
        yield from spec.job.models


def _hub_tasks(specs: Sequence[RunSpec]) -> tuple[TaskWorkload, ...]:
    """The tasks whose questions are in a data set on the hub, each once."""
    tasks = (task for spec in specs for task in spec.job.tasks if task.data is None and not is_own(task.definition))
    return tuple(dict.fromkeys(tasks))


def _texts(specs: Sequence[RunSpec]) -> Iterator[TextRef]:
    for spec in specs:
        yield from spec.job.texts


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SourceError as fault:
        sys.exit(str(fault))
