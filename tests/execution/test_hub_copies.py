"""A node with a hub cache of its own runs on its own copy of a model: other path, times and inodes, same files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_cache import fill_hub_cache
from run_specs import run_spec

from harness.core.inputs import Input
from harness.core.run import RunSpec
from harness.errors import SourceError
from harness.execution import fetch
from harness.execution.executor import RunLost
from harness.execution.hub_copies import HubCopies
from harness.execution.local import local_site
from harness.models.sources import inspect
from harness.recipe import Model
from harness.storage.checksums import find_difference, git_blob

ID, COMMIT = "someone/tiny", "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Planned:
    """A run that was planned on a machine with the hub cache ``there``; ``here`` is the node's."""

    spec: RunSpec
    files: Input
    there: Path
    here: Path


@pytest.fixture
def planned(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    from huggingface_hub import constants

    there, here = tmp_path / "there", tmp_path / "here"
    fill_hub_cache(there, ID, COMMIT, tiny)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(there))
    source = inspect(Model(id=ID, revision=COMMIT), tmp_path)
    assert source.files is not None
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here))
    return Planned(run_spec("probe", model=source.ref), source.files, there, here)


def test_it_runs_on_its_own_copy(planned: Planned, tiny: Path) -> None:
    shutil.rmtree(planned.there)
    snapshot = fill_hub_cache(planned.here, ID, COMMIT, tiny)
    spec, (files,) = HubCopies().placed(planned.spec, (planned.files,))
    assert spec.model.path == files.folder == str(snapshot)
    assert find_difference(planned.files) is not None
    assert find_difference(files) is None
    assert (spec.case_id, spec.run_id) == (planned.spec.case_id, planned.spec.run_id)


def test_a_copy_under_the_same_path_with_other_times_is_its_own(planned: Planned, tiny: Path) -> None:
    """As in pods of one image, each of which downloads into its own home folder."""
    for path in planned.there.rglob("blobs/*"):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    _, (files,) = HubCopies().placed(planned.spec, (planned.files,))
    assert files.folder == planned.files.folder
    assert find_difference(planned.files) is not None
    assert find_difference(files) is None


def test_shared_files_stay_as_they_were_planned(planned: Planned, tiny: Path) -> None:
    fill_hub_cache(planned.here, ID, COMMIT, tiny)
    assert HubCopies().placed(planned.spec, (planned.files,)) == (planned.spec, (planned.files,))


def test_a_copy_with_another_content_is_refused(planned: Planned, tiny: Path, tmp_path: Path) -> None:
    shutil.rmtree(planned.there)
    other = shutil.copytree(tiny, tmp_path / "other")
    settings = (other / "config.json").read_text(encoding="utf-8")
    (other / "config.json").write_text(settings.replace("\n", " ", 1), encoding="utf-8")
    assert git_blob(other / "config.json") != git_blob(tiny / "config.json")
    fill_hub_cache(planned.here, ID, COMMIT, other)
    with pytest.raises(SourceError, match=r"config\.json has another content on this node"):
        HubCopies().placed(planned.spec, (planned.files,))


def test_a_run_is_lost_where_there_is_no_copy(planned: Planned) -> None:
    shutil.rmtree(planned.there)
    with pytest.raises(RunLost, match="its hub cache does not hold someone/tiny"):
        HubCopies().placed(planned.spec, (planned.files,))


def test_a_node_fetches_what_it_lacks_although_the_machine_that_plans_has_it(
    planned: Planned, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, asked = local_site(tmp_path / "cache", device="cpu"), list[fetch.HubContent]()
    monkeypatch.setattr(fetch, "_fetch", lambda wanted, variables: asked.append(wanted))
    copies = HubCopies()
    assert not fetch.fetch(copies.named([planned.spec]), site), "the node sees the planned path"
    shutil.rmtree(planned.there)
    assert fetch.fetch(copies.named([planned.spec]), site)
    (wanted,) = asked
    assert [model.id for model in wanted.models] == [ID]
    fill_hub_cache(planned.here, ID, COMMIT, tiny)
    (named,) = copies.named([planned.spec])
    assert named.model.path.startswith(str(planned.here))
    assert not fetch.fetch([named], site)
