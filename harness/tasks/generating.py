"""Generates text after prompts until a stop sequence, with the same results as lm-eval's HFLM.

Prompts are prefilled one by one, without padding; a common prefix of all prompts is prefilled once. Completion then
runs in a batch: a finished text leaves, and the next prompt takes its place. A model that cannot branch, or must see
one prompt at a time, gets the prompts as HFLM would pass them. A model that schedules prompts itself gets all at once.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from harness.core.capability import Branching, Completes, Generates, Prompt, as_branching
from harness.errors import UnsupportedError
from harness.tasks.answers import Completion
from harness.tasks.prefix_tree import common
from harness.tasks.sampling import OWN_SETTINGS, Sampling
from harness.tasks.scoring import Effort
from harness.tasks.stops import StopStrings
from harness.tasks.thinking import marks_of, thinking, tokens_of

if TYPE_CHECKING:
    import torch

TaskPrompt = tuple[tuple[int, ...], Mapping[str, Any]]
"""Tokens, and lm-eval's generation settings."""
DEFAULT_NEW_TOKENS = 256
"""HFLM's limit for tasks that set none."""
STRETCH = 16
"""Steps between removals of finished texts from the batch."""
PLAIN_SETTINGS = {"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"}
"""Settings that do not depend on the number of steps, so that generation can be interrupted and resumed."""
WITHOUT_THINKING = "without_thinking"
"""A setting of a task: what follows an answer's thinking is scored, which is nothing if the thinking never ended."""
PROMPT_END_TOKENS = 16
"""Of a prompt, in which a chat template may have opened the model's thinking."""
SHARED_TOKENS = 32
"""Minimum length of a common prefix of all prompts that is prefilled only once."""


@dataclass(frozen=True)
class WritingRules:
    """How answers are written, whatever their task says.

    With ``sampling``, each prompt has randomness of its own, and the samplings of the tasks themselves do not count;
    otherwise those are seeded by ``seed``. ``new_tokens`` replaces the tasks' own limits of tokens. Of an answer, only
    what follows the last ``think_end`` is scored, if it has one.
    """

    seed: int = 0
    sampling: Sampling | None = None
    new_tokens: int | None = None
    think_end: str | None = None


AS_THE_TASK_SAYS = WritingRules()


def generate(
    model: Generates | Completes,
    tokenizer: Any,
    prompts: Sequence[TaskPrompt],
    max_length: int,
    rows: int,
    effort: Effort,
    writing: WritingRules,
) -> list[Completion]:
    """What the model writes after each prompt, in order. ``rows`` is the batch size. Adds the work done to ``effort``.

    Raises UnsupportedError if the model's length leaves no room for a prompt, or for settings that the model cannot
    follow.
    """
    import torch

    torch.manual_seed(writing.seed)
    found: list[Completion | None] = [None] * len(prompts)
    groups: dict[str, list[int]] = {}
    for index, (_, settings) in enumerate(prompts):
        groups.setdefault(json.dumps(settings, sort_keys=True, default=repr), []).append(index)
    for group in groups.values():
        rules = _GroupRules(tokenizer, max_length, prompts[group[0]][1], writing)
        texts = [_Text(index, prompts[index][0][-rules.room :]) for index in group]
        with torch.inference_mode():
            if isinstance(model, Completes):
                _complete(model, rules, texts, len(texts) if rows > 1 else 1, writing.seed, effort)
            else:
                _Writer(model, rules, effort).write(texts, rows)
        for text in texts:
            found[text.number] = rules.generation(text)
    return [each for each in found if each is not None]


@dataclass
class _Text:
    """The prompt with this number, the tokens generated so far, and whether generation is done.

    ``truncated``: the limit ended it.
    """

    number: int
    prompt: tuple[int, ...]
    written: list[int] = field(default_factory=list)
    done: bool = False
    truncated: bool = False
    seconds: float = 0.0

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.written]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.written)


class _GroupRules:
    """lm-eval's settings of one group of prompts: how to generate, when to stop, and what is left of the text.

    ``settings`` are for transformers' ``generate``, ``stops`` are the stop sequences and the tokenizer's EOS, ``new``
    is the largest number of tokens to write, and ``room`` the number of tokens that remain for a prompt. With
    ``sampling``, the settings have nothing about it.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        settings: Mapping[str, Any],
        writing: WritingRules,
    ) -> None:
        self.tokenizer = tokenizer
        self.sampling = writing.sampling
        self._think_end = writing.think_end
        self.settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
        if self.settings.get("temperature") == 0.0:
            del self.settings["temperature"]  # transformers accepts no temperature without sampling
        if self.sampling is not None:
            self.settings = {name: each for name, each in self.settings.items() if name not in OWN_SETTINGS}
        self._without_thinking = bool(self.settings.pop(WITHOUT_THINKING, False))
        self.new = int(self.settings.pop("max_gen_toks"))
        eos = tokenizer.eos_token_id
        end = None if eos is None else tokenizer.decode(eos, skip_special_tokens=False)
        self.stops: list[str] = handle_stop_sequences(self.settings.pop("until"), eos=end)
        self._marks = marks_of(tokenizer)
        self._special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
        self.room = max_length - self.new
        if self.room <= 0:
            raise UnsupportedError(f"{self.new} tokens are to be written, and the model takes {max_length} in all")

    def generation(self, written: _Text) -> Completion:
        tokens = list(written.written)
        while tokens and not written.truncated and tokens[-1] in self._special:
            tokens.pop()
        end = self.tokenizer.decode(written.prompt[-PROMPT_END_TOKENS:], skip_special_tokens=False)
        thought = thinking(tokens, end, self._decoded, self._marks)
        scored = written.written[thought.end :] if self._without_thinking else written.written
        return Completion(
            str(postprocess_generated_text(self._text(scored), self.stops, self._think_end)),
            self._decoded(tokens),
            tuple(tokens),
            written.truncated,
            written.seconds,
            thought,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        """The text without special tokens; if one of these ends the thinking, only what follows the last such token."""
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        if not self._think_end or self._think_end in text:
            return text
        place = self._decoded(tokens).rfind(self._think_end)
        if place < 0:
            return text
        after = tokens[tokens_of(tokens, place + len(self._think_end), self._decoded) :]
        return str(self.tokenizer.decode(after, skip_special_tokens=True)).lstrip()

    def _decoded(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))


def _complete(
    model: Completes, rules: _GroupRules, texts: Sequence[_Text], together: int, seed: int, effort: Effort
) -> None:
    """Has the model write all texts, ``together`` of them at once."""
    stops = [stop for stop in rules.stops if stop]
    new = rules.new if len(stops) == len(rules.stops) else 1  # an empty one is in every text
    settings = {**rules.settings, **(rules.sampling.settings if rules.sampling else {})}

    def ended(written: Sequence[int]) -> bool:
        text = rules.tokenizer.decode(written, skip_special_tokens=False)
        return any(stop in text for stop in rules.stops)

    for low in range(0, len(texts), together):
        part = texts[low : low + together]
        prompts = [Prompt(text.prompt, text.number) for text in part]
        began = time.perf_counter()
        found = model.complete(prompts, new, stops, seed, **settings)
        took_per_token = (time.perf_counter() - began) / max(1, sum(map(len, found)))
        for text, written in zip(part, found, strict=True):
            text.written, text.seconds = written, took_per_token * len(written)
            text.truncated = len(written) >= new and not ended(written)
            effort.add(tokens=len(text) - 1, head_rows=len(written))  # the last token is written, never read
        effort.add(forwards=1)


class _Writer:
    """Generates text for prompts that share the same settings."""

    def __init__(self, model: Generates, rules: _GroupRules, effort: Effort) -> None:
        self._model = model
        self._rules = rules
        self._effort = effort
        self._stops = StopStrings(rules.tokenizer, rules.stops)

    def write(self, texts: Sequence[_Text], rows: int) -> None:
        """Generates all texts. Long prompts go first, so that running out of memory shows early."""
        ordered = sorted(texts, key=len, reverse=True)
        together = rows > 1 and len(ordered[-1]) > 1 and self._rules.settings.keys() <= PLAIN_SETTINGS
        branching = as_branching(self._model) if together else None
        if branching is not None:
            self._in_stretches(branching, ordered, rows)
        else:
            for low in range(0, len(ordered), rows):
                self._continue(ordered[low : low + rows], None, self._rules.new)

    def _in_stretches(self, model: Branching, texts: Sequence[_Text], rows: int) -> None:
        import torch

        shared = self._shared([text.prompt for text in texts])
        stem = self._read(model, texts[0].prompt[:shared], None)[0] if shared else None
        waiting, going, prefix = deque(texts), list[_Text](), None
        last: tuple[int, ...] | None = None
        prefix_of_last: Any = None
        while waiting or going:
            fresh = [waiting.popleft() for _ in range(min(rows - len(going), len(waiting)))]
            read = []
            for text in fresh:
                if text.prompt != last:  # the samples of a question have one prompt
                    (prefix_of_last, text.seconds), last = self._read(model, text.prompt[shared:-1], stem), text.prompt
                read.append(prefix_of_last)
            if fresh:
                prefix = model.join_prefixes([*([prefix] if going else []), *read])
                going += fresh
            steps = min(STRETCH, *(self._rules.new - len(text.written) for text in going))
            prefix = self._continue(going, prefix, steps)
            kept = [row for row, text in enumerate(going) if not text.done]
            going = [going[row] for row in kept]
            if going:
                prefix = model.select_prefix(prefix, torch.tensor(kept), max(map(len, going)) - 1)

    def _shared(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Length of the prompts' common prefix, or 0 if sharing does not pay; leaves each prompt at least 2 tokens."""
        shared = min(common(min(prompts), max(prompts)), min(map(len, prompts)) - 2)
        return shared if len(prompts) > 1 and shared >= SHARED_TOKENS else 0

    def _read(self, model: Branching, tokens: Sequence[int], prefix: Any | None) -> tuple[Any, float]:
        """The prefix cache with these tokens, and the seconds that it took."""
        import torch

        self._effort.add(tokens=len(tokens), forwards=1)
        began = time.perf_counter()
        return model.extend_prefix(torch.tensor(tokens), prefix)[1], time.perf_counter() - began

    def _continue(self, texts: Sequence[_Text], prefix: Any | None, steps: int) -> Any:
        """Generates up to ``steps`` tokens after each text; ``prefix`` caches all tokens but the last, or None."""
        tokens, mask = self._padded(texts)
        stop = _Stop(self._stops, texts)
        settings = {**self._rules.settings, "max_new_tokens": steps, "pad_token_id": self._rules.tokenizer.pad_token_id}
        read = tokens.numel() if prefix is None else len(texts)
        if (sampling := self._rules.sampling) is not None:
            before = [(text.number, len(text.written)) for text in texts]
            settings |= {
                "do_sample": False,
                "choose": lambda step, logits: sampling.scores(logits, [(row, done + step) for row, done in before]),
            }
        began = time.perf_counter()
        written, ended, prefix = self._model.generate(tokens, mask, prefix, stop, **settings)
        took, taken = time.perf_counter() - began, written.shape[1]
        self._effort.add(tokens=read + len(texts) * (taken - 1), head_rows=len(texts) * taken, forwards=taken)
        for text, row, end, own in zip(texts, written.tolist(), stop.ends, ended.tolist(), strict=True):
            text.written += row[:end]
            text.seconds += took / len(texts)
            text.truncated = not own and end is None and len(text.written) >= self._rules.new
            text.done = own or end is not None or text.truncated
        return prefix

    def _padded(self, texts: Sequence[_Text]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask, (texts, length of the longest), padded on the left."""
        import torch

        width = max(map(len, texts))
        tokens = torch.full((len(texts), width), self._rules.tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, text in enumerate(texts):
            tokens[row, width - len(text) :] = torch.tensor(text.tokens)
            mask[row, width - len(text) :] = 1
        return tokens, mask


class _Stop:
    """Detects stop sequences; ``ends`` is the number of tokens that each text needed to reach one, else None."""

    def __init__(self, stops: StopStrings, texts: Sequence[_Text]) -> None:
        self._stops = stops
        self._before = [text.written[-stops.look_back :] for text in texts]
        self.ends: list[int | None] = [None] * len(texts)

    def __call__(self, written: torch.Tensor) -> torch.Tensor:
        import torch

        last = written[:, -self._stops.look_back :].tolist()
        going = [row for row, end in enumerate(self.ends) if end is None]
        ended = self._stops.end([self._before[row] + last[row] for row in going])
        for row, end in zip(going, ended, strict=True):
            if end:
                self.ends[row] = written.shape[1]
        return torch.tensor([end is not None for end in self.ends], device=written.device)
