"""The contract between methods and their callers: parameters, a quantization job, and a method's declarations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field

from harness.core.capability import KernelFamily
from harness.core.engine import LoadRequest, Streaming
from harness.core.format import LOAD_CONFIG_FORMAT, SERVED_FORMAT, TRANSFORMERS_FORMAT, Codes, Format
from harness.core.identity import Scalar, Stage
from harness.core.strict import Strict

MAX_GROUP = 2**20
"""Weights that may share a scale."""
MAX_STEPS = 1_000_000
"""Steps of an optimizer or of a search."""
GroupSize = Annotated[int, Field(gt=0, le=MAX_GROUP)]
Steps = Annotated[int, Field(gt=0, le=MAX_STEPS)]


class MethodParams(Strict):
    """Base of a method's parameters: one pydantic field per parameter, its default included."""


P = TypeVar("P", bound=MethodParams)


@dataclass(frozen=True)
class CalibrationSet:
    """The token ids that every calibrated method of a sweep gets, and nothing else.

    All rows have the same length. In row i the first ``lengths[i]`` tokens are text and the rest is padding;
    libraries that accept a mask must get one. ``sha256`` hashes the ids and the lengths.
    """

    tokens: Sequence[Sequence[int]]
    lengths: Sequence[int]
    sha256: str

    @property
    def length(self) -> int:
        """Tokens per row."""
        return len(self.tokens[0])

    @property
    def texts(self) -> list[list[int]]:
        """The rows without padding, for libraries that would treat it as text."""
        return [list(row[:length]) for row, length in zip(self.tokens, self.lengths, strict=True)]

    @property
    def masks(self) -> list[list[int]]:
        """1 for text and 0 for padding, one row per row of tokens."""
        return [[1] * length + [0] * (len(row) - length) for row, length in zip(self.tokens, self.lengths, strict=True)]


@dataclass(frozen=True)
class Setting:
    """What a method that quantizes while loading needs to know besides its parameters.

    ``untouched`` names the modules that must stay unquantized: the head, routers, and what the recipe skips.
    """

    dtype: str
    device: str
    untouched: tuple[str, ...] = ()


@dataclass(frozen=True)
class QuantizeJob(Generic[P]):
    """One offline quantization: reads the checkpoint at ``source`` and writes a loadable one to ``out``.

    ``load`` reads the source as an unquantized transformers model on the job's device, or as keyword arguments for
    ``from_pretrained`` say; methods whose library does its own loading do not call it, and have it use ``attention``,
    the implementation that the recipe names, if it names one. ``scope`` names the modules to quantize, ``untouched``
    every other module with a matrix: the head, routers, what the recipe skips. ``overrides`` maps module names to the
    parameters that differ there. ``note`` adds a fact to the run's record, ``rounded`` the names of modules that the
    library only rounded to nearest, because calibration gave it too little to do what the method is for. ``probe``
    keeps a few logits of the quantized model, to compare the reloaded one with: a method whose saving changes the model
    calls it first, so that no copy of the model is needed. ``streaming`` says how the source is read part by part; None
    if it is loaded whole.
    """

    params: P
    source: Path
    out: Path
    device: str
    dtype: str
    seed: int
    load: Callable[..., Any]
    calibration: CalibrationSet | None = None
    scope: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    trust_remote_code: bool = False
    attention: str | None = None
    note: Callable[[str, Scalar], None] = lambda name, value: None
    rounded: Callable[[Collection[str]], None] = lambda modules: None
    probe: Callable[[Any], None] = lambda model: None
    streaming: Streaming | None = None

    @property
    def calibration_set(self) -> CalibrationSet:
        """The calibration set, for methods that declare themselves calibrated."""
        assert self.calibration is not None, "a method must declare that it is calibrated"
        return self.calibration


@dataclass(frozen=True)
class Needs:
    """A method's requirements; the planner marks variants that do not meet them as unsupported.

    The divisors must divide every input or output width in scope. ``model_types`` are the values in ``config.json``
    that the library supports (empty: any).

    ``cpu_divisor`` must divide every input width in scope where the method runs on a CPU.

    The others hold only where the method runs on an NVIDIA GPU: ``capability`` is the minimum CUDA compute capability,
    ``gpu_dtypes`` are those that a model may run in (empty: any), and ``gpu_divisor`` must divide every width in scope.
    """

    device: Literal["cuda", "cpu"] | None = None
    capability: tuple[int, int] | None = None
    input_divisor: int | None = None
    output_divisor: int | None = None
    model_types: frozenset[str] = frozenset()
    gpu_dtypes: tuple[str, ...] = ()
    gpu_divisor: int | None = None
    cpu_divisor: int | None = None


@dataclass(frozen=True)
class Beside:
    """Bytes that one matrix stores in addition to its weights, which ``bits_per_weight`` covers.

    ``memory`` belongs to the loaded matrix: look-up tables, indices, padding. ``disk`` is the same in a checkpoint.
    ``modules`` is what a library keeps in the layer as a separate tensor, such as a bias or an activation scale; if a
    checkpoint holds those too, ``disk`` includes them.
    """

    memory: float = 0.0
    disk: float = 0.0
    modules: float = 0.0


@dataclass(frozen=True)
class PartsWork:
    """What memory depends on while a checkpoint is quantized from disk to disk.

    ``layer`` are the shapes (outputs, inputs) of the largest layer's matrices, one for each expert. ``plain_bytes`` is
    the size of an unquantized weight, ``others_bytes`` that of all weights outside the layers' matrices, and
    ``written_bytes`` that of the checkpoint that is written. ``hidden`` is the width of a token's state, ``vocabulary``
    that of its logits, and ``heads`` the number of attention heads. ``rows`` of ``length`` tokens calibrate it, none if
    it is not calibrated.
    """

    layer: Sequence[tuple[int, int]]
    plain_bytes: float
    others_bytes: int
    written_bytes: int
    hidden: int = 0
    vocabulary: int = 0
    heads: int = 0
    rows: int = 0
    length: int = 0

    @property
    def layer_bytes(self) -> float:
        """Of the largest layer's matrices, unquantized."""
        return self.plain_bytes * sum(outputs * inputs for outputs, inputs in self.layer)

    @property
    def states_bytes(self) -> float:
        """Of all calibration tokens' states between two layers."""
        return self.plain_bytes * self.rows * self.length * self.hidden


@dataclass(frozen=True)
class Method(Generic[P]):
    """A quantization algorithm as implemented by one library.

    Exactly one of these is set; neither for the unquantized baseline and for a ``published`` checkpoint:

    ``load_config``  quantizes while loading: returns what ``from_pretrained(quantization_config=…)``
                     takes, given the parameters and the setting; or what another engine's loader takes, see
                     ``configures``.
    ``quantize``     quantizes offline: writes a checkpoint and returns the in-memory model, so that the
                     reloaded one can be compared with it; or None, if the job's ``probe`` had that model.

    ``quantize_parts`` does the same for a model of which one part is in memory at a time, and writes the same
    checkpoint; ``refuses_parts`` is why it cannot, given the parameters, the model's type and whether it has parts that
    read images or sound. ``gathers_parts`` says that at its end the whole quantized model is in memory, and
    ``parts_peak`` is about the most memory that it takes in bytes, libraries included (default: two layers, or what is
    larger of other parts). ``offloads`` says that with the model in memory as a whole it quantizes also what
    the GPU cannot hold: what it does not work on stays in main memory, or has fewer bits. ``reads_tensors`` says
    that it reads the checkpoint's tensors without transformers, unless it calibrates. In a stack of its own only such a
    method quantizes in parts: of others it is checked first, with the whole model, that the stack's transformers reads
    the same one. If it calibrates, that is checked layer by layer.
    ``unsaved`` is why the library cannot save what ``load_config`` makes, given the parameters and the device (``cpu``
    or ``cuda``); None if transformers' ``save_pretrained`` writes it and it reloads as it was. Then a variant that is
    streamed is quantized once, from disk to disk, and otherwise in every run.
    ``streams`` says that the transformers engine may load the result part by part, bit by bit as it loads the whole.
    ``read`` loads what ``quantize`` wrote if transformers alone cannot; if that ``streams``, by transformers' own
    loading, with all that is to be done to loaded layers in its quantizer. ``stack`` names the environment
    that quantizes; the main stack always measures. ``packages`` are needed there to quantize, ``readers``
    in the main stack to load the result (default: the same packages).
    ``calibrated`` says whether the method needs text, ``needs`` what else it requires. ``kernel`` is the kernel
    family that the method is meant to run on; rows that ran on a slower one are labelled.

    ``writes`` is the format of the checkpoint that ``quantize`` writes, ``configures`` that of what ``load_config``
    returns: engines that read it can run the result. ``codes`` says how the checkpoint stores its weights, so that such
    an engine can tell before anything is made whether it reads this one here; without it only the method is known.

    ``quantizes_experts`` names the mixture-of-experts types (``model_type`` of config.json) whose experts are quantized
    and stay so when reloaded; transformers holds experts as 3-D parameters, not as layers. Other mixture types are
    unsupported unless the recipe skips their experts. ``leaves_experts_because`` is why, in words that follow a colon;
    a method that leaves those of the mixtures that every method is tried on says it.

    ``multimodal`` names the types of models with vision or audio parts beside the text model that the library was seen
    to take and to reload, if it does not take all of them (None); others are unsupported.

    ``overrides`` says that single modules may have their own parameters. ``stores_codes`` is False if the result
    is again an unquantized model, such as a merged adapter: its coverage is not checked, and its rows are labelled.

    ``enable`` is called in the worker before anything is loaded or timed: it imports the library and
    registers its classes with transformers. ``bits_per_weight`` is the stored size of one quantized weight,
    scales included, given the bits of an unquantized one and the layer's input width;
    ``beside`` is what a matrix of shape (outputs, inputs) stores in addition, given the same bits; ``padded`` is the
    shape that it is padded to, given the device (``cpu`` or ``cuda``) and its own shape. ``loaded``
    says what memory holds: the codes; a dense matrix unpacked from them while loading; or the codes plus, from the
    first forward pass on, a dense matrix.
    ``run_dtype`` is the dtype that the model runs in, given the one that the recipe requests.
    ``passes`` is about how many forward passes over a calibration set of so many samples quantizing takes, for
    forecasts; a step back counts as two.
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
    quantize_parts: Callable[[QuantizeJob[P]], Any] | None = None
    refuses_parts: Callable[[P, str | None, bool], str | None] = lambda params, model_type, multimodal: None
    gathers_parts: bool = False
    offloads: bool = False
    reads_tensors: bool = False
    parts_peak: Callable[[P, PartsWork], float] | None = None
    unsaved: Callable[[P, str], str | None] = lambda params, device: "its method does not say that its library saves it"
    streams: bool = False
    read: Callable[[LoadRequest], Any] | None = None
    enable: Callable[[], None] | None = None
    published: bool = False
    writes: Format = TRANSFORMERS_FORMAT
    configures: Format = LOAD_CONFIG_FORMAT
    codes: Callable[[P], Codes] | None = None
    calibrated: Callable[[P], bool] = lambda params: False
    needs: Callable[[P], Needs] = lambda params: Needs()
    quantizes_experts: frozenset[str] = frozenset()
    leaves_experts_because: str = ""
    multimodal: frozenset[str] | None = None
    overrides: bool = False
    stores_codes: Callable[[P], bool] = lambda params: True
    kernel: KernelFamily | None = None
    bits_per_weight: Callable[[P, float, int], float] = lambda params, plain_bits, width: plain_bits
    beside: Callable[[P, float, tuple[int, int]], Beside] = lambda params, plain_bits, shape: Beside()
    padded: Callable[[str, tuple[int, int]], tuple[int, int]] = lambda device, shape: shape
    loaded: Literal["codes", "dense", "both"] = "codes"
    run_dtype: Callable[[P, str], str] = lambda params, dtype: dtype
    batch_dependent: bool = False
    passes: Callable[[P, int], float] = lambda params, samples: 4.0

    @property
    def stage(self) -> Stage:
        """When it quantizes: never, while loading, in a separate run, or before publication."""
        if self.published:
            return "published"
        return "offline" if self.quantize else "on_load" if self.load_config else "none"

    @property
    def output_format(self) -> Format | None:
        """The format of its result; None if it makes nothing and a checkpoint is loaded as it is."""
        if self.stage in ("none", "published"):
            return SERVED_FORMAT if self.writes == SERVED_FORMAT else None
        return self.configures if self.stage == "on_load" else self.writes

    def stored(self, params: P) -> Codes | None:
        """How its result stores weights; None if they are not quantized. An undeclared format is the method's own."""
        if self.stage in ("none", "published") or not self.stores_codes(params):
            return None
        return self.codes(params) if self.codes else Codes(self.name)

    def leaves_experts(self, model_type: str | None) -> bool:
        """Whether the experts of this mixture type are not known to be quantized and to reload as codes."""
        return self.stage not in ("none", "published") and model_type not in self.quantizes_experts
