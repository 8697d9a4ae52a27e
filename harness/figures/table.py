"""The trade-off table: one row per variant, each figure with its uncertainty and relative to the baseline."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from harness.core.identity import DecodeMode, KvCache, Scalar
from harness.core.label import Fact, Label
from harness.core.record import Measurement, RunRecord, Status
from harness.core.run import HourlyPrice
from harness.core.workload import Slo, shown_level
from harness.figures.derived.breakdown import Bin
from harness.figures.derived.divergences import TokenDivergence
from harness.figures.derived.experts import ExpertAudit
from harness.figures.derived.footprint import Footprint
from harness.figures.derived.plausibility import Implausibility
from harness.figures.evidence import Evidence
from harness.stats.comparison import Comparison
from harness.stats.crossover import Crossover
from harness.stats.estimate import Estimate
from harness.stats.influence import Influence
from harness.stats.paired import Flips

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class GridPoint:
    """One workload of the speed measurement; speeds of two points never share a column."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int

    @property
    def name(self) -> str:
        """As a part of a column's name."""
        return f"b{self.batch_size}_p{self.prompt_tokens}_n{self.new_tokens}"

    @property
    def label(self) -> str:
        return f"batch {self.batch_size}, prompt {self.prompt_tokens}, {self.new_tokens} new"


@dataclass(frozen=True, order=True)
class Load:
    """One level of load on a server; without a level, a whole ladder of them.

    ``level`` counts requests at the same time if ``arrival`` is ``concurrent``, else requests per second. ``prompts``
    and ``answers`` say in words what is asked.
    """

    arrival: str
    prompts: str
    answers: str
    level: float | None = None

    @property
    def unit(self) -> str:
        """Of its level."""
        return "concurrent requests" if self.arrival == "concurrent" else "requests/s"

    @property
    def name(self) -> str:
        """As a part of a column's name."""
        level = [] if self.level is None else [shown_level(self.level)]
        return re.sub(r"\W+", "_", "_".join([self.arrival, *level, self.prompts, self.answers]))

    @property
    def short(self) -> str:
        """Its level alone: ``8 concurrent requests``, ``2.5 requests/s, poisson``."""
        level = "" if self.level is None else f"{shown_level(self.level)} "
        return f"{level}{self.unit}" + ("" if self.arrival == "concurrent" else f", {self.arrival}")

    @property
    def label(self) -> str:
        return f"{self.short}; prompts: {self.prompts}; answers: {self.answers}"


@dataclass(frozen=True)
class ServedAgainst:
    """A server against another one at one level of load, in the same session.

    ``ratio`` is how many times as fast requests were answered: of the times to the last token, request by request. None
    where either left so many without an answer that the times of the others do not say which is faster. ``answered``
    and ``others_answered`` are the shares of the requests that each answered. ``length``: how many times as many tokens
    the answers have as the other's; None if it is not known.
    """

    ratio: Estimate | None
    answered: float
    others_answered: float
    length: float | None


@dataclass(frozen=True)
class Served:
    """What a server did at one level of load, against the baseline's, and for variants on another engine than that
    also against the control's; None where they were not measured."""

    load: Load
    against_baseline: ServedAgainst | None
    against_control: ServedAgainst | None


@dataclass(frozen=True)
class Ladder:
    """All levels of one load. ``capacity`` is the largest that holds the ``slo``; None without one.

    ``crossover`` is where the variant ceases to be faster, or slower, than the baseline, and ``crossover_over_control``
    than the control; None if it does nowhere.
    """

    load: Load
    slo: Slo | None = None
    capacity: Estimate | None = None
    crossover: Crossover | None = None
    crossover_over_control: Crossover | None = None


@dataclass(frozen=True)
class Outliers:
    """How many of the timings lie far from the others of their process; none is dropped."""

    count: int
    timings: int


@dataclass(frozen=True)
class Speed:
    """Tokens per second at one grid point, and as multiples of the baseline's in the same session and decode mode.

    ``…_over_control`` are multiples of the control's, for variants on another engine than the baseline's.
    """

    point: GridPoint
    prefill_tok_per_s: Estimate | None
    decode_tok_per_s: Estimate | None
    prefill_ratio: Estimate | None
    decode_ratio: Estimate | None
    prefill_outliers: Outliers | None = None
    decode_outliers: Outliers | None = None
    prefill_over_control: Estimate | None = None
    decode_over_control: Estimate | None = None


@dataclass(frozen=True)
class EngineFloor:
    """What an engine alone changes: mean KL (nat per token) of its control, the unquantized model on that engine."""

    engine: str
    kl: Estimate


@dataclass(frozen=True)
class StoredPart:
    """Stored bytes of the weights: ``role`` of the tensors, values or scales."""

    role: str
    part: str
    bytes: int


@dataclass(frozen=True)
class EnergyUse:
    """Joules per token at one grid point by one counter: without and with idle power.

    ``source`` is ``NVML`` (the GPU) or ``RAPL`` (the CPU and its memory); ``idle_power_w`` is the power at rest.
    """

    point: GridPoint
    source: str
    prefill_j_per_tok: Estimate | None
    decode_j_per_tok: Estimate | None
    prefill_with_idle_j_per_tok: Estimate | None
    decode_with_idle_j_per_tok: Estimate | None
    idle_power_w: Estimate | None


@dataclass(frozen=True)
class Rates:
    """The machine's best measured rates.

    ``bandwidth`` holds working sets in bytes, rising, with bytes per second; ``matmul`` dtypes with operations per
    second.
    """

    bandwidth: tuple[tuple[int, float], ...]
    matmul: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class SpeedBound:
    """The machine's limit at one grid point in one phase, and the ``share`` of it that was reached.

    ``read_bytes`` and ``operations`` are the minimum for one step (or prefill) of the whole batch, and ``binds`` is
    the one that takes longer. ``dequantize_bytes`` is what unpacking additionally writes and reads.
    """

    point: GridPoint
    phase: str
    tok_per_s: float
    binds: Literal["bytes", "operations"]
    share: Estimate | None
    read_bytes: float
    dequantize_bytes: float
    operations: float


@dataclass(frozen=True)
class Peak:
    """The memory of one phase of a run, at its highest or at its end; the maximum over repetitions.

    ``point`` is set if the phase belongs to a point of the grid.
    """

    run: str
    phase: str
    source: str
    bytes: int
    point: GridPoint | None = None


@dataclass(frozen=True, order=True)
class TaskKey:
    """One score of one task; two scores share a column only if all fields are equal.

    ``writing`` says how answers were written, if not as the task does: ``8 samples at temperature 0.6``.
    """

    task: str
    score: str
    filter: str
    fewshot: int | None
    chat: bool
    higher_is_better: bool
    writing: str = ""

    @property
    def name(self) -> str:
        """As a part of a column's name: ``arc_easy_25-shot_acc_norm``."""
        return "_".join(re.sub("[(),]", "", self.label).split())

    @property
    def asked(self) -> str | None:
        """How the questions were asked, as far as it distinguishes scores: ``25-shot, chat template``."""
        shots = [] if self.fewshot is None else [f"{self.fewshot}-shot"]
        chat = ["chat template"] if self.chat else []
        return ", ".join([*shots, *chat, *([self.writing] if self.writing else [])]) or None

    @property
    def label(self) -> str:
        """``arc_easy 25-shot acc_norm``."""
        shots = "" if self.fewshot is None else f" {self.fewshot}-shot"
        chat = " chat" if self.chat else ""
        chosen = f" ({self.filter})" if self.filter != "none" else ""
        written = f", {self.writing}" if self.writing else ""
        return f"{self.task}{shots}{chat} {self.score}{chosen}{written}"


@dataclass(frozen=True)
class TaskScore:
    """One score of a variant, compared with the baseline's if that answered the same questions.

    ``estimate`` is the figure as lm-eval reports it. ``change`` is its difference from the baseline's, or for a
    perplexity the relative change; ``over_control`` the same against the control, on another engine than the
    baseline's. ``headline`` marks the score that represents its task and is judged.
    ``batch_noise_nat`` is how far another batch layout moves a log-likelihood.
    """

    key: TaskKey
    headline: bool
    estimate: Estimate
    change: Estimate | None
    comparison: Comparison | None
    flips: Flips | None
    batch_noise_nat: float | None
    over_control: Estimate | None = None

    @property
    def relative(self) -> bool:
        """Whether ``change`` is a ratio of two figures minus one."""
        return self.comparison is not None and self.comparison.unit == "nat"


@dataclass(frozen=True, order=True)
class AnswersKey:
    """The answers that were written for one task; asked or written in another way, they are others."""

    task: str
    fewshot: int | None
    chat: bool
    writing: str = ""

    @property
    def name(self) -> str:
        """As a part of a column's name: ``gsm8k_5-shot``."""
        return "_".join(re.sub("[(),]", "", self.label).split())

    @property
    def label(self) -> str:
        """``gsm8k 5-shot, 8 samples at temperature 0.6``."""
        shots = "" if self.fewshot is None else f" {self.fewshot}-shot"
        written = f", {self.writing}" if self.writing else ""
        return f"{self.task}{shots}{' chat' if self.chat else ''}{written}"


@dataclass(frozen=True)
class AnswerFigure:
    """A figure of the answers that a variant wrote, and how it differs from the baseline's.

    ``name`` is an aspect's (see ``harness.tasks.aspects``), or one of ``harness.figures.derived.answers``. ``change``
    is a difference, or a fraction of the baseline's figure if ``relative``.
    """

    name: str
    key: AnswersKey
    estimate: Estimate
    change: Estimate | None = None
    comparison: Comparison | None = None
    relative: bool = False


@dataclass(frozen=True)
class VariantRow:
    """All figures of one variant; None if a figure was not or could not be measured.

    Units: ``perplexity_change`` and ``top1_agreement`` are fractions, ``kl_*`` nat per token, ``size_ratio`` and
    ``linear_ratio`` multiples of two bytes per parameter (the 16-bit equivalent of the checkpoint). A method that was
    timed in several decode modes has a row for each, with the same quality.
    ``reason`` is the first line of why ``status`` is not ok. ``front`` is set if no other variant of the table is both
    smaller and closer to the baseline. ``front_shares`` has the ``front_probability`` of all rows of the table, drawn
    when one is used, as not every command shows it; ``front_place`` is this row's place there. ``peaks`` are the
    phases' highest memory use, ``left`` the memory in use at their end. ``kl_influence`` and ``perplexity_influence``
    are the contributions of the windows to the error of ``kl_mean`` and ``perplexity_change``.

    For variants on another engine than that of the reference: ``kl_control`` is the mean KL of the unquantized model on
    their engine, ``top1_agreement_control`` its agreement, and ``kl_excess`` how far ``kl_mean`` lies above
    ``kl_control``. ``perplexity_over_control`` is the change of perplexity against that model, if that is not the
    baseline.
    """

    label: str
    method: str
    engine: str
    is_baseline: bool
    status: Status
    evidence: Evidence | None = field(default=None, repr=False, compare=False)
    decode_mode: DecodeMode = "eager"
    kv_cache: KvCache = "model"
    reason: str | None = None
    labels: tuple[Label, ...] = ()
    facts: tuple[Fact, ...] = ()
    perplexity: Estimate | None = None
    perplexity_change: Estimate | None = None
    perplexity_influence: Influence | None = None
    perplexity_comparison: Comparison | None = None
    word_perplexity: Estimate | None = None
    byte_perplexity: Estimate | None = None
    bits_per_byte: Estimate | None = None
    kl_mean: Estimate | None = None
    kl_influence: Influence | None = None
    kl_comparison: Comparison | None = None
    kl_control: Estimate | None = None
    kl_excess: Estimate | None = None
    perplexity_over_control: Estimate | None = None
    kl_by_position: tuple[Bin, ...] = ()
    kl_by_confidence: tuple[Bin, ...] = ()
    kl_growth: Estimate | None = None
    divergence: TokenDivergence = field(default_factory=TokenDivergence)
    experts: ExpertAudit | None = None
    top1_agreement: Estimate | None = None
    top1_agreement_control: Estimate | None = None
    tasks: tuple[TaskScore, ...] = ()
    answers: tuple[AnswerFigure, ...] = ()
    coverage: float | None = None
    stored: tuple[StoredPart, ...] = ()
    bits_per_weight: float | None = None
    checkpoint_bits_per_weight: float | None = None
    size_ratio: float | None = None
    linear_ratio: float | None = None
    checkpoint_file_bytes: int | None = None
    peaks: tuple[Peak, ...] = ()
    left: tuple[Peak, ...] = ()
    footprint: Footprint | None = None
    kv_cache_pool_bytes: int | None = None
    speeds: tuple[Speed, ...] = ()
    bounds: tuple[SpeedBound, ...] = ()
    energies: tuple[EnergyUse, ...] = ()
    served: tuple[Served, ...] = ()
    ladders: tuple[Ladder, ...] = ()
    quantize_s: float | None = None
    quantize_peak_bytes: int | None = None
    front: bool = False
    front_shares: Sequence[float | None] = field(default=(), repr=False, compare=False)
    front_place: int = field(default=0, repr=False, compare=False)
    _remembered: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, called once for each key."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]  # type: ignore[no-any-return]

    def altered(self, **changes: Any) -> VariantRow:
        """As ``dataclasses.replace``, but figures that nobody used stay as they are kept."""
        made = object.__new__(type(self))
        vars(made).update(vars(self))
        vars(made).update(changes, _remembered={})
        return made

    @property
    def front_probability(self) -> float | None:
        """Of being on the front of quality, stored bytes and decode speed (see ``analysis.front_probability``)."""
        return self.front_shares[self.front_place] if self.front_shares else None

    @property
    def runs_with_figures(self) -> tuple[RunRecord, ...]:
        """The runs of its evidence that give figures, in the order quantize, quality, tasks, performance, serving."""
        return self.evidence.with_figures if self.evidence else ()

    def measurements(self, metric: str) -> tuple[Measurement, ...]:
        """All that its runs measured of a metric, without measurements that have no values."""
        return tuple(found for run in self.runs_with_figures for found in run.outcome.measured(metric) if found.values)

    @property
    def is_control(self) -> bool:
        """Whether it is the unquantized model on another engine than that of the reference."""
        return self.evidence is not None and self.evidence.is_control

    @property
    def is_reference(self) -> bool:
        """Whether its divergence is zero by definition: the baseline, unless its own was measured on another engine."""
        return self.is_baseline and not (self.is_control and self.kl_mean)

    @property
    def stored_bytes(self) -> int | None:
        """All stored weights, scales included."""
        return sum(part.bytes for part in self.stored) if self.stored else None

    def speed_at(self, point: GridPoint) -> Speed | None:
        return next((speed for speed in self.speeds if speed.point == point), None)

    def served_at(self, load: Load) -> Served | None:
        return next((each for each in self.served if each.load == load), None)

    def ladder_of(self, load: Load) -> Ladder | None:
        return next((each for each in self.ladders if each.load == load), None)

    def energy_at(self, point: GridPoint, source: str) -> EnergyUse | None:
        return next((each for each in self.energies if (each.point, each.source) == (point, source)), None)

    def bound_at(self, point: GridPoint, phase: str) -> SpeedBound | None:
        return next((each for each in self.bounds if (each.point, each.phase) == (point, phase)), None)

    def task(self, key: TaskKey) -> TaskScore | None:
        return next((score for score in self.tasks if score.key == key), None)

    def answer_figure(self, name: str, key: AnswersKey) -> AnswerFigure | None:
        return next((each for each in self.answers if (each.name, each.key) == (name, key)), None)

    def stored_part(self, role: str, part: str) -> int | None:
        """Bytes of one role's values or scales."""
        found = [entry.bytes for entry in self.stored if (entry.role, entry.part) == (role, part)]
        return sum(found) if found else None


@dataclass(frozen=True)
class Table:
    """Variants that may be compared: one model, one perplexity protocol, one machine.

    ``labels`` are warnings about the model that must be shown wherever its figures are. ``kl_noise_floor``
    (nat per token) is the baseline's divergence from itself at another batch size, ``kl_noise_floor_dtype`` in
    another dtype, ``engine_floors`` on other engines. ``kl_floor_by_position`` is that of the dtype by
    position, if it was measured on whole windows. ``conditions`` is the protocol item by item, ``hub_id`` the
    model's name on a hub, if it has one. ``budget_bytes`` and ``price`` are those of the newest performance run, from
    its recipe. ``rates`` are the machine's rates, from which the bounds follow. ``implausible`` is why no quality
    relative to this baseline can be trusted; ``labels`` includes it.
    """

    model: str
    native_quantization: str | None
    protocol: str
    hardware: str
    rows: tuple[VariantRow, ...]
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    kl_noise_floor: Estimate | None = None
    kl_noise_floor_dtype: Estimate | None = None
    kl_floor_by_position: tuple[Bin, ...] = ()
    engine_floors: tuple[EngineFloor, ...] = ()
    recipes: tuple[str, ...] = ()
    grid: tuple[GridPoint, ...] = field(default=())
    loads: tuple[Load, ...] = ()
    tasks: tuple[TaskKey, ...] = ()
    budget_bytes: int | None = None
    price: HourlyPrice | None = None
    conditions: tuple[tuple[str, Scalar], ...] = ()
    hub_id: str | None = None
    rates: Rates | None = None
    implausible: tuple[Implausibility, ...] = ()

    _remembered: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns, called once for each key."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]  # type: ignore[no-any-return]

    @cached_property
    def baseline(self) -> VariantRow | None:
        return next((row for row in self.rows if row.is_baseline), None)
