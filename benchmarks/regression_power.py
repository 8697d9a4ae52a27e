"""False alarms and power of ``qharness compare`` and ``history``, on simulated sweeps whose truth is known.

``python benchmarks/regression_power.py [SWEEPS]`` makes records of BASE and HEAD, runs the whole comparison on them
(matching, tests, Holm, thresholds), and prints Markdown tables, which docs/measurements/regression-power.md
records: how often something is called regressed although nothing changed, how often a regression of a given size is
found, and both for change points in a history.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from harness.analysis.regression.findings import Finding
from harness.analysis.regression.track import track
from harness.core.identity import Scalar
from harness.core.job import AnswerTask, Conditions, Environment, Job, MeasurePerformance, MeasureQuality
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import RunSpec
from harness.core.variant import Variant
from harness.core.workload import PerplexityWorkload, TaskWorkload, TextRef, ThroughputWorkload
from harness.plugins import gates as gated_figures
from harness.stats import changepoints

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator
Draw = Callable[[Generator, int, float], tuple["Run", "Run"]]

SWEEPS = 600
FAMILY = 8
"""Number of variants compared together in a power curve; one of them got worse."""
WINDOW_SCATTER = 0.01
"""Standard deviation, in nats per token, of a model's change from one window of a text to another."""
KL_SCATTER = 0.005
CHANGING = 0.05
"""The fraction of a task's answers that differ between BASE and HEAD, in either direction."""
PROCESS_SCATTER = 0.02
"""The relative standard deviation of a process's speed."""
MODEL = ModelRef("simulated", "simulated", "a" * 64, "directory", "/none")
TEXT = TextRef("simulated", sha256="b" * 64)
NONE = MethodRef("none", 1, {}, "unquantized", "none")
POINT = {"batch_size": 1, "prompt_tokens": 128, "new_tokens": 32}


@dataclass(frozen=True)
class Run:
    """One side's measurements of one variant: the kind of run, and the measurements of each of its processes."""

    kind: str
    processes: tuple[tuple[Measurement, ...], ...]


@cache
def names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@cache
def spec(kind: str, variant: int, repetition: int) -> RunSpec:
    """The spec of a run, the same on both sides."""
    method = MethodRef("rtn", 1, {"variant": variant}, f"variant {variant}", "on_load")
    of = (Conditions(), Variant(MODEL, method, "transformers", "decoder"), NONE)
    jobs: dict[str, Job] = {
        "quality": MeasureQuality(*of, PerplexityWorkload(TEXT, "gptq", 512, None)),
        "task": AnswerTask(*of, TaskWorkload("simulated", "task.yaml")),
        "performance": MeasurePerformance(*of, ThroughputWorkload((1,), (128,), 32, 1, 3)),
    }
    return RunSpec("power", jobs[kind], Environment(hardware="simulated", repetition=repetition))


def records(side: str, runs: Iterable[tuple[int, Run]]) -> list[RunRecord]:
    return [
        RunRecord(spec(run.kind, variant, number), Outcome("ok", measurements=found), side, 1, "2026", 1.0)
        for variant, run in runs
        for number, found in enumerate(run.processes)
    ]


def paired(metric: str, unit: str, values: Floats, protocol: Mapping[str, Scalar], higher: bool = False) -> Measurement:
    better = "higher" if higher else "lower"
    return Measurement(
        metric,
        1,
        unit,
        better,  # type: ignore[arg-type]
        "paired",
        tuple(values.tolist()),
        protocol,
        item_ids=names(len(values)),
    )


def perplexity(generator: Generator, windows: int, worse: float) -> tuple[Run, Run]:
    """``worse`` is the true relative increase of the perplexity."""
    hard = 3 + 0.3 * generator.standard_normal(windows)
    moved = np.log1p(worse) + WINDOW_SCATTER * generator.standard_normal(windows)
    return _of_windows("nll", "nat/token", hard, hard + moved)


def kl(generator: Generator, windows: int, worse: float) -> tuple[Run, Run]:
    """``worse`` is the true increase in nats."""
    there = 0.05 * generator.gamma(4, 1 / 4, windows)
    return _of_windows("kl", "nat", there, there + worse + KL_SCATTER * generator.standard_normal(windows))


def _of_windows(metric: str, unit: str, base: Floats, head: Floats) -> tuple[Run, Run]:
    one, other = (Run("quality", ((paired(metric, unit, side, {"stride": 512}),),)) for side in (base, head))
    return one, other


def accuracy(generator: Generator, questions: int, worse: float) -> tuple[Run, Run]:
    """``worse`` is the true loss: the fraction of answers that become wrong minus the fraction that become right."""
    uniform = generator.random(questions)
    right = generator.random(questions) < 0.6
    lost, won = uniform < (CHANGING + worse) / 2, (uniform >= (CHANGING + worse) / 2) & (uniform < CHANGING)
    base = np.where(lost, 1.0, np.where(won, 0.0, right))
    head = np.where(lost, 0.0, np.where(won, 1.0, right))
    said = {"task": "simulated", "score": "acc", "filter": "none", "aggregation": "mean"}
    one, other = (Run("task", ((paired("task_score", "score", side, said, True),),)) for side in (base, head))
    return one, other


def speeds(
    generator: Generator, processes: int, worse: float, metrics: Sequence[str] = ("decode_step_s",), drift: float = 0.0
) -> tuple[Run, Run]:
    """``worse`` is the fraction of speed lost; ``drift`` is the standard deviation of the shift of a whole session."""

    def side(lost: float) -> Run:
        shared = drift * generator.standard_normal(len(metrics))
        times = np.exp(shared + PROCESS_SCATTER * generator.standard_normal((processes, len(metrics)))) / (1 - lost)
        return Run("performance", tuple(tuple(map(_timed, metrics, row)) for row in times.tolist()))

    return side(0.0), side(worse)


def _timed(metric: str, seconds: float) -> Measurement:
    return Measurement(metric, 1, "s", "lower", "samples", (0.05 * seconds,), dict(POINT))


def default(gate: str) -> float:
    """The default threshold."""
    declared = gated_figures()[gate].gate
    assert declared is not None
    return declared.default


def findings(pairs: Sequence[tuple[int, tuple[Run, Run]]], gates: Mapping[str, float]) -> tuple[Finding, ...]:
    base, head = (records(name, [(v, pair[side]) for v, pair in pairs]) for side, name in enumerate(("s1", "s2")))
    return track(base, head, gates).gated


def alarm(generator: Generator, variants: int, gates: Mapping[str, float], drift: float) -> bool:
    """Whether anything in a whole sweep is called regressed although nothing changed."""
    pairs = []
    for variant in range(variants):
        pairs += [(variant, accuracy(generator, 200, 0.0)), (variant, _quality(generator))]
        pairs.append((variant, speeds(generator, 6, 0.0, ("prefill_s", "decode_step_s"), drift)))
    return any(found.verdict == "regressed" for found in findings(pairs, gates))


def _quality(generator: Generator) -> tuple[Run, Run]:
    """Perplexity and KL of one run."""
    made = [perplexity(generator, 64, 0.0), kl(generator, 64, 0.0)]
    one, other = (Run("quality", ((*made[0][side].processes[0], *made[1][side].processes[0]),)) for side in (0, 1))
    return one, other


def found(generator: Generator, gate: str, draw: Draw, units: int, worse: float, family: int) -> bool:
    """Whether a regression in the first of several variants is called regressed."""
    pairs = [(variant, draw(generator, units, worse if variant == 0 else 0.0)) for variant in range(family)]
    judged = findings(pairs, {gate: default(gate)})
    return next(each for each in judged if each.method == "variant 0").verdict == "regressed"


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[float]]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join(["---:"] * len(head)) + " |")
    for name, shares in rows:
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in shares) + " |", flush=True)
    print()


def false_alarms(sweeps: int) -> None:
    usual = {name: default(name) for name in ("perplexity", "kl", "accuracy", "prefill", "decode")}
    without = dict.fromkeys(usual, 1e-9)
    print("### Whole sweeps\n")
    rows = []
    for variants in (1, 4, 12):
        count = max(100, sweeps // (1 if variants < 12 else 3))
        shares: list[float] = []
        for gates, drift in ((without, 0.0), (usual, 0.0), (usual, 0.01), (usual, 0.02), (usual, 0.05)):
            generator = np.random.default_rng([variants, round(100 * drift), len(shares)])
            shares.append(float(np.mean([alarm(generator, variants, gates, drift) for _ in range(count)])))
        rows.append((f"{variants} ({5 * variants} gates), {count} sweeps", shares))
    table(["variants", "no threshold", "usual thresholds", "drift 1%", "drift 2%", "drift 5%"], rows)


@dataclass(frozen=True)
class Curve:
    title: str
    gate: str
    draw: Draw
    unit: str
    counts: tuple[int, ...]
    sizes: tuple[float, ...]
    written: str


CURVES = (
    Curve(
        "Perplexity", "perplexity", perplexity, "windows", (16, 32, 64, 128), (0, 0.005, 0.0075, 0.01, 0.015, 0.02), "%"
    ),
    Curve("KL divergence", "kl", kl, "windows", (16, 32, 64, 128), (0, 0.001, 0.002, 0.003, 0.005, 0.01), "nat"),
    Curve(
        "Accuracy",
        "accuracy",
        accuracy,
        "questions",
        (200, 500, 1000, 2000),
        (0, 0.01, 0.015, 0.02, 0.03, 0.05),
        " points",
    ),
    Curve("Decoding speed", "decode", speeds, "processes", (3, 5, 6, 10), (0, 0.05, 0.06, 0.08, 0.1, 0.2), "%"),
)


def power(curve: Curve, sweeps: int) -> None:
    print(f"### {curve.title}\n")
    rows = []
    for size in curve.sizes:
        shares = []
        for family in (1, FAMILY):
            for units in curve.counts:
                many = 40 if curve.unit == "processes" and units == 10 and family > 1 else sweeps
                generator = np.random.default_rng([units, round(1e4 * size), family])
                hits = [found(generator, curve.gate, curve.draw, units, size, family) for _ in range(many)]
                shares.append(float(np.mean(hits)))
        rows.append((f"{size:g} nat" if curve.written == "nat" else f"{100 * size:g}{curve.written}", shares))
    alone = [f"{count} {curve.unit}" for count in curve.counts]
    table(["size", *alone, *(f"{each}, of {FAMILY}" for each in alone)], rows)


NOISES: Mapping[str, Callable[[Generator, int], Floats]] = {
    "normal": lambda generator, count: generator.standard_normal(count),
    "t, 3 degrees": lambda generator, count: generator.standard_t(3, count),
    "lognormal": lambda generator, count: np.exp(generator.standard_normal(count)),
    "1 of 20 far out": lambda generator, count: (
        generator.standard_normal(count) + 10 * (generator.random(count) < 0.05)
    ),
    "AR(1), 0.5": lambda generator, count: _dependent(generator, count, 0.5),
}


def _dependent(generator: Generator, count: int, correlation: float) -> Floats:
    """Noise of sessions that are correlated with the previous session."""
    values = generator.standard_normal(count + 20)
    for position in range(1, len(values)):
        values[position] += correlation * values[position - 1]
    return values[20:]


def usual_penalty(values: Floats) -> bool:
    """A change according to a penalty that the harness does not use: 2σ² log n, σ from the median difference."""
    from ruptures import Pelt

    sigma = float(np.median(np.abs(np.diff(values)))) / 0.6745 / np.sqrt(2)
    return len(Pelt(model="l2", min_size=2, jump=1).fit_predict(values, 2 * sigma**2 * np.log(len(values)))) > 1


def history(series: int) -> None:
    print("### Series without a change\n")
    rows = []
    for count in (8, 12, 20, 40, 80):
        shares = []
        many = series if count <= 20 else series // (4 if count == 40 else 20)
        for name, draw in NOISES.items():
            generator = np.random.default_rng([count, len(name)])
            hits = [bool(changepoints.noisy(draw(generator, count).tolist())) for _ in range(many)]
            shares.append(float(np.mean(hits)))
        generator = np.random.default_rng(count)
        shares.append(float(np.mean([usual_penalty(generator.standard_normal(count)) for _ in range(many // 2)])))
        rows.append((f"{count} ({many} series)", shares))
    table(["sessions", *NOISES, "normal, by 2σ² log n"], rows)
    print("### A new level, normal noise: found within one session of where it begins\n")
    rows = []
    for count, last in ((8, 4), (12, 6), (20, 10), (20, 2), (20, 3), (20, 5)):
        shares = []
        for size in (2, 3, 4, 5, 8):
            generator = np.random.default_rng([count, last, size])
            shares.append(float(np.mean([_located(generator, count, last, size) for _ in range(series // 4)])))
        rows.append((f"{count} sessions, the newest {last}", shares))
    table(["", "2σ", "3σ", "4σ", "5σ", "8σ"], rows)


def _located(generator: Generator, count: int, last: int, size: float) -> bool:
    values = generator.standard_normal(count)
    values[count - last :] += size
    return any(abs(position - (count - last)) <= 1 for position in changepoints.noisy(values.tolist()))


def main() -> None:
    sweeps = int(sys.argv[1]) if len(sys.argv) > 1 else SWEEPS
    print("## False alarms\n")
    false_alarms(sweeps)
    print("## Power\n")
    for curve in CURVES:
        power(curve, sweeps // 3)
    print("## History\n")
    history(2 * sweeps)


if __name__ == "__main__":
    main()
