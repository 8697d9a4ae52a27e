"""An lm-eval model around a loaded model: tokenizes, truncates and stops like lm-eval's own HFLM, but is faster.

It needs lm-eval, so only code that runs a task imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import DEFAULT_MAX_LENGTH, TOKENIZER_INFINITY, configure_pad_token, has_bos_prefix
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from harness.core.capability import Completes, Encode, Generates, LoadedModel, as_branching
from harness.core.workload import ANSWERS_AT_ONCE
from harness.errors import InvalidRunError, UnsupportedError
from harness.tasks.answers import Completion
from harness.tasks.generating import AS_THE_TASK_SAYS, WritingRules, generate
from harness.tasks.scoring import Effort, Layout, Request, Score, default_budget, default_layout, score
from harness.tasks.tool_calls.prompts import templated


def encode(tokenizer: Any, texts: Sequence[str], special: bool) -> Sequence[Sequence[int]]:
    """All texts in one batch."""
    return tokenizer(list(texts), add_special_tokens=special)["input_ids"]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BatchNoise:
    """How much another layout changes the scores of the same requests: ``nat`` is the largest difference, ``changed``
    counts the items whose most likely continuation changes."""

    nat: float
    items: int
    changed: int
    layouts: tuple[Layout, Layout]


class HarnessLM(TemplateLM):  # type: ignore[misc]
    """An ``lm_eval.api.model.LM`` on a loaded model. ``effort`` counts the work done so far.

    ``layout=None`` selects the fastest layout that the model supports. ``encode`` may keep what it once made. If
    answers are sampled, the first call of ``generate_until`` writes all samples of its requests at once, and returns
    the first one of each; the next calls, which must bring the same requests, return the others. ``generations`` are
    those of the latest call, by task and question. Raises UnsupportedError if there is no tokenizer, if it lacks the
    BOS token that ``bos`` requires, or if the model does not support the layout.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        layout: Layout | None = None,
        bos: Literal["auto", "always", "never"] = "auto",
        max_length: int | None = None,
        budget_tokens: int | None = None,
        encode: Encode = encode,
        writing: WritingRules = AS_THE_TASK_SAYS,
    ) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise UnsupportedError("tasks need a tokenizer, and the model has none")
        if model.tokenizer.bos_token_id is None and model.tokenizer.eos_token_id is None:
            raise UnsupportedError("tasks need a tokenizer with BOS or EOS, to stand before a text without a context")
        if bos == "always" and model.tokenizer.bos_token_id is None:
            raise UnsupportedError("bos: always: the tokenizer has no BOS token")
        if layout == "packed" and as_branching(model) is None:
            raise UnsupportedError("this model cannot run rows that branch")
        self.model = model
        self.layout: Layout = layout or default_layout(model)
        self.budget = budget_tokens or default_budget(model)
        self.effort = Effort()
        self.tokenizer = configure_pad_token(model.tokenizer)
        self.max_length = max_length or _max_length(model)
        self._bos = bos
        self._device = model.device
        self._encode = encode
        self._writing = writing
        self._rounds: list[list[Completion]] = []
        self._contexts: list[str] = []
        self.generations: dict[tuple[str | None, int | None], Completion] = {}

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token placed before a continuation that has no context."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text. As in HFLM, the system prompt is dropped if the template rejects it.

        A request with tools in the plain format of ``harness.tasks.tool_calls.prompts`` becomes one by the template.
        """
        asked = templated(self.tokenizer, chat_history[-1]["content"]) if len(chat_history) == 1 else None
        if asked is not None:
            return asked
        ending = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ending))
        except TemplateError:
            rest = [message for message in chat_history if message["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(rest, tokenize=False, **ending))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        return list(self._encoded([string], special=add_special_tokens is not False)[string])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._answers(self._tokenized(requests), [_name(instance) for instance in requests])

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        wanted = [self._request(context, continuation) for _, context, continuation in requests]
        return self._answers(wanted, [repr(texts) for texts, _, _ in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts in windows of the model's length; each token is predicted once, as in HFLM."""
        encoded = self._encoded(instance.args[0] for instance in requests)
        windows: list[Request] = []
        names: list[str] = []
        counts = []
        for instance in requests:
            tokens = list(encoded[instance.args[0]])
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            found = [self._request(*make_disjoint_window(each)) for each in cut]
            windows += found
            names += [_name(instance)] * len(found)
            counts.append(len(found))
        answers = iter(self._answers(windows, names))
        return [math.fsum(next(answers)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        contexts = [instance.args[0] for instance in requests]
        if not self._rounds:
            self._rounds, self._contexts = self._write(contexts, [instance.args[1] for instance in requests]), contexts
        if contexts != self._contexts:
            raise InvalidRunError("the samples of a question have different prompts")
        found = self._rounds.pop(0)
        asked = [(instance.task_name, instance.doc_id) for instance in requests]
        self.generations = dict(zip(asked, found, strict=True)) if len(set(asked)) == len(asked) else {}
        return [each.text for each in found]

    def _write(self, contexts: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[list[Completion]]:
        """What is written after each context: a list for each sample. All samples of a context follow one another."""
        if not isinstance(self.model, Generates | Completes):
            raise UnsupportedError("the task generates text, and this engine cannot")
        sampling, new_tokens = self._writing.sampling, self._writing.new_tokens
        samples = sampling.samples if sampling else 1
        encoded = self._encoded(contexts)
        limits = {} if new_tokens is None else {"max_gen_toks": new_tokens}
        prompts = [
            (encoded[text], {**own, **limits})
            for text, own in zip(contexts, settings, strict=True)
            for _ in range(samples)
        ]
        rows = 1 if self.layout == "alone" else ANSWERS_AT_ONCE
        found = generate(self.model, self.tokenizer, prompts, self.max_length, rows, self.effort, self._writing)
        return [found[sample::samples] for sample in range(samples)]

    def batch_noise(self, requests: Sequence[Instance]) -> BatchNoise:
        """Scores a few requests in this layout and in another. All requests of an item should be included."""
        other: Layout = "alone" if self.layout != "alone" else default_layout(self.model)
        wanted = self._tokenized(requests)
        first, second = (score(self.model, wanted, layout, self.budget) for layout in (self.layout, other))
        nat = max((abs(a.loglikelihood - b.loglikelihood) for a, b in zip(first, second, strict=True)), default=0.0)
        items: dict[tuple[str | None, int | None], list[int]] = {}
        for index, instance in enumerate(requests):
            items.setdefault((instance.task_name, instance.doc_id), []).append(index)
        changed = sum(_likeliest(first, item) != _likeliest(second, item) for item in items.values())
        return BatchNoise(nat, len(items), changed, (self.layout, other))

    def _answers(self, requests: Sequence[Request], names: Sequence[str]) -> list[tuple[float, bool]]:
        scores = score(self.model, requests, self.layout, self.budget, self.effort)
        for name, each in zip(names, scores, strict=True):
            if math.isnan(each.loglikelihood):
                raise InvalidRunError(f"{name}: its log-likelihood is not a number")
        return [(each.loglikelihood, each.greedy) for each in scores]

    def _tokenized(self, requests: Sequence[Instance]) -> list[Request]:
        """Contexts and continuations, split as in TemplateLM: trailing spaces of a context move to the continuation."""
        pairs = [_spaces_moved(*instance.args) for instance in requests]
        bare = self._encoded((text for context, text in pairs if not context), special=False)
        whole = self._encoded(text for context, text in pairs if context for text in (context, context + text))
        return [
            self._request(whole[context], whole[context + text][len(whole[context]) :])
            if context
            else self._without_context(bare[text])
            for context, text in pairs
        ]

    def _without_context(self, tokens: tuple[int, ...]) -> Request:
        if tokens[:1] == (self.prefix_token_id,):
            return self._request(tokens[:1], tokens[1:])
        return self._request((self.prefix_token_id,), tokens)

    def _request(self, context: Iterable[int], continuation: Iterable[int]) -> Request:
        """A request, truncated on the left to the model's length plus one: the last token is predicted, never read."""
        whole, asked = (*context, *continuation), tuple(continuation)
        if not asked:
            raise InvalidRunError("a continuation without tokens cannot be scored")
        if len(asked) > self.max_length:
            raise UnsupportedError(f"a continuation of {len(asked)} tokens; the model takes {self.max_length}")
        kept = whole[-(self.max_length + 1) :]
        return Request(kept[: len(kept) - len(asked)], asked)

    def _encoded(self, strings: Iterable[str], special: bool = True) -> Mapping[str, tuple[int, ...]]:
        """Tokens of every distinct string; ``special`` adds BOS according to ``bos``, but never a second one."""
        distinct = list(dict.fromkeys(strings))
        begun = self.tokenizer.decode(self.prefix_token_id)
        found: dict[str, tuple[int, ...]] = {}
        for add in (True, False):
            mine = [text for text in distinct if add == (special and not has_bos_prefix(text, begun))]
            if mine:
                automatic = add and self._bos == "auto"
                rows = self._encode(self.tokenizer, mine, automatic)
                lead = (int(self.tokenizer.bos_token_id),) if add and self._bos == "always" else ()
                found.update((text, (*lead, *row)) for text, row in zip(mine, rows, strict=True))
        return found


def _name(instance: Instance) -> str:
    return f"{instance.task_name}:{instance.doc_id}"


def _spaces_moved(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _max_length(model: LoadedModel) -> int:
    """The maximum length of the model, else of the tokenizer, else HFLM's default."""
    if model.context_length is not None:
        return model.context_length
    named = getattr(model.tokenizer, "model_max_length", None)
    return DEFAULT_MAX_LENGTH if named in (None, TOKENIZER_INFINITY) else int(named)


def _likeliest(scores: Sequence[Score], requests: Sequence[int]) -> int:
    return max(requests, key=lambda index: scores[index].loglikelihood)
