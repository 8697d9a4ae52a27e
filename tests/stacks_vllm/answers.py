"""Asks transformers and vLLM the same, in the stack of vLLM: ``python answers.py CHECKPOINT``. Prints JSON."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from harness.core.capability import numbered
from harness.core.engine import LoadRequest
from harness.engines.vllm.engine import VllmParams, load
from harness.engines.vllm.model import VllmModel
from harness.errors import UnsupportedError
from harness.tasks.generating import WritingRules
from harness.tasks.lm import HarnessLM
from harness.tasks.scoring import Request, score

WORDS = ("the old river", "a letter", "Tom ran to the harbour.", "She was", "In 1802 the people", "of", "said: why?\n")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"until": [".", "\n\n"], "max_gen_toks": 40, "do_sample": False},
    {"until": ["e"], "max_gen_toks": 30, "temperature": 0.0},
    {"until": [], "max_gen_toks": 25},
    {"until": ["<s>", "th"], "max_gen_toks": 33, "repetition_penalty": 1.7},
)
SAMPLED = {"until": ["."], "max_gen_toks": 24, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
REFUSED: tuple[dict[str, Any], ...] = (
    {"max_gen_toks": 5, "num_beams": 2, "do_sample": False},
    {"max_gen_toks": 5, "penalty_alpha": 0.6},
    {"max_gen_toks": 5, "do_sample": True, "temperature": 3.0},
)


def main(checkpoint: str) -> None:
    folder = Path(checkpoint)
    model = load(LoadRequest(folder, "float32", "cpu"), VllmParams(max_num_seqs=8, max_num_batched_tokens=256))
    model.probe_head()
    raw = AutoModelForCausalLM.from_pretrained(folder).eval()
    raw.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    judge = HFLM(pretrained=raw, tokenizer=tokenizer, batch_size=1)
    found = {**scored(model, judge), **written(model, judge), **drawn(model), "continued": continued(model)}
    print(json.dumps(found))


def texts(count: int, longest: int) -> list[str]:
    draw = random.Random(count)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) for _ in range(count)]


def instances(kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, 0, metadata=("own", index, 1)) for index, each in enumerate(arguments)]


def scored(model: VllmModel, judge: HFLM) -> dict[str, Any]:
    """Log-likelihoods of continuations, of which some are what greedy decoding writes, and of whole long texts."""
    contexts = texts(24, 30)
    greedy = judge.generate_until(
        instances("generate_until", [(text, {"until": [], "max_gen_toks": 3}) for text in contexts])
    )
    asked = [(text, choice) for text, own in zip(contexts, greedy, strict=True) for choice in (own or "?", " a", " of")]
    requests = instances("loglikelihood", asked)
    whole = instances("loglikelihood_rolling", [(" ".join(texts(40, 40)),), ("She was",)])
    ours, alone = HarnessLM(model, budget_tokens=900), HarnessLM(model, layout="alone")
    longest = model.context_length or 0
    full = Request(tuple(index % 500 for index in range(longest - 1)), (7, 8))
    return {
        "layout": ours.layout,
        "theirs": judge.loglikelihood(requests, disable_tqdm=True),
        "ours": ours.loglikelihood(requests),
        "effort": asdict(ours.effort),
        "alone": alone.loglikelihood(requests),
        "rolling": [judge.loglikelihood_rolling(whole, disable_tqdm=True), ours.loglikelihood_rolling(whole)],
        "lengths": [longest, len(judge.tok_encode(whole[0].args[0]))],
        "full": [each.loglikelihood for each in score(model, [full, full], "ragged", 10)],
    }


def written(model: VllmModel, judge: HFLM) -> dict[str, Any]:
    """Greedy texts after prompts of unequal length, in several settings; and those that vLLM has not."""
    prompts = texts(12, 60)
    requests = instances("generate_until", [(text, each) for text in prompts for each in SETTINGS])
    ours = HarnessLM(model)
    refused = []
    for settings in REFUSED:
        try:
            ours.generate_until(instances("generate_until", [("She was", settings)]))
        except UnsupportedError as error:
            refused.append(str(error))
    ours.effort.tokens = ours.effort.head_rows = ours.effort.forwards = 0
    return {
        "greedy": [judge.generate_until(requests, disable_tqdm=True), ours.generate_until(requests)],
        "writing": asdict(ours.effort),
        "refused": refused,
    }


def drawn(model: VllmModel) -> dict[str, Any]:
    """Sampled texts: twice with a seed, one prompt at a time with it, and with another seed."""
    requests = instances("generate_until", [("She was", SAMPLED)] * 4)
    seeded = partial(HarnessLM, model, writing=WritingRules(seed=1))
    lms = (seeded(), seeded(), seeded(layout="alone"), HarnessLM(model, writing=WritingRules(seed=2)))
    return {"sampled": [lm.generate_until(requests) for lm in lms]}


def continued(model: VllmModel) -> list[list[int]]:
    """For a tokenizer that drops the first space, where vLLM finds a stop that the new tokens alone do not have: the
    tokens of a text, those that are expected, and those found."""
    tokenizer = model.tokenizer
    for prompt in texts(200, 20):
        tokens = tokenizer.encode(prompt)
        (plain,) = model.complete(numbered([tokens]), 20, [], 0, do_sample=False)
        stop = tokenizer.decode(plain[:1])
        if stop.startswith(" ") and len(stop) < 4:
            model.tokenizer = _Stripping(tokenizer)
            (found,) = model.complete(numbered([tokens]), 20, [stop], 0, do_sample=False)
            model.tokenizer = tokenizer
            ends = (end for end in range(1, 21) if stop in tokenizer.decode(plain[:end]).lstrip())
            return [plain, plain[: next(ends, 20)], found]
    raise AssertionError("no text begins with a short word after a space")


class _Stripping:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens)).lstrip()


if __name__ == "__main__":
    main(*sys.argv[1:])
