"""Downloads what a sweep needs from a hub, before its workers run offline; and says what a node could not read there.

Run as ``python -m harness.execution.fetch FILE``, where FILE holds a ``HubContent``. It is a separate process because
the libraries that read data sets or kernels import a backend, which the parent must not. It has the user's hub token
and runs no code that a recipe names: tasks whose code a recipe trusts are read by a second such process, without the
token. Some of lm-eval's own tasks load a metric's code from the hub; that code is trusted like lm-eval. Kernels are
only downloaded here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.core.foreign import parse_json, read_file
from harness.core.model import ModelRef
from harness.core.owner import temporary_folder
from harness.core.run import RunSpec
from harness.core.site import MAIN, Site
from harness.core.workload import TaskWorkload, TextRef
from harness.errors import HarnessError, ResultsError, SourceError, first_line_of
from harness.host.process import MARKER
from harness.models.published import HubKernel, hub_kernel, quantization_config
from harness.stacks.variables import OFFLINE, for_fetching, for_workers
from harness.storage.json_codec import decode, encode
from harness.tasks.catalog import is_own

MAX_CONTENT_BYTES = 64 << 20


@dataclass(frozen=True)
class HubContent:
    """What runs read that comes from a hub, each once. The questions of ``tasks`` are in data sets there."""

    models: tuple[ModelRef, ...] = ()
    texts: tuple[TextRef, ...] = ()
    tasks: tuple[TaskWorkload, ...] = ()
    kernels: tuple[HubKernel, ...] = ()

    @classmethod
    def data_of(cls, specs: Sequence[RunSpec]) -> HubContent:
        """The data sets of these runs."""
        texts = (text for spec in specs for text in spec.job.texts if text.hub)
        tasks = (task for spec in specs for task in spec.job.tasks if task.data is None and not is_own(task.definition))
        return cls(texts=tuple(dict.fromkeys(texts)), tasks=tuple(dict.fromkeys(tasks)))

    @property
    def is_empty(self) -> bool:
        return not (self.models or self.texts or self.tasks or self.kernels)

    def by_trust(self) -> tuple[HubContent, HubContent]:
        """All but the tasks whose code the recipe trusts, and these."""
        plain = replace(self, tasks=tuple(task for task in self.tasks if not task.trust_task_code))
        return plain, HubContent(tasks=tuple(task for task in self.tasks if task.trust_task_code))


def fetch(specs: Sequence[RunSpec], site: Site) -> bool:
    """Returns True if it fetched a model that was not here. Raises SourceError if something cannot be fetched.

    The kernels of such a model are known only once it is here: they are fetched by the next call.
    """
    models = {model.content: model for model in _models(specs) if model.on_hub}
    absent = any(not model.path for model in models.values())
    data, with_code = HubContent.data_of(specs).by_trust()
    if absent or not data.is_empty:
        _fetch(replace(data, models=tuple(models.values())), dict(os.environ))
    if not with_code.is_empty:
        _fetch(with_code, for_fetching())
    if kernels := _kernels(specs, site):
        _fetch(HubContent(kernels=kernels), dict(os.environ))
    return absent


def fetch_into(cache: Path, model: ModelRef) -> None:
    """Downloads a hub model into that hub cache. Raises SourceError if it cannot be fetched."""
    _fetch(HubContent(models=(model,)), {**os.environ, "HF_HUB_CACHE": str(cache)})


def find_unreadable(data: HubContent) -> str | None:
    """Which data set this machine cannot read offline, as a worker would, and why; None if it can read all."""
    readings = (_read(each, {**for_workers(), **OFFLINE}) for each in data.by_trust() if not each.is_empty)
    return next((problem for problem in readings if problem is not None), None)


def _fetch(wanted: HubContent, variables: Mapping[str, str]) -> None:
    if (problem := _read(wanted, variables)) is not None:
        raise SourceError(f"could not fetch what the recipe names from the hub: {problem}")


def _read(wanted: HubContent, variables: Mapping[str, str]) -> str | None:
    """Reads it all in a process of its own, which downloads what is not here. Why it could not; None if it did."""
    with temporary_folder() as folder:
        path = folder / "wanted.json"
        path.write_text(encode(wanted), encoding="utf-8")
        ended = subprocess.run(
            [sys.executable, "-m", "harness.execution.fetch", str(path)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**variables, "PYTHONSAFEPATH": "1", MARKER: folder.name},  # if this is killed, the next sweep ends it
        )
    if not ended.returncode:
        return None
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else "no message"


def main(path: str) -> None:
    from harness.models.sources import fetch as fetch_model
    from harness.text.sources import rows

    content = read_file(Path(path), MAX_CONTENT_BYTES, ResultsError)
    wanted = decode(HubContent, parse_json(content, path, ResultsError), path)
    for model in wanted.models:
        fetch_model(model)
    for text in wanted.texts:
        rows(text)
    for task in wanted.tasks:
        from harness.tasks.definitions import load

        load(task)
    for kernel in wanted.kernels:
        _install(kernel.repository, kernel.version)


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


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HarnessError as fault:
        sys.exit(first_line_of(fault))
