"""The harness's LM gives what lm-eval's own HFLM gives, on real tasks and on what is special about texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scheduling_model import SchedulingModel, scheduling
from thorough import all_thorough_but
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from harness.core.workload import TaskWorkload, TextRef
from harness.engines.transformers.engine import TransformersModel
from harness.errors import InvalidRunError, UnsupportedError

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'qharness[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness.tasks.catalog import catalog
from harness.tasks.definitions import load
from harness.tasks.generating import WritingRules, _GroupRules, _Text
from harness.tasks.lm import HarnessLM
from harness.tasks.sampling import Sampling, request_seed
from harness.tasks.scoring import Effort

pytestmark = pytest.mark.heavy

Shared = Callable[[str], Path]
NAT = 1e-3
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 512}


class Both:
    """A model behind both views of lm-eval."""

    def __init__(self, folder: Path, raw: Any = None) -> None:
        self.raw = raw or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = TransformersModel(self.raw, self.tokenizer)
        self.model.probe_head()

    def ours(self, **settings: Any) -> HarnessLM:
        return HarnessLM(self.model, **settings)

    def scheduling(self, **settings: Any) -> tuple[SchedulingModel, HarnessLM]:
        model = scheduling(self.raw, self.tokenizer)
        return model, HarnessLM(model, **settings)

    def judge(self, batch_size: int = 4, **settings: Any) -> HFLM:
        return HFLM(pretrained=self.raw, tokenizer=self.tokenizer, batch_size=batch_size, **settings)


@pytest.fixture(scope="module")
def small(tiny: Path) -> Both:
    return Both(tiny)


@pytest.fixture(scope="module")
def stories(shared: Shared) -> Both:
    return Both(shared("models/tinystories-656k-fp32"))


def asked(name: str, data: Path, items: int, **settings: Any) -> list[Instance]:
    """The requests that lm-eval makes of a task's first questions."""
    workload = TaskWorkload(name, str(catalog().paths[name]), data=TextRef(name, path=str(data)), **settings)
    (task,) = load(workload)["tasks"].values()
    task.build_all_requests(limit=items, rank=0, world_size=1)
    return list(task.instances)


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, each, 0, metadata=("own", index, 1)) for index, each in enumerate(arguments)]


def likeliest(requests: list[Instance], answers: list[tuple[float, bool]]) -> dict[int, int]:
    found: dict[int, tuple[float, int]] = {}
    for request, (nat, _) in zip(requests, answers, strict=True):
        found[request.doc_id] = max(found.get(request.doc_id, (-1e9, -1)), (nat, request.idx))
    return {doc: index for doc, (_, index) in found.items()}


def assert_same(requests: list[Instance], ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    assert [nat for nat, _ in ours] == pytest.approx([nat for nat, _ in theirs], rel=0, abs=NAT)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert likeliest(requests, ours) == likeliest(requests, theirs)


TASKS = [
    ("hellaswag", "data/hellaswag/validation_1000.jsonl", {}),
    ("arc_easy", "data/arc_easy/test.jsonl", {}),
    ("arc_easy", "data/arc_easy/test.jsonl", {"fewshot": 3}),
    ("arc_easy", "data/arc_easy/test.jsonl", {"fewshot": 4, "sampler": "first_n"}),
    ("arc_easy", "data/arc_easy/test.jsonl", {"fewshot": 9}),  # longer than the model takes
    ("piqa", "data/piqa/validation.jsonl", {}),
    ("winogrande", "data/winogrande/validation.jsonl", {}),
    ("lambada_openai", "data/lambada_openai/test.jsonl", {}),
]


@pytest.mark.parametrize(("name", "data", "settings"), all_thorough_but(TASKS[:2], TASKS))
def test_scores_of_real_tasks_are_hflms(
    stories: Both, shared: Shared, name: str, data: str, settings: dict[str, Any]
) -> None:
    requests = asked(name, shared(data), 8, **settings)
    theirs = stories.judge().loglikelihood(requests, disable_tqdm=True)
    packed = stories.ours(budget_tokens=256)
    assert packed.layout == "packed"
    assert_same(requests, packed.loglikelihood(requests), theirs)
    alone = stories.ours(layout="alone")
    assert_same(requests, alone.loglikelihood(requests), theirs)
    assert packed.effort.tokens <= alone.effort.tokens
    model, ragged = stories.scheduling(budget_tokens=512)
    assert_same(requests, ragged.loglikelihood(requests), theirs)
    assert ragged.effort.tokens == alone.effort.tokens == sum(len(text) for group in model.read for text in group)
    assert len(model.read) < ragged.effort.tokens / 256  # groups are at least half full


def test_a_header_of_all_questions_goes_through_the_model_once(stories: Both, shared: Shared) -> None:
    requests = asked("arc_easy", shared("data/arc_easy/test.jsonl"), 8, fewshot=4, sampler="first_n")
    packed, alone = stories.ours(budget_tokens=256), stories.ours(layout="alone")
    packed.loglikelihood(requests)
    alone.loglikelihood(requests)
    assert packed.effort.tokens < alone.effort.tokens / 5


def test_whole_texts_are_hflms_in_windows_of_the_models_length(stories: Both, shared: Shared, tmp_path: Path) -> None:
    lines = shared("data/wikitext2/wiki.test.raw").read_text(encoding="utf-8").splitlines(keepends=True)
    pages = ["".join(lines[:3]), "".join(lines[3:12]), "".join(lines[12:15]), ""]
    data = tmp_path / "pages.jsonl"
    data.write_text("".join(json.dumps({"page": page}) + "\n" for page in pages), encoding="utf-8")
    requests = asked("wikitext", data, 4)
    assert len(stories.tokenizer.encode(requests[1].args[0])) > 2 * 512
    theirs = stories.judge(batch_size=2).loglikelihood_rolling(requests, disable_tqdm=True)
    assert stories.ours().loglikelihood_rolling(requests) == pytest.approx(theirs, rel=1e-6, abs=NAT)


@pytest.mark.parametrize(("bos", "add_bos_token"), [("auto", None), ("always", True), ("never", False)])
def test_bos_and_the_borders_of_texts_are_hflms(small: Both, bos: Any, add_bos_token: bool | None) -> None:
    requests = instances(
        "loglikelihood",
        ("A river", " runs"),
        ("A river ", "runs"),  # the space belongs to the continuation
        ("A river \n\n", "runs"),
        ("", "A river runs"),
        ("", "<s>A river runs"),
        ("<s>A river", " runs"),
        ("A", "n old river"),
        ("A river", " runs"),
    )
    ours = small.ours(bos=bos).loglikelihood(requests)
    judge = small.judge(add_bos_token=add_bos_token, logits_cache=False)  # which takes two cuts of one text for one
    assert_same(requests, ours, judge.loglikelihood(requests, disable_tqdm=True))
    assert ours[0] == ours[-1]


def test_bos_makes_a_difference(small: Both) -> None:
    requests = instances("loglikelihood", ("A river", " runs"))
    assert small.ours(bos="never").loglikelihood(requests) != small.ours(bos="always").loglikelihood(requests)


def test_long_contexts_are_cut_on_the_left_as_hflms(small: Both) -> None:
    requests = instances("loglikelihood", *((f"{start} A river ran " * 20, " through it") for start in "xyz"))
    ours = small.ours(max_length=32)
    assert_same(requests, ours.loglikelihood(requests), small.judge(max_length=32).loglikelihood(requests))
    assert ours.effort.tokens <= 3 * 32
    assert small.ours().max_length == small.judge().max_length == 512


@pytest.mark.parametrize("settings", [{"fewshot": 1}, {"fewshot": 1, "sampler": "first_n"}])
def test_written_answers_are_hflms(
    stories: Both, shared: Shared, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked("gsm8k", shared("data/gsm8k/test.jsonl"), 5, **settings)
    for index, request in enumerate(requests):
        until = [["Question:", " little"], [".", "\n\n"]][index % 2]
        request.arguments = (request.args[0], {"until": until, "max_gen_toks": 40, "do_sample": False})
    theirs = stories.judge(batch_size=1).generate_until(requests, disable_tqdm=True)
    assert len(set(theirs)) > 1
    assert all(theirs)
    assert stories.ours().generate_until(requests) == theirs
    assert stories.ours(layout="alone").generate_until(requests) == theirs
    monkeypatch.setattr("harness.tasks.lm.ANSWERS_AT_ONCE", 2)  # the others wait until one of them is done
    assert stories.ours().generate_until(requests) == theirs


def test_what_is_written_stops_where_it_should(stories: Both) -> None:
    prompts = ["Once upon a time", "The little girl was very", "Tom and his dog went to the park and"]
    plain = stories.ours().generate_until(
        instances("generate_until", *((text, {"max_gen_toks": 50}) for text in prompts))
    )
    for until in (".", " was", "a", "the"):
        settings = {"until": [until, "never this"], "max_gen_toks": 50}
        found = stories.ours().generate_until(instances("generate_until", *((text, settings) for text in prompts)))
        assert found == [text.split(until)[0] for text in plain]
        assert found != plain


def test_a_model_that_schedules_prompts_writes_what_hflm_writes(stories: Both, shared: Shared) -> None:
    requests = asked("gsm8k", shared("data/gsm8k/test.jsonl"), 4, fewshot=1)
    for index, request in enumerate(requests):
        until = [["Question:", " little"], "."][index % 2]
        request.arguments = (request.args[0], {"until": until, "max_gen_toks": 20 + index % 2, "do_sample": False})
    theirs = stories.judge(batch_size=1).generate_until(requests, disable_tqdm=True)
    assert len(set(theirs)) > 1
    model, lm = stories.scheduling()
    assert lm.generate_until(requests) == theirs
    end = stories.tokenizer.eos_token
    stops = [["Question:", " little", end], [".", end]]
    expected = [(2, 20, stops[0], {"do_sample": False}), (2, 21, stops[1], {"do_sample": False})]
    assert [(len(prompts), new, until, rest) for prompts, new, until, _, rest in model.written] == expected
    model, alone = stories.scheduling(layout="alone")
    assert alone.generate_until(requests) == theirs
    assert [seeds for _, _, _, seeds, _ in model.written] == [[request_seed(0, number)] for number in (0, 2, 1, 3)]
    assert (lm.effort.tokens, lm.effort.head_rows) == (alone.effort.tokens, alone.effort.head_rows)
    assert (lm.effort.forwards, alone.effort.forwards) == (2, 4)
    empty = instances("generate_until", ("Once upon a time", {"until": ["", "?"], "max_gen_toks": 10}))
    assert lm.generate_until(empty) == stories.judge(1).generate_until(empty, disable_tqdm=True)


def test_what_a_scheduled_prompt_costs_is_counted(stories: Both) -> None:
    _, lm = stories.scheduling(max_length=40)
    lm.generate_until(instances("generate_until", ("Once upon a time " * 20, {"until": [], "max_gen_toks": 10})))
    assert lm.effort == Effort(tokens=30 + 9, head_rows=10, forwards=1)  # cut on the left; the last is never read


def test_texts_are_drawn_each_from_a_seed_of_its_own(stories: Both) -> None:
    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_gen_toks": 20}
    requests = instances("generate_until", *[("Once upon a time", settings)] * 3)
    model, lm = stories.scheduling(writing=WritingRules(seed=5))
    found = lm.generate_until(requests)
    assert len(set(found)) == 3
    assert [(seeds, rest) for *_, seeds, rest in model.written] == [
        ([request_seed(5, number) for number in range(3)], {"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    ]
    assert stories.scheduling(writing=WritingRules(seed=5), layout="alone")[1].generate_until(requests) == found


def test_a_prompt_of_one_token_is_written_after_too(stories: Both) -> None:
    requests = instances("generate_until", *((text, {"max_gen_toks": 10}) for text in ("", "Once upon a time")))
    assert stories.ours().generate_until(requests) == stories.judge(1).generate_until(requests, disable_tqdm=True)


DRAWN = Sampling(samples=3, temperature=0.8, top_p=0.95, seed=5)


def samples_of(lm: HarnessLM, requests: list[Instance]) -> list[list[str]]:
    return [lm.generate_until(requests) for _ in range(DRAWN.samples)]


def test_samples_are_drawn_whatever_else_is_in_the_batch(stories: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    until = {"until": ["."], "max_gen_toks": 30, "do_sample": False, "temperature": 0.0}
    requests = instances("generate_until", *((text, until) for text in ("Once upon a time", "Tom and his dog", "A")))
    writing = WritingRules(sampling=DRAWN, new_tokens=20)
    lm = stories.ours(writing=writing)
    found = samples_of(lm, requests)
    assert len({text for each in found for text in each}) > 6, "each sample is a text of its own"
    assert found == samples_of(stories.ours(writing=writing), requests)
    assert found == samples_of(stories.ours(writing=writing, layout="alone"), requests)
    monkeypatch.setattr("harness.tasks.lm.ANSWERS_AT_ONCE", 2)
    assert found == samples_of(stories.ours(writing=writing), requests)
    other = stories.ours(writing=replace(writing, sampling=replace(DRAWN, seed=6)))
    assert found != samples_of(other, requests)
    first = stories.ours(writing=WritingRules(sampling=replace(DRAWN, temperature=1e-4)))
    greedy = stories.ours().generate_until(requests)
    assert samples_of(first, requests) == [greedy] * 3, "at no temperature the likeliest is drawn"
    half = stories.ours(writing=writing)
    half.generate_until(requests)
    with pytest.raises(InvalidRunError, match="different prompts"):
        half.generate_until(requests[:1] * 3)


def test_an_engine_that_samples_itself_gets_a_seed_for_every_sample(stories: Both) -> None:
    requests = instances("generate_until", *((text, {"max_gen_toks": 9}) for text in ("Once upon a time", "Tom")))
    model, lm = stories.scheduling(writing=WritingRules(sampling=DRAWN))
    lm.generate_until(requests)
    ((prompts, new, _, seeds, rest),) = model.written
    assert (len(prompts), new, seeds) == (6, 9, [request_seed(0, number) for number in range(6)])
    assert prompts[0] == prompts[1] == prompts[2] != prompts[3]
    assert rest == {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "top_k": 0, "min_p": 0.0}


@pytest.mark.parametrize("scheduled", [False, True])
def test_how_each_answer_ended_is_known(stories: Both, scheduled: bool) -> None:
    lm = stories.scheduling()[1] if scheduled else stories.ours()
    texts = ("Once upon a time", "Tom and his dog went to the park and")
    for until, limit in (([], 12), ([" the", ".", " a"], 60)):
        requests = instances("generate_until", *((text, {"until": until, "max_gen_toks": limit}) for text in texts))
        written = lm.generate_until(requests)
        found = [lm.generations["own", index] for index in range(2)]
        assert [each.text for each in found] == written
        assert [each.truncated for each in found] == [not until] * 2
        for each in found:
            assert each.seconds > 0
            assert each.whole == stories.tokenizer.decode(each.tokens)
            assert len(each.tokens) == limit if each.truncated else 0 < len(each.tokens) < limit


@pytest.mark.parametrize("scheduled", [False, True])
def test_what_follows_the_thinking_is_what_hflm_scores(stories: Both, scheduled: bool) -> None:
    prompts = ("Once upon a time", "Tom and his dog went to the park and", "One day, the")
    requests = instances("generate_until", *((text, {"until": ["."], "max_gen_toks": 30}) for text in prompts))
    writing = WritingRules(think_end=" a")
    lm = stories.scheduling(writing=writing)[1] if scheduled else stories.ours(writing=writing)
    found = lm.generate_until(requests)
    assert found == stories.judge(1, think_end_token=" a").generate_until(requests, disable_tqdm=True)
    whole = stories.ours()
    assert found != whole.generate_until(requests)
    assert [each.whole for each in lm.generations.values()] == [each.whole for each in whole.generations.values()]


class Spelled:
    """A tokenizer with a token for each character, and special ones for the end and for that of the thinking."""

    eos_token_id = pad_token_id = 0
    all_special_ids = (0, 1)
    chat_template = None

    def decode(self, tokens: Any, skip_special_tokens: bool = False) -> str:
        spelled = {0: "<end>", 1: "</think>"} if not skip_special_tokens else {0: "", 1: ""}
        return "".join(spelled.get(each, chr(each)) for each in ([tokens] if isinstance(tokens, int) else tokens))


def test_a_special_token_may_end_the_thinking() -> None:
    def answer(*written: str | int) -> str:
        tokens = [code for part in written for code in ([part] if isinstance(part, int) else map(ord, part))]
        rules = _GroupRules(Spelled(), 99, {"until": ["."], "max_gen_toks": 50}, WritingRules(think_end="</think>"))
        return rules.generation(_Text(0, (65,), tokens)).text

    assert answer("6. No, 7", 1, "or 8", 1, " It is 7. Yes", 0) == "It is 7"
    assert answer("It is 7. Yes", 0) == "It is 7", "all of it if there is no end"


def test_a_task_may_score_what_follows_the_thinking_alone() -> None:
    """A tool call that is only thought of is none, whatever opened the thinking, and whether or not it ends."""

    def scored(prompt: str, written: str, truncated: bool = False) -> str:
        settings = {"until": ["<end>"], "max_gen_toks": 50, "without_thinking": True}
        rules = _GroupRules(Spelled(), 99, settings, WritingRules())
        assert "without_thinking" not in rules.settings, "no engine knows it"
        return rules.generation(_Text(0, tuple(map(ord, prompt)), list(map(ord, written)), truncated=truncated)).text

    assert scored("Q", "<think>call a?</think>call b") == "call b"
    assert scored("Q<think>", "call a?</think>call b") == "call b"
    assert scored("Q", "call b") == "call b"
    assert scored("Q", "<think>call a, but", truncated=True) == ""
    assert scored("Q<think>\n", "call a, but", truncated=True) == ""
    assert scored("Q", "<seed:think>call a?</seed:think>call b") == "call b"


def test_drawn_answers_repeat_with_their_seed(stories: Both) -> None:
    requests = instances(
        "generate_until", ("Once upon a time", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 30})
    )
    drawn = [stories.ours(writing=WritingRules(seed=seed)).generate_until(requests) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_effort_counts_what_writing_takes(stories: Both) -> None:
    counted = {"tokens": 0, "head_rows": 0}

    def decoded(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counted["tokens"] += kwargs["input_ids"].numel()

    def headed(_: Any, args: tuple[Any, ...]) -> None:
        counted["head_rows"] += args[0].shape[:-1].numel()

    header = "Once upon a time there was a little girl who had a red ball and a dog and a cat. " * 3
    prompts = ((header + text, {"until": ["."], "max_gen_toks": 60}) for text in ("She", "The dog was", "One day, the"))
    requests = instances("generate_until", *prompts)
    ours = stories.ours()
    hooks = (
        stories.raw.model.register_forward_pre_hook(decoded, with_kwargs=True),
        stories.raw.lm_head.register_forward_pre_hook(headed),
    )
    ours.generate_until(requests)
    for hook in hooks:
        hook.remove()
    assert counted == {"tokens": ours.effort.tokens, "head_rows": ours.effort.head_rows}
    assert ours.effort.tokens < 2 * len(stories.tokenizer.encode(header))  # which goes through the model once


def test_chats_are_put_as_hflm_puts_them(small: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}> {% endif %}"
    )
    monkeypatch.setattr(small.tokenizer, "chat_template", template)
    chat = [{"role": "user", "content": "A river?"}, {"role": "assistant", "content": "It runs"}]
    ours, judge = small.ours(), small.judge()
    for prompted in (True, False):
        assert ours.apply_chat_template(chat, prompted) == judge.apply_chat_template(chat, prompted)
    assert ours.apply_chat_template(chat).endswith("> ")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}" + template
    monkeypatch.setattr(small.tokenizer, "chat_template", strict)
    refused = [{"role": "system", "content": "Be brief."}, *chat]
    assert ours.apply_chat_template(refused) == judge.apply_chat_template(refused) == ours.apply_chat_template(chat)
    monkeypatch.setattr(small.tokenizer, "chat_template", template)
    assert ours.chat_template(True) == template
    assert ours.tokenizer_name == judge.tokenizer_name


def test_noise_of_the_layout_is_measured(small: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = ["?", ".", "a", "e", "s"]
    requests = [
        Instance("loglikelihood", {}, (f"The {subject}", choice), index, metadata=("own", doc, 1))
        for doc, subject in enumerate(("river", "harbour", "letter"))
        for index, choice in enumerate(choices)
    ]
    noise = small.ours().batch_noise(requests)
    assert (noise.items, noise.changed, noise.layouts) == (3, 0, ("packed", "alone"))
    assert noise.nat < 1e-4
    assert small.ours(layout="alone").batch_noise(requests).layouts == ("alone", "packed")

    forward_tree = small.model.forward_tree
    monkeypatch.setattr(small.model, "forward_tree", lambda *row: -forward_tree(*row))
    noise = small.ours().batch_noise(requests)
    first, second = (small.ours(layout=layout).loglikelihood(requests) for layout in ("packed", "alone"))
    assert noise.nat == pytest.approx(max(abs(a[0] - b[0]) for a, b in zip(first, second, strict=True)))
    differ = likeliest(requests, first).items() ^ likeliest(requests, second).items()
    assert noise.changed == len({doc for doc, _ in differ}) > 0


@pytest.mark.parametrize(
    "built",
    [
        lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=8)),
        lambda: MambaForCausalLM(MambaConfig(**SMALL)),
    ],
    ids=["windows", "no cache of keys and values"],
)
def test_a_model_that_cannot_branch_is_run_in_batches(tiny: Path, built: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    both = Both(tiny, built().eval())
    requests = instances("loglikelihood", ("A river", " runs"), ("A river", " is wide"), ("An", " old letter"))
    assert both.ours().layout == "batched"
    assert_same(requests, both.ours().loglikelihood(requests), both.judge().loglikelihood(requests, disable_tqdm=True))
    prompts = instances("generate_until", *((text, {"max_gen_toks": 20, "until": ["e"]}) for text in ("A river", "An")))
    assert both.ours().generate_until(prompts) == both.judge(2).generate_until(prompts, disable_tqdm=True)
    with pytest.raises(UnsupportedError, match="cannot run rows that branch"):
        both.ours(layout="packed")


def test_what_cannot_be_scored_is_told(small: Both, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="tasks need a tokenizer"):
        HarnessLM(TransformersModel(small.raw, None))
    with pytest.raises(UnsupportedError, match="9 tokens; the model takes 8"):
        small.ours(max_length=8)._loglikelihood_tokens([(("", ""), [5], list(range(9)))])
    with pytest.raises(UnsupportedError, match="20 tokens are to be written, and the model takes 16"):
        small.ours(max_length=16).generate_until(instances("generate_until", ("A river", {"max_gen_toks": 20})))
    with pytest.raises(InvalidRunError, match="without tokens"):
        small.ours().loglikelihood(instances("loglikelihood", ("A river", "")))
    head = small.model.head
    monkeypatch.setattr(small.model, "head", lambda hidden: head(hidden) * torch.nan)
    with pytest.raises(InvalidRunError, match="own:0: its log-likelihood is not a number"):
        small.ours().loglikelihood(instances("loglikelihood", ("A river", " runs")))
    bare = AutoTokenizer.from_pretrained(tiny)
    bare.bos_token = None
    with pytest.raises(UnsupportedError, match="no BOS"):
        HarnessLM(TransformersModel(small.raw, bare), bos="always")
