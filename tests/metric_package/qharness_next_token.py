"""How often a model's likeliest tokens hold the one that follows, and how long it takes to write its first token."""

import time
from collections.abc import Iterator, Sequence

from pydantic import PositiveInt

from harness.core.capability import Decodes
from harness.core.metric import Chunk, Metric, MetricParams, Windows
from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, share_of_one
from harness.figures.figure import Figure
from harness.figures.formats import PERCENT
from harness.figures.gate import Gate
from harness.figures.statistic import Items


class NextTokenParams(MetricParams):
    """``top``: how many of the likeliest tokens count as a hit."""

    top: PositiveInt = 1


class NextToken:
    """Counts the hits of each window of the text."""

    def __init__(self, windows: Windows, params: NextTokenParams) -> None:
        self._windows, self._top = windows, params.top
        self._hits, self._tokens = ([0] * len(windows.tokens) for _ in range(2))

    def observe(self, chunk: Chunk) -> None:
        likeliest = chunk.prediction.exponents.topk(self._top, dim=-1).indices
        self._hits[chunk.window] += int((likeliest == chunk.targets[:, None]).any(dim=-1).sum())
        self._tokens[chunk.window] += len(chunk.targets)

    def finish(self) -> Sequence[Measurement]:
        return [
            Measurement(
                metric="next_token_accuracy",
                version=1,
                unit="",
                direction="higher",
                evidence="paired",
                values=tuple(hits / tokens for hits, tokens in zip(self._hits, self._tokens, strict=True)),
                weights=tuple(map(float, self._tokens)),
                item_ids=tuple(map(str, range(len(self._hits)))),
                protocol={**self._windows.protocol, "top": self._top},
            )
        ]


NEXT_TOKEN = Metric(
    name="next-token",
    version=1,
    kind="observer",
    summary="how often the likeliest tokens hold the next one",
    make=NextToken,
    params=NextTokenParams,
)

FIGURE = Figure(
    name="next_token_accuracy",
    group="Quality",
    heading="Next token",
    help="How often the likeliest tokens hold the next one, with its 95% interval.",
    direction="higher",
    format=PERCENT,
    interval=True,
    statistic=Items("next_token_accuracy"),
    gate=Gate(written="points", default=0.02, says="next-token accuracy, window by window", usual=False),
    ask=Ask(
        name="next-token accuracy",
        limit=LimitOption("min-next-token", share_of_one, "SHARE", "least next-token accuracy", "at least {}"),
        objective=Objective("next-token", "the highest next-token accuracy", "with as high a next-token accuracy"),
    ),
)


class FirstTokenParams(MetricParams):
    """``prompt_tokens`` of each prompt, and how many prompts are timed."""

    prompt_tokens: PositiveInt = 128
    prompts: PositiveInt = 5


def first_token(model: Decodes, params: FirstTokenParams, seed: int) -> Iterator[Measurement]:
    """Seconds from a prompt to the logits of its first new token; one more prompt before them warms up."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    seconds = []
    for _ in range(params.prompts + 1):
        tokens = torch.randint(model.vocabulary, (1, params.prompt_tokens), generator=generator)
        began = time.perf_counter()
        with torch.inference_mode():
            model.prefill(tokens)
        model.sync()
        seconds.append(time.perf_counter() - began)
    protocol = {"batch_size": 1, "prompt_tokens": params.prompt_tokens}
    yield Measurement("first_token_s", 1, "s", "lower", "samples", tuple(seconds[1:]), protocol)


FIRST_TOKEN = Metric(
    name="first-token",
    version=1,
    kind="workload",
    summary="seconds from a prompt to its first new token",
    make=first_token,
    params=FirstTokenParams,
    uses=("decodes",),
)
