"""Between methods and what runs them: parameters, one quantization, and what a method says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from harness.core.capability import KernelFamily
from harness.core.engine import LoadRequest
from harness.core.format import LOAD_CONFIG_FORMAT, TRANSFORMERS_FORMAT, Format
from harness.core.identity import Scalar, Stage
from harness.core.strict import Strict


class MethodParams(Strict):
    """Base of a method's parameters: one pydantic field per parameter, its default included."""


P = TypeVar("P", bound=MethodParams)


@dataclass(frozen=True)
class CalibrationSet:
    """The token ids that every calibrated method of a sweep gets, and nothing else.

    All rows have one length; of row i the first ``lengths[i]`` tokens are text and the rest is padding,
    which a library that takes a mask must be told to ignore. ``sha256`` is of the ids and the lengths.
    """

    tokens: Sequence[Sequence[int]]
    lengths: Sequence[int]
    sha256: str

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return len(self.tokens[0])

    @property
    def texts(self) -> list[list[int]]:
        """The rows without their padding, for libraries that would count it."""
        return [list(row[:length]) for row, length in zip(self.tokens, self.lengths, strict=True)]

    @property
    def masks(self) -> list[list[int]]:
        """1 for text and 0 for padding, one row per row of tokens."""
        return [[1] * length + [0] * (len(row) - length) for row, length in zip(self.tokens, self.lengths, strict=True)]


@dataclass(frozen=True)
class Setting:
    """What a method that quantizes while loading must know beside its parameters.

    ``untouched`` names the modules that must stay as they are: the head, routers, and what the recipe skips.
    """

    dtype: str
    device: str
    untouched: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeJob(Generic[P]):
    """One offline quantization: read the checkpoint at ``source``, leave a loadable one in ``out``.

    ``load`` reads the source as an unquantized transformers model on the job's device; a method
    whose library loads for itself leaves it alone. ``scope`` names the modules to quantize and ``untouched``
    every other one that has a matrix: the head, routers, what the recipe skips. ``overrides`` are parameters
    that differ for single modules, by module name. ``note`` adds a fact to the run's record.
    """

    params: P
    source: Path
    out: Path
    device: str
    dtype: str
    seed: int
    load: Callable[[], Any]
    calibration: CalibrationSet | None = None
    scope: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    trust_remote_code: bool = False
    note: Callable[[str, Scalar], None] = lambda name, value: None

    @property
    def calibration_set(self) -> CalibrationSet:
        """The calibration set of a method that declared itself calibrated."""
        assert self.calibration is not None, "a method must declare that it is calibrated"
        return self.calibration


@dataclass(frozen=True)
class Needs:
    """What a variant cannot do without; the planner marks a pair that lacks it as unsupported.

    ``capability`` is the least CUDA compute capability; the divisors must divide every input or output
    width in scope; ``model_types`` are those of ``config.json`` that the library knows (empty: any).
    """

    device: Literal["cuda", "cpu"] | None = None
    capability: tuple[int, int] | None = None
    input_divisor: int | None = None
    output_divisor: int | None = None
    model_types: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Beside:
    """Bytes that one matrix stores beside what its weights take by ``bits_per_weight``.

    ``memory`` is what lies with the loaded matrix: look-up tables, indices, padding. ``disk`` is what a checkpoint
    holds of the kind. ``modules`` is what a library keeps in the layer as a tensor of its own: a bias, the scale
    of an activation; a checkpoint holds that too where ``disk`` counts it.
    """

    memory: float = 0.0
    disk: float = 0.0
    modules: float = 0.0


@dataclass(frozen=True)
class Method(Generic[P]):
    """A quantization algorithm as some library implements it.

    Exactly one of these is set, or neither for the unquantized baseline and for a ``published`` checkpoint:

    ``load_config``  quantizes while loading: returns what ``from_pretrained(quantization_config=…)``
                     takes, given the parameters and the setting.
    ``quantize``     quantizes offline: writes a checkpoint and returns the model as it is in memory,
                     so that what is reloaded can be held against it.

    ``read`` loads what ``quantize`` wrote where transformers alone cannot. ``stack`` names the environment
    that quantizes; the main one always measures. ``packages`` are what quantizing needs there, and ``readers``
    what loading the result needs in the main stack (the same packages, unless said otherwise).
    ``calibrated`` says whether text is needed, ``needs`` what else is. ``kernel`` is the family that the
    method is meant to run on; a row that ran on a slower one is labelled.

    ``writes`` is the format of the checkpoint that ``quantize`` leaves: the engines that read it can run the result.

    ``quantizes_experts`` names the types of mixtures (``model_type`` of config.json) whose experts come out quantized
    and load again so; transformers holds experts as 3-D parameters, and not as layers. A mixture of another type is
    unsupported, unless the recipe skips its experts.

    ``overrides`` says that parameters may differ for single modules. ``stores_codes`` is False where the result
    is an unquantized model again, such as a merged adapter: its coverage is not asked for, and its rows say so.

    ``enable`` is called in the worker before anything is loaded and timed: it imports the library and
    registers what must be known to transformers. ``bits_per_weight`` is what one quantized weight
    takes as stored, its scales included, given the bits of an unquantized one and the layer's input width;
    ``beside`` is what a matrix of a shape (outputs, inputs) stores beside that, given the same bits. ``loaded``
    says what lies in memory: the codes; a dense matrix that they became while loading; or the codes and, from the
    first forward pass on, a dense matrix.
    ``run_dtype`` is the dtype the model runs in, given the one that the recipe asks for.
    """

    name: str
    version: int
    summary: str
    params: type[P]
    packages: tuple[str, ...] = ()
    extra: str | None = None
    stack: str = "main"
    readers: tuple[str, ...] | None = None
    load_config: Callable[[P, Setting], object] | None = None
    quantize: Callable[[QuantizeJob[P]], Any] | None = None
    read: Callable[[LoadRequest], Any] | None = None
    enable: Callable[[], None] | None = None
    published: bool = False
    writes: Format = TRANSFORMERS_FORMAT
    calibrated: Callable[[P], bool] = lambda params: False
    needs: Callable[[P], Needs] = lambda params: Needs()
    quantizes_experts: frozenset[str] = frozenset()
    overrides: bool = False
    stores_codes: Callable[[P], bool] = lambda params: True
    kernel: KernelFamily | None = None
    bits_per_weight: Callable[[P, float, int], float] = lambda params, plain_bits, width: plain_bits
    beside: Callable[[P, float, tuple[int, int]], Beside] = lambda params, plain_bits, shape: Beside()
    loaded: Literal["codes", "dense", "both"] = "codes"
    run_dtype: Callable[[P, str], str] = lambda params, dtype: dtype
    batch_dependent: bool = False

    @property
    def stage(self) -> Stage:
        """When it quantizes: never, while loading, in a run of its own, or before it was published."""
        if self.published:
            return "published"
        return "offline" if self.quantize else "on_load" if self.load_config else "none"

    @property
    def output_format(self) -> Format | None:
        """The format of what an engine gets from it; None where it makes nothing, as a baseline or a published one."""
        if self.stage in ("none", "published"):
            return None
        return LOAD_CONFIG_FORMAT if self.stage == "on_load" else self.writes

    def leaves_experts(self, model_type: str | None) -> bool:
        """Whether the experts of a mixture of that type are not known to come out as codes that load again."""
        return self.stage not in ("none", "published") and model_type not in self.quantizes_experts
