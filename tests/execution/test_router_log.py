"""What a mixture's routers do with a text: on disk as it comes, read block by block, and compared."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from run_specs import run_spec
from safetensors.torch import load_file
from small_mixture import EXPERTS, LAYERS, save_small_mixture, small_mixture

from harness.core.capability import Routed
from harness.core.metric import Windows
from harness.core.model import MethodRef, ModelRef
from harness.engines.transformers.engine import TransformersModel
from harness.errors import DamagedError, InvalidRunError, StorageError
from harness.execution import reference as references
from harness.execution.checks.routers import comparing_routers
from harness.execution.context import Context
from harness.execution.forward import observe
from harness.execution.router_log import RouterLog, read_rows
from harness.metrics.perplexity import Likelihood
from harness.metrics.routing import RouterAgreement
from harness.storage.cache import Cache

pytestmark = pytest.mark.heavy

BLOCK = "layers.0.mlp"
ROWS = [list(range(row, row + 12)) for row in range(3)]
WINDOWS = Windows(ROWS, [1, 5, 1], ["a", "b", "b"], {"tokens_sha256": "0", "context": 12, "windows": 3})
TOKENS = sum(len(row) - 1 for row in ROWS)


def mixture() -> TransformersModel:
    model = TransformersModel(small_mixture(), None)
    model.probe_head()
    return model


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """What the small mixture's routers do, beside its states."""
    folder, model = tmp_path / "reference", mixture()
    folder.mkdir()
    with torch.inference_mode():
        references.write(model, WINDOWS, folder, model)
    return folder


def test_it_goes_to_the_disk_at_once_and_is_not_kept_in_memory(tmp_path: Path) -> None:
    """A streamed model reads all of a text before its next layer."""
    log, path = RouterLog(tmp_path, tokens=6), tmp_path / f"router-{BLOCK}.safetensors"
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for tokens in (4, 2):
        scores = torch.rand(tokens, 3).to(torch.bfloat16)
        chosen = scores.topk(2).indices
        seen.append((scores.clone(), chosen.clone()))
        held = [weakref.ref(scores), weakref.ref(chosen)]
        log.see(BLOCK, Routed(scores, chosen))
        del scores, chosen
        assert [each() for each in held] == [None, None]
    log.finish()
    kept = load_file(path)
    assert torch.equal(kept["scores"], torch.cat([scores for scores, _ in seen]))
    assert torch.equal(kept["chosen"].long(), torch.cat([chosen for _, chosen in seen]))
    part = read_rows(path, 3, 5)
    assert torch.equal(part.scores, kept["scores"][3:5])
    assert torch.equal(part.chosen, kept["chosen"][3:5].long())


@pytest.mark.parametrize(("tokens", "reason"), [(5, "saw more than the text's 5"), (7, "saw 6 of the text's 7 tokens")])
def test_a_router_that_sees_another_number_of_tokens_makes_the_reference_invalid(
    tokens: int, reason: str, tmp_path: Path
) -> None:
    log = RouterLog(tmp_path, tokens)

    def read() -> None:
        for _ in range(2):
            log.see(BLOCK, Routed(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.int64)))
        log.finish()

    with pytest.raises(InvalidRunError, match=reason):
        read()


def test_the_room_for_all_tokens_is_taken_with_the_first_rows(tmp_path: Path) -> None:
    """A disk that is full is known before the model has read the text."""
    tokens, experts, chosen = 100_000, 4, 2
    log = RouterLog(tmp_path, tokens)
    log.see(BLOCK, Routed(torch.zeros(3, experts), torch.zeros(3, chosen, dtype=torch.int64)))
    (file,) = tmp_path.iterdir()
    size_bytes = tokens * (4 * experts + 2 * chosen)
    header_bytes = file.stat().st_size - size_bytes
    assert header_bytes % 8 == 0, "safetensors aligns what follows"
    assert 512 * file.stat().st_blocks >= size_bytes


def test_no_room_on_the_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log, routed = RouterLog(tmp_path, tokens=6), Routed(torch.zeros(3, 4), torch.zeros(3, 2, dtype=torch.int64))
    said = r"no room for what a mixture's routers do .*No space left on device.* score fewer windows"
    log.see(BLOCK, routed)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=said):
        log.see("layers.1.mlp", routed)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=said):
        log.see(BLOCK, routed)


def test_a_streamed_comparison_reads_each_block_s_file_once(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, each through all windows, as a streamed model calls."""
    hashed: list[str] = []
    original = references.file_sha256
    monkeypatch.setattr(references, "file_sha256", lambda path: (hashed.append(path.name), original(path))[1])
    kept = references.Reference(reference, "cpu")
    blocks = [f"layers.{layer}.mlp" for layer in range(LAYERS)]
    assert kept.router_blocks == frozenset(blocks)
    read: list[tuple[str, int]] = []

    def routed(block: str, first: int, stop: int) -> Routed:
        read.append((block, stop - first))
        return kept.routed(block, first, stop)

    found = RouterAgreement(WINDOWS, routed)
    for block in blocks:
        whole = kept.routed(block, 0, TOKENS)
        for begin in range(0, TOKENS, len(ROWS[0]) - 1):
            part = slice(begin, begin + len(ROWS[0]) - 1)
            found.see(block, Routed(whole.scores[part], whole.chosen[part]))
    assert hashed == [f"router-{block}.safetensors" for block in blocks]
    assert read == [(block, tokens) for block in blocks for tokens in (11, 7, 11)], "the scored positions, once each"
    assert all(set(each.values) == {float(each.metric == "router_overlap")} for each in found.finish())


def test_a_damaged_file_is_found(reference: Path) -> None:
    path = reference / f"router-{BLOCK}.safetensors"
    content = path.read_bytes()
    for change in (lambda: path.write_bytes(content[:-1] + bytes([content[-1] ^ 1])), path.unlink):
        change()
        with pytest.raises(DamagedError, match=r"delete .* and run the recipe again"):
            references.Reference(reference, "cpu").routed(BLOCK, 0, 1)


@pytest.mark.parametrize("underflows", [False, True])
def test_a_probability_that_underflows_leaves_the_kl_out_and_the_overlap_in(underflows: bool) -> None:
    """105 nats between two logits are a probability of 0 in float32; it is the last token of the second window."""
    windows = Windows([[1, 2, 3], [4, 5, 6]], [1, 1], ["a", "b"], {})
    theirs = torch.tensor([[0.0, 1.0, 2.0]] * 4).softmax(-1)
    own = torch.tensor([[0.0, 1.0, 2.0]] * 3 + [[0.0, 1.0, 106.0 if underflows else 3.0]]).softmax(-1)
    chosen = torch.tensor([[2, 1]] * 4)
    found = RouterAgreement(windows, lambda block, first, stop: Routed(theirs[first:stop], chosen[first:stop]))
    found.see(BLOCK, Routed(own, chosen))
    measured = {each.metric: each for each in found.finish()}
    assert found.infinite == ({BLOCK: 1} if underflows else {})
    assert measured["router_overlap"].values == (1.0, 1.0)
    assert ("router_kl" in measured) != underflows


def test_an_infinite_kl_is_a_fact_and_the_run_stays_valid(reference: Path, tmp_path: Path, tiny: Path) -> None:
    """As if a variant's router computed probabilities, all but one of which underflow."""
    scores = torch.eye(EXPERTS)[:1]

    class Broken(TransformersModel):
        def watching_routers(self, see: Any) -> Any:
            return super().watching_routers(
                lambda block, routed: see(block, Routed(scores.expand(len(routed.chosen), -1), routed.chosen))
            )

    none = MethodRef("none", 1, {"dtype": "model"}, "none", "none")
    saved = save_small_mixture(tmp_path / "mixture", tiny)
    ref = ModelRef("mixture", "mixture", "0", "directory", str(saved), "float32")
    found = Context(run_spec("quality", "routers", ref, none, none), Cache(tmp_path), lambda phase: None)
    broken = Broken(small_mixture(), None)
    broken.probe_head()
    kept = references.Reference(reference, "cpu")
    with comparing_routers(found, broken, WINDOWS, kept), torch.inference_mode():
        observe(broken, WINDOWS, [Likelihood(WINDOWS)], kept)
    assert [each.metric for each in found.measurements] == ["router_overlap"]
    (fact,) = found.facts
    assert fact.code == "router_kl_not_measured"
    assert f"infinite for {29 * LAYERS} tokens (in layers.0.mlp and others)" in fact.value
