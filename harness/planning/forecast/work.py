"""The time of a run by arithmetic alone: what its job computes, the model's size, and the machine's speeds.

This is where a forecast starts, before any run has been seen. Its constants were fitted to the runs of
docs/measurements/forecast.md, and runs that were measured correct it (``learned.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness import plugins as registry
from harness.core.effort import JobEffort
from harness.core.engine import STREAMED_PASSES
from harness.core.identity import full_digest
from harness.core.job import Job, PrepareModel, VariantJob
from harness.core.method import Method
from harness.core.run import RunSpec
from harness.core.site import Speeds
from harness.core.workload import CalibrationRef
from harness.models.memory import DTYPE_BITS
from harness.models.shapes import ModelSize
from harness.models.sources import weight_file_bytes
from harness.planning.plan import PlannedRun
from harness.text.windows import expected_tokens

SURROUNDING, SPAWNED = 4.0, 16.0
"""In times that Python takes to start and to import NumPy: what surrounds every run, and what more surrounds one whose
process is not forked from a warm server."""
IMPORTS, LIBRARY = 28.0, 10.0
"""In the same times: the imports of a run of a model, and those of a method's own library."""
HASHED_TIMES = 12.0
"""How often a byte could pass through memory while one is hashed: a run hashes the weights that it reads first."""
FIRST_CALLS = 5.0
"""In the same times: what a model's first passes take longer than others."""
REACHED = 0.7
"""The part of a large product's rate that a model's own products reach."""
LAYER_CALL = 1e-3
"""What a decoder's matrix adds to each pass besides its product, in the same times: a layer is called in Python."""
READ_TIMES = 40.0
"""How often a weight's bytes pass through memory while it is loaded."""
COMPARED_TIMES = 40.0
"""How often a token's logits pass through memory while its distribution is compared with the reference's."""
UNPACKED_BYTES = 15.0
"""Bytes that pass through memory for a weight that is unpacked before its product."""
QUANTIZED_BYTES, DEGRIDDED_BYTES = 200.0, 3000.0
"""Bytes that pass through memory for a weight while it is quantized, or moved off its grid."""
FITTED = 3.0
"""What a calibrated method spends on each matrix besides its passes, in the times that Python takes to start."""
FOOTPRINT = 1.5
"""How many more iterations the memory of generation takes."""
UNKNOWN = ModelSize(1_000_000_000, 1_000_000_000, 900_000_000, 200, 2048, 100_000)
"""A model that has not been fetched yet, and which the recipe says nothing of."""
RECORD_BYTES, BYTES_PER_TOKEN = 60_000, 30
"""What a record takes on disk, and its evidence for each token that it scores."""
SEEN_AGAIN_S = 1.0
"""A run that goes on in the process of the one before it starts within this time."""


@dataclass(frozen=True)
class Work:
    """Seconds outside of a run's own phases (starting, importing, leaving) and in them; bytes that it leaves behind."""

    starting_s: float
    computing_s: float
    disk_bytes: int

    @property
    def total_s(self) -> float:
        return self.starting_s + self.computing_s


@dataclass(frozen=True)
class Start:
    """How a run's process starts: it is that of the run before (``shared``), or ``spawned``, or else forked.

    ``imports``: whether it waits for what all runs of a model import; ``library``: for what its method imports.
    ``counts``: whether it is the first that counts the calibration tokens of each expert, if its model is a mixture.
    """

    shared: bool = False
    spawned: bool = False
    imports: bool = False
    library: bool = False
    counts: bool = False

    def seconds(self, speeds: Speeds) -> float:
        if self.shared:
            return SEEN_AGAIN_S
        units = SURROUNDING + self.spawned * SPAWNED + self.imports * IMPORTS + self.library * LIBRARY
        return units * speeds.start_s


class Starts:
    """The starts of a sweep's runs, in their order: what a stack's warm server has imported, later runs find there."""

    def __init__(self, spawned: bool) -> None:
        self._spawned = spawned
        self._imported: set[tuple[str, ...]] = set()
        self._counted: set[tuple[object, ...]] = set()

    def add(self, spec: RunSpec, shared: bool) -> Start:
        """The next run's start. Raises UsageError for a method that is not installed."""
        if shared:
            return Start(shared=True)
        method, counts = _method_of(spec.job), self._counts(spec)
        library = () if method is None else method.packages
        if self._spawned:
            return Start(spawned=True, imports=spec.job.effort.runs_model, library=bool(library), counts=counts)
        stack, own = (spec.stack,), (spec.stack, *library)
        library_waits = own not in self._imported and own != stack
        found = Start(imports=stack not in self._imported, library=library_waits, counts=counts)
        self._imported |= {stack, own}
        return found

    def _counts(self, spec: RunSpec) -> bool:
        """Whether no run before has counted the experts' tokens of this model and calibration set, which are kept."""
        calibration = spec.job.effort.calibration
        if calibration is None:
            return False
        counted = (spec.model.content, full_digest(calibration.identity()))
        first = counted not in self._counted
        self._counted.add(counted)
        return first


def work(run: PlannedRun, speeds: Speeds, start: Start) -> Work:
    """Of a run whose process starts in that way."""
    effort, size = run.spec.job.effort, run.size or UNKNOWN
    model = _Model(run, size, speeds)
    computing_s = effort.apart_s + model.generating_s(effort) + model.quantizing_s(effort.calibration)
    if start.counts and effort.calibration is not None and size.router_scores:
        computing_s += model.counting_s(effort.calibration)
    starting_s = start.seconds(speeds) + (model.hashing_s if run.spec.needs else 0.0)
    if not start.shared:
        computing_s += _reads(run.spec) * model.loading_s + effort.runs_model * FIRST_CALLS * speeds.start_s
    tokens = effort.tokens + (expected_tokens(effort.scored) if effort.scored else 0)
    computing_s += model.reading_s(tokens, compared=effort.compared)
    disk_bytes = RECORD_BYTES + BYTES_PER_TOKEN * tokens + run.checkpoint_bytes
    if effort.kept:
        disk_bytes += (tokens + size.vocabulary) * size.hidden * model.element_bytes
        disk_bytes += tokens * size.router_scores * model.element_bytes
    return Work(starting_s, computing_s + run.checkpoint_bytes / speeds.disk_byte_per_s, disk_bytes)


def _reads(spec: RunSpec) -> int:
    """How often it reads its weights: a streamed run once for each pass, and once more if that quantizes them.

    From disk to disk they are read as often as a model that is quantized whole.
    """
    job = spec.job
    if isinstance(job, VariantJob) and job.conditions.residency == "streamed" and not job.quantizes:
        return STREAMED_PASSES + spec.quantizes_on_load
    return job.effort.loads


def _method_of(job: Job) -> Method[Any] | None:
    """None for a run on the unquantized model. Raises UsageError if the method is not installed."""
    if not isinstance(job, VariantJob) or job.variant.method.stage not in ("on_load", "offline"):
        return None
    return registry.method(job.variant.method.name)


@dataclass(frozen=True)
class _Model:
    """A run's model with its method, at a machine's speeds."""

    run: PlannedRun
    size: ModelSize
    speeds: Speeds

    @property
    def _method(self) -> Method[Any] | None:
        return _method_of(self.run.spec.job)

    @property
    def hashing_s(self) -> float:
        """Hashes the weights that it reads from the cache."""
        return self._weight_bytes * HASHED_TIMES / self.speeds.bandwidth_byte_per_s

    @property
    def _params(self) -> Any:
        method = self._method
        return None if method is None else method.params.model_validate(dict(self.run.spec.method.params))

    @property
    def _dtype(self) -> str:
        job, method = self.run.spec.job, self._method
        declared = job.models[0].dtype if job.models else "float32"
        return declared if method is None else method.run_dtype(self._params, declared)

    @property
    def element_bytes(self) -> int:
        """Of a number in the model's dtype."""
        return int(DTYPE_BITS.get(self._dtype, 16.0) / 8)

    @property
    def _weight_bytes(self) -> int:
        return self.run.weight_bytes or self.size.parameters * self.element_bytes

    @property
    def _checkpoint_bytes(self) -> int:
        """Of the checkpoint that it reads: the variant's own if it was published or made before, else the model's.

        Of a published one, which loading may unpack, the size of its files of weights.
        """
        job, plain_bytes = self.run.spec.job, self.size.parameters * self.element_bytes
        if not isinstance(job, VariantJob) or job.quantizes:
            return plain_bytes
        if (published := job.variant.method.published) is not None:
            read = next((each for each in self.run.inputs if each.folder == published.path), None)
            return weight_file_bytes(read) or plain_bytes
        return self._weight_bytes if "quantize" in self.run.spec.needs else plain_bytes

    @property
    def _unpacking_s(self) -> float:
        """Of one pass through codes that are unpacked."""
        method = self._method
        if method is None or method.loaded != "codes" or not method.stores_codes(self._params):
            return 0.0
        return self.size.decoder * UNPACKED_BYTES / self.speeds.bandwidth_byte_per_s

    @property
    def loading_s(self) -> float:
        """Reads the source's weights, and quantizes them if the method does that while loading.

        A model that does not fit in memory comes from the disk in each pass: no faster than that is. Its timed speed is
        that of writing; where reading is faster, records of streamed runs correct it.
        """
        read_s = self.size.parameters * self.element_bytes * READ_TIMES / self.speeds.bandwidth_byte_per_s
        job = self.run.spec.job
        if job.conditions.residency == "streamed":
            read_s = max(read_s, self._checkpoint_bytes / self.speeds.disk_byte_per_s)
        if isinstance(job, PrepareModel) and job.model.degrid is not None:
            read_s += self.size.parameters * DEGRIDDED_BYTES / self.speeds.bandwidth_byte_per_s
        return read_s + (self._rounding_s if self.run.spec.quantizes_on_load else 0.0)

    @property
    def _rounding_s(self) -> float:
        return self.size.decoder * QUANTIZED_BYTES / self.speeds.bandwidth_byte_per_s

    def _pass_s(self, tokens: int) -> float:
        """One forward pass: products, or reading the weights where that takes longer, and calling each layer.

        Of a mixture, each token reads the experts that it goes to; more tokens do so until they read all.
        """
        multiplying_s = 2 * self.size.active * tokens / (REACHED * self.speeds.rate(self._dtype))
        read = min(1.0, tokens * self.size.active / self.size.parameters)
        reading_s = read * self._weight_bytes / self.speeds.bandwidth_byte_per_s
        calling_s = self.size.matrices * LAYER_CALL * self.speeds.start_s
        return max(multiplying_s, reading_s) + self._unpacking_s + calling_s

    def reading_s(self, tokens: int, compared: bool) -> float:
        """Forward passes over ``tokens``, by the window."""
        if not tokens:
            return 0.0
        compared_bytes = COMPARED_TIMES * tokens * self.size.vocabulary * 4 if compared else 0.0
        head_s = 2 * tokens * self.size.vocabulary * self.size.hidden / (REACHED * self.speeds.rate(self._dtype))
        return (
            self._pass_s(tokens)
            + compared_bytes / self.speeds.bandwidth_byte_per_s
            + (head_s if compared else 0.0)  # the reference's
        )

    def generating_s(self, effort: JobEffort) -> float:
        """The grid: warm-ups and iterations, and what its memory takes."""
        timed = effort.timed
        if timed is None:
            return 0.0
        iterations = effort.passes * (timed.warmup + timed.iterations) + FOOTPRINT
        cells_s = (
            self._pass_s(cell.batch_size * cell.prompt_tokens) + cell.new_tokens * self._pass_s(cell.batch_size)
            for cell in timed.cells
        )
        return iterations * sum(cells_s)

    def counting_s(self, calibration: CalibrationRef) -> float:
        """Loads the unquantized mixture once more, and counts which experts the calibration's tokens go to."""
        return self.loading_s + self._pass_s(calibration.samples * calibration.length)

    def quantizing_s(self, calibration: CalibrationRef | None) -> float:
        """What a separate quantization takes."""
        job, method = self.run.spec.job, self._method
        if method is None or not job.quantizes:
            return 0.0
        rounding_s = self._rounding_s
        if calibration is None:
            return rounding_s
        tokens = calibration.samples * calibration.length
        fitting_s = self.size.matrices * FITTED * self.speeds.start_s
        return rounding_s + fitting_s + method.passes(self._params, calibration.samples) * self._pass_s(tokens)
