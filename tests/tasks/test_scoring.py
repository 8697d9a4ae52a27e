"""Scores of requests, in every layout what a plain forward pass over each request alone gives."""

from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from scheduling_model import scheduling
from transformers import AutoModelForCausalLM

from harness.core.engine import LoadRequest
from harness.engines.transformers.engine import TransformersModel, load
from harness.errors import UnsupportedError
from harness.tasks.scoring import Effort, Layout, Request, Score, default_layout, score

pytestmark = pytest.mark.heavy


def drawn() -> list[Request]:
    """Questions of four choices behind one header, some of one token, one twice, one of a long text."""
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(2, 500) for _ in range(count))

    header = tokens(30)
    found = []
    for _ in range(6):
        question = (*header, *tokens(draw.randrange(3, 9)))
        found += [Request(question, tokens(draw.randrange(1, 5))) for _ in range(4)]
    question = (*header, *tokens(4))
    found += [Request(question, (choice,)) for choice in (7, 8, 9)]
    found += [found[0], Request(tokens(1), tokens(90)), Request(tokens(3), tokens(1))]
    found.append(Request(found[0].context[:20], found[0].context[20:26]))  # lies in the header of the others
    draw.shuffle(found)
    return found


def plainly(raw, asked: Sequence[Request]) -> list[Score]:
    """Each request in a forward pass of its own, by the definition."""
    found = []
    for request in asked:
        with torch.inference_mode():
            logits = raw(torch.tensor([[*request.context, *request.continuation]])).logits[0].double()
        said = logits.log_softmax(dim=-1)[len(request.context) - 1 : -1]
        target = torch.tensor(request.continuation)
        nat = said.gather(1, target[:, None]).sum()
        found.append(Score(float(nat), bool((said.argmax(dim=-1) == target).all())))
    return found


@pytest.fixture(scope="module")
def raw(tiny: Path):
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(raw):
    wrapped = TransformersModel(raw, None)
    wrapped.probe_head()
    return wrapped


@pytest.fixture(scope="module")
def asked(raw) -> list[Request]:
    """Every other continuation is what greedy decoding writes, so that both answers occur."""
    found = drawn()
    for index, request in enumerate(found[::2]):
        with torch.inference_mode():
            length = len(request.context) + len(request.continuation)
            written = raw.generate(torch.tensor([request.context]), max_length=length, do_sample=False)[0]
        found[2 * index] = Request(request.context, tuple(written[len(request.context) :].tolist()))
    return found


@pytest.fixture(scope="module")
def expected(raw, asked) -> list[Score]:
    return plainly(raw, asked)


def same(found: Sequence[Score], expected: Sequence[Score], tolerance: float = 1e-4) -> bool:
    assert [each.greedy for each in found] == [each.greedy for each in expected]
    nats = [each.loglikelihood for each in expected]
    return [each.loglikelihood for each in found] == pytest.approx(nats, rel=0, abs=tolerance)


@pytest.mark.parametrize("budget", [16, 50, 100, 2000])
@pytest.mark.parametrize("layout", ["packed", "batched", "alone"])
def test_every_layout_is_the_plain_forward_pass(model, asked, expected, layout: Layout, budget: int) -> None:
    assert {True, False} == {each.greedy for each in expected}
    assert same(score(model, asked, layout, budget), expected)


@pytest.mark.parametrize("budget", [16, 100, 2000])
def test_a_model_that_schedules_its_texts_gets_whole_groups_of_them(raw, asked, expected, budget: int) -> None:
    scheduler, effort = scheduling(raw, None), Effort()
    assert default_layout(scheduler) == "ragged"
    assert same(score(scheduler, asked, "ragged", budget, effort), expected)
    inputs = {request.context + request.continuation[:-1] for request in asked}
    assert sorted(tuple(text) for group in scheduler.read for text in group) == sorted(inputs)
    sizes = [sum(map(len, group)) for group in scheduler.read]
    assert all(size <= budget or len(group) == 1 for size, group in zip(sizes, scheduler.read, strict=True))
    assert all(one + len(after[0]) > budget for one, after in zip(sizes, scheduler.read[1:], strict=False))
    assert (effort.tokens, effort.forwards) == (sum(sizes), len(sizes))
    assert effort.head_rows == len(predicted(asked))


def predicted(asked: Sequence[Request]) -> set[tuple[tuple[int, ...], int]]:
    """Each input with each of its positions whose prediction some request needs."""
    needed = set()
    for request in asked:
        text = request.context + request.continuation[:-1]
        needed |= {(text, position) for position in range(len(request.context) - 1, len(text))}
    return needed


def test_layouts_that_a_model_has_not_are_refused(raw, model, asked) -> None:
    with pytest.raises(UnsupportedError, match="cannot read inputs of unequal length"):
        score(model, asked, "ragged", 100)
    with pytest.raises(UnsupportedError, match="cannot run rows that branch"):
        score(scheduling(raw, None), asked, "packed", 100)


def test_long_continuations_are_read_in_chunks(model, asked, expected, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.tasks.scoring.CHUNK_ROWS", 7)
    assert same(score(model, asked, "packed", 100), expected)


def test_a_model_whose_head_stands_not_apart_is_scored_by_its_logits(tiny: Path, asked) -> None:
    raw = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    inner = raw.forward

    def crooked(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    raw.forward = crooked
    wrapped = TransformersModel(raw, None)
    wrapped.probe_head()
    assert default_layout(wrapped) == "batched"
    assert same(score(wrapped, asked, "batched", 200), plainly(raw, asked))


def test_effort_counts_what_goes_through_decoder_and_head(model) -> None:
    question = tuple(range(10, 20))
    asked = [Request(question, (30, 31, 32)), Request(question, (40, 41)), Request(question, (50,))]
    efforts = {layout: Effort() for layout in ("packed", "batched", "alone")}
    for layout, effort in efforts.items():
        score(model, asked, layout, 100, effort)  # type: ignore[arg-type]
    assert efforts["packed"] == Effort(tokens=10 + 2 + 1, head_rows=1 + 2 + 1, forwards=1)
    assert efforts["batched"] == Effort(tokens=3 * 12, head_rows=3 + 2 + 1, forwards=1)
    assert efforts["alone"] == Effort(tokens=12 + 11 + 10, head_rows=3 + 2 + 1, forwards=3)


def test_requests_of_one_input_share_its_prediction(model) -> None:
    effort = Effort()
    asked = [Request((10, 11, 12), (choice,)) for choice in range(20, 40)]
    score(model, asked, "alone", 100, effort)
    assert effort == Effort(tokens=3, head_rows=1, forwards=1)


def test_pasts_are_dropped_with_the_last_row_on_them(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty questions, each with a long text of its own: one prefix cache at a time."""
    alive: weakref.WeakSet[object] = weakref.WeakSet()
    most = []
    extend = model.extend_prefix

    def counted(tokens: torch.Tensor, prefix: object):
        states, longer = extend(tokens, prefix)
        alive.add(longer)
        most.append(len(alive))
        return states, longer

    monkeypatch.setattr(model, "extend_prefix", counted)
    wanted = [Request((text, *range(30, 80)), (choice, 9)) for text in range(2, 22) for choice in (7, 8)]
    score(model, wanted, "packed", 40)
    assert most == [1] * 20


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao"])
def test_quantized_models_give_the_same_packed_and_alone(tiny: Path, asked, method: str) -> None:
    quantization: object
    if method == "bitsandbytes":
        pytest.importorskip("bitsandbytes")
        from transformers import BitsAndBytesConfig

        quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    else:
        pytest.importorskip("torchao")
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        quantization = TorchAoConfig(Int8WeightOnlyConfig())
    model = load(LoadRequest(tiny, "float32", "cpu", quantization=quantization))
    model.probe_head()
    assert model.can_branch()
    packed, alone = (score(model, asked, layout, 100) for layout in ("packed", "alone"))
    assert same(packed, alone, tolerance=1e-3)
