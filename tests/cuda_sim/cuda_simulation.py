"""CUDA without a GPU: tensors "on" a GPU lie in the host's memory and are computed by the CPU's kernels.

What is simulated is what a program can observe of a GPU through torch: devices, memory, events, streams, errors, and
that operands must share a device. What is not: its arithmetic and its speed. Kernels of libraries that exist for CUDA
alone do not run.

A tensor is on a GPU if its storage was allocated there; views, parameters and detached tensors share a storage, so all
agree. A dispatch mode sees every operator below autograd: it redirects ``device="cuda"``, refuses operands of unlike
devices, counts what is allocated and launched, and raises what a plan (``simulated_gpu.Plan``) says. Whatever Python
reads of a tensor (``device``, ``is_cuda``) or asks of it (``to``, ``cpu``, ``numpy``) is replaced in ``torch.Tensor``;
a function mode redirects functions that make tensors of numbers, which operators never see with their device. The
functions of ``torch.cuda`` and ``torch.accelerator`` keep their signatures (``create_autospec``), so a call that torch
would refuse is refused here; those that are not simulated fail as they do without CUDA.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec, patch

import torch
import torch._dynamo  # while torch has no GPU: on import it looks for functions that a CPU build lacks
from simulated_gpu import Gpus, Launch, Plan
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
CPU = torch.device("cpu")
BASE = torch._C.TensorBase
ACROSS = {
    aten.copy_.default,
    aten._to_copy.default,
    aten.set_.source_Tensor,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""Operators whose operands may be on several devices: copies, and indices on the host."""
READING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}
"""Operators that wait for the GPU."""
OF_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
"""Functions that copy numbers into a tensor on the host and only then to a device, below the dispatcher."""


@contextmanager
def simulated(plan: Plan, on_lost: Callable[[], None] = lambda: None) -> Iterator[Gpus]:
    """torch has the GPUs of the plan. Tensors that were made inside must not be used outside."""
    gpus = Gpus(plan, on_lost)
    simulation = _Simulation(gpus)
    with ExitStack() as stack:
        simulation.install(stack)
        yield gpus


class _Simulation:
    def __init__(self, gpus: Gpus) -> None:
        self.gpus = gpus
        self._places: dict[int, int] = {}
        """The GPU of each storage that is on one, by the storage's address."""
        self._below = threading.local()
        """Whether a thread is in the kernel of an operator: for that, all memory is the host's."""

    def place(self, tensor: torch.Tensor) -> int | None:
        """The GPU that a tensor is on; None if it is not on one."""
        if getattr(self._below, "kernel", False):
            return None
        if is_traceable_wrapper_subclass(tensor):
            return self.place(getattr(tensor, tensor.__tensor_flatten__()[0][0]))
        with torch._C.DisableTorchFunction():
            try:
                return self._places.get(BASE.untyped_storage(tensor)._cdata)
            except (NotImplementedError, RuntimeError):  # it has no storage
                return None

    def index(self, device: Any) -> int | None:
        """The GPU that a device names; None if it names another device. Raises for a GPU that is not there."""
        found = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if found.type != "cuda":
            return None
        index = self.gpus.current if found.index is None else found.index
        if not 0 <= index < self.gpus.plan.gpus:
            raise torch.AcceleratorError("CUDA error: invalid device ordinal")
        return index

    def check(self) -> None:
        """Raises the error of an earlier kernel, as every call into CUDA does from then on."""
        if self.gpus.error:
            raise torch.AcceleratorError(self.gpus.error)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operator on plain tensors."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = [self.place(tensor) for tensor in inputs]
        target = self._target(func, inputs, places, kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs = {**kwargs, "device": CPU}
        if target is None and not any(place is not None for place in places):
            return func(*args, **kwargs)
        self.check()
        held = {_address(tensor) for tensor in inputs}
        self._below.kernel = True  # a kernel may be Python that reads its tensors' device
        try:
            result = func(*args, **kwargs)
        finally:
            self._below.kernel = False
        fresh = {}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and _address(leaf) not in held | {None}:
                fresh[_address(leaf)] = leaf.untyped_storage()
        if target is not None:
            for storage in fresh.values():
                self.allocate(storage, target, func.name())
        if fresh or func._schema.is_mutable or func in READING:  # others are views
            self.gpus.launch(func.name(), sum(tensor.nbytes for tensor in (*inputs, *_tensors(result))))
        if func in READING or (target is None and fresh):
            self.check()
        return result

    def _target(
        self, func: Any, inputs: list[torch.Tensor], places: list[int | None], kwargs: dict[str, Any]
    ) -> int | None:
        """Where what the operator makes lies. Raises for operands on several devices."""
        if kwargs.get("device") is not None:
            return self.index(kwargs["device"])
        on_gpu = [place for place in places if place is not None]
        if func not in ACROSS and on_gpu:
            others = [p for tensor, p in zip(inputs, places, strict=True) if p is None and tensor.dim() > 0]
            if others or len(set(on_gpu)) > 1:
                names = sorted({"cpu" if p is None else f"cuda:{p}" for p in (*others, *on_gpu)}, reverse=True)
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, {names[0]} and "
                    f"{names[1]}! (when checking {func.name()})"
                )
        if func in ACROSS:
            return places[0]  # a copy, or what an index on the host chooses
        return on_gpu[0] if on_gpu else None

    def allocate(self, storage: torch.UntypedStorage, index: int, operator: str) -> None:
        """Counts a storage on a GPU until it is freed."""
        address = storage._cdata
        if address in self._places:
            return
        size, refusal = self.gpus.allocate(index, storage.nbytes(), operator)
        if refusal:
            raise torch.OutOfMemoryError(refusal)
        self._places[address] = index
        weakref.finalize(storage, self._free, address, index, size)

    def _free(self, address: int, index: int, size: int) -> None:
        del self._places[address]
        self.gpus.memories[index].free(size)

    def move(self, tensor: torch.Tensor, device: torch.device, dtype: torch.dtype | None, **how: Any) -> torch.Tensor:
        kwargs = {name: value for name, value in how.items() if value is not None}
        return aten._to_copy.default(tensor, dtype=dtype, device=device, **kwargs)  # type: ignore[no-any-return]

    def install(self, stack: ExitStack) -> None:
        self._replace_tensor_methods(stack)
        for module, functions in _functions(self).items():
            for name, simulate in functions.items():
                real = getattr(module, name)
                stack.enter_context(patch.object(module, name, create_autospec(real, side_effect=simulate)))
        for module, name, value in _values(self):
            stack.enter_context(patch.object(module, name, value))
        self._replace_threads(stack)
        stack.enter_context(_Functions(self))
        stack.enter_context(_Operators(self))

    def _replace_threads(self, stack: ExitStack) -> None:
        """Modes belong to a thread: others enter their own."""
        run = threading.Thread.run

        def run_simulated(thread: threading.Thread) -> None:
            with _Functions(self), _Operators(self):
                run(thread)

        stack.enter_context(patch.object(threading.Thread, "run", run_simulated))

    def _replace_tensor_methods(self, stack: ExitStack) -> None:
        simulation, tensor_type = self, torch.Tensor

        def device(tensor: torch.Tensor) -> torch.device:
            place = simulation.place(tensor)
            if place is not None:
                return torch.device("cuda", place)
            with torch._C.DisableTorchFunction():
                return BASE.device.__get__(tensor)  # type: ignore[attr-defined,no-any-return]

        def to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if has_torch_function_unary(tensor):
                return handle_torch_function(tensor_type.to, (tensor,), tensor, *args, **kwargs)  # type: ignore[no-any-return]
            args, kwargs = _with_devices(args, kwargs)
            copy = kwargs.pop("copy", False)
            like = next((each for each in (*args, kwargs.get("other")) if isinstance(each, torch.Tensor)), None)
            if like is not None:
                wanted, dtype, non_blocking, layout = like.device, like.dtype, kwargs.get("non_blocking", False), None
            else:
                wanted, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
            here = tensor.device
            wanted = here if wanted is None else simulation.full(wanted)
            if wanted != here and "cuda" in (wanted.type, here.type):
                simulation.check()
                return simulation.move(tensor, wanted, dtype, non_blocking=non_blocking, memory_format=layout)
            options = {} if here.type == "cuda" else {"device": wanted}
            return BASE.to(tensor, dtype=dtype or tensor.dtype, copy=copy, memory_format=layout, **options)  # type: ignore[no-any-return]

        def cpu(tensor: torch.Tensor, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
            return tensor.to("cpu", memory_format=memory_format)

        def cuda(
            tensor: torch.Tensor,
            device: Any = None,
            non_blocking: bool = False,
            memory_format: torch.memory_format = torch.preserve_format,
        ) -> torch.Tensor:
            return tensor.to("cuda" if device is None else device, memory_format=memory_format)

        def numpy(tensor: torch.Tensor, *, force: bool = False) -> Any:
            if tensor.is_cuda and not force:
                raise TypeError(
                    f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
                    "to host memory first."
                )
            return BASE.numpy(tensor.cpu(), force=force)

        def get_device(tensor: torch.Tensor) -> int:
            place = simulation.place(tensor)
            return -1 if place is None else place

        def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
            if tensor.is_cuda:
                raise RuntimeError(f"cannot pin '{tensor.type()}' only dense CPU tensors can be pinned")
            return tensor.clone()

        def make_wrapper(cls: type, size: Sequence[int], *args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
                kwargs["device"] = CPU
            return BASE._make_wrapper_subclass(cls, size, *args, **kwargs)  # type: ignore[no-any-return]

        replaced = {
            "device": property(device),
            "is_cuda": property(lambda tensor: device(tensor).type == "cuda"),
            "is_cpu": property(lambda tensor: device(tensor).type == "cpu"),
            "to": to,
            "cpu": cpu,
            "cuda": cuda,
            "numpy": numpy,
            "get_device": get_device,
            "pin_memory": pin_memory,
            "_make_wrapper_subclass": staticmethod(make_wrapper),
        }
        for name, value in replaced.items():
            if name in vars(tensor_type):
                stack.enter_context(patch.object(tensor_type, name, value))
            else:
                setattr(tensor_type, name, value)
                stack.callback(delattr, tensor_type, name)

    def full(self, device: Any) -> torch.device:
        """A device with its index."""
        index = self.index(device)
        return torch.device(device) if index is None else torch.device("cuda", index)


def _with_devices(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """The arguments of ``Tensor.to`` with a device in place of a GPU's number."""
    numbered = [torch.device("cuda", each) if type(each) is int else each for each in args[:1]]
    own = {"device": torch.device("cuda", kwargs["device"])} if type(kwargs.get("device")) is int else {}
    return (*numbered, *args[1:]), {**kwargs, **own}


class _Operators(TorchDispatchMode):
    def __init__(self, simulation: _Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(each, FakeTensor) for each in types):
            return func(*args, **kwargs or {})
        if any(hasattr(each, "__tensor_flatten__") for each in types):
            return NotImplemented  # its own class runs it, on plain tensors
        return self._simulation.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, simulation: _Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device and len(args) == 1 and type(args[0]) is int:
            return torch.device("cuda", args[0])
        if type(kwargs.get("device")) is int:
            kwargs["device"] = torch.device("cuda", kwargs["device"])
        if func in OF_NUMBERS:
            wanted = kwargs.pop("device", None)
            if wanted is None and func is torch.Tensor.new_tensor:
                wanted = args[0].device
            if wanted is None and args and isinstance(args[0], torch.Tensor):
                return func(*args, **kwargs) if not args[0].is_cuda else args[0].clone()
            if wanted is not None and self._simulation.index(wanted) is None:
                kwargs["device"] = wanted
                wanted = None
            made = func(*args, **kwargs)
            return made if wanted is None else made.to(self._simulation.full(wanted))
        return func(*args, **kwargs)


class Event:
    """torch.cuda.Event: a moment of the simulated clock."""

    simulation: _Simulation

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, external: bool = False
    ) -> None:
        self._timing = enable_timing
        self._at_s: float | None = None

    def record(self, stream: Any = None) -> None:
        self.simulation.check()
        self._at_s = self.simulation.gpus.clock_s

    def wait(self, stream: Any = None) -> None:
        self.simulation.check()

    def query(self) -> bool:
        self.simulation.check()
        return True

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds between two events that were recorded."""
        self.simulation.check()
        if not self._timing or not end_event._timing:
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self._at_s is None or end_event._at_s is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end_event._at_s - self._at_s) * 1000

    def synchronize(self) -> None:
        self.simulation.check()


class Stream:
    """torch.cuda.Stream: all work is done when it is launched."""

    simulation: _Simulation
    cuda_stream = 0

    def wait_event(self, event: Event) -> None:
        self.simulation.check()

    def wait_stream(self, stream: Stream) -> None:
        self.simulation.check()

    def record_event(self, event: Event | None = None) -> Event:
        event = event or type("Event", (Event,), {"simulation": self.simulation})()
        event.record(self)
        return event

    def query(self) -> bool:
        self.simulation.check()
        return True

    def synchronize(self) -> None:
        self.simulation.check()


class Profile:
    """torch.profiler.profile of a GPU: the kernels that were launched inside it, with their simulated time."""

    def __init__(self, simulation: _Simulation) -> None:
        self._simulation = simulation
        self._launches: list[Launch] = []

    def __enter__(self) -> Profile:
        self._simulation.gpus.profiled = self._launches
        return self

    def __exit__(self, *_: object) -> None:
        self._simulation.gpus.profiled = None

    def key_averages(self) -> list[Any]:
        """One event per kernel; times in microseconds, as torch's."""
        found: dict[str, list[float]] = {}
        for launch in self._launches:
            found.setdefault(launch.name, []).append(launch.seconds * 1e6)
        return [
            SimpleNamespace(key=name, count=len(times), self_device_time_total=sum(times))
            for name, times in found.items()
        ]


class Compiled:
    """torch.compile with CUDA graphs: what a step returned is overwritten by the next one.

    It runs eagerly. Only memory that the step itself allocated is overwritten: its inputs, among them a static cache,
    belong to the caller.
    """

    def __init__(self, simulation: _Simulation, function: Callable[..., Any]) -> None:
        self._simulation, self._function = simulation, function
        self._returned: list[torch.UntypedStorage] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for storage in self._returned:
            storage.fill_(255)  # NaN in every floating-point format but float8
        before = set(self._simulation._places)
        result = self._function(*args, **kwargs)
        made = (tensor.untyped_storage() for tensor in _tensors(result))
        self._returned = [storage for storage in made if storage._cdata not in before]
        return result


def _functions(simulation: _Simulation) -> dict[Any, dict[str, Callable[..., Any]]]:
    """What replaces the functions of each module, called with the arguments that their signatures allow."""
    gpus = simulation.gpus

    def memory(device: Any = None) -> Any:
        return gpus.memories[gpus.current if device is None else simulation.index(device) or 0]

    def synchronize(device: Any = None) -> None:
        if device is not None:
            simulation.index(device)
        gpus.synchronized += 1
        simulation.check()

    def empty_cache() -> None:
        simulation.check()
        for each in gpus.memories:
            each.empty_cache()

    def mem_get_info(device: Any = None) -> tuple[int, int]:
        simulation.check()
        return memory(device).free_bytes, memory(device).total_bytes

    def set_device(device: Any) -> None:
        simulation.check()
        index = simulation.index(device)
        gpus.current = gpus.current if index is None else index

    def exchange(device: int) -> int:
        before = gpus.current
        if device >= 0:
            set_device(device)
        return before

    def properties(device: Any = None) -> Any:
        major, minor = gpus.plan.capability
        return SimpleNamespace(
            name=gpus.plan.name,
            major=major,
            minor=minor,
            total_memory=gpus.plan.memory_bytes,
            multi_processor_count=132,
            max_threads_per_multi_processor=2048,
            warp_size=32,
            is_integrated=0,
            L2_cache_size=50 * 2**20,
        )

    def nothing(*_: Any, **__: Any) -> None:
        return None

    counts = {
        "memory_allocated": lambda device=None: memory(device).allocated,
        "max_memory_allocated": lambda device=None: memory(device).peak_allocated,
        "memory_reserved": lambda device=None: memory(device).reserved,
        "max_memory_reserved": lambda device=None: memory(device).peak_reserved,
        "reset_peak_memory_stats": lambda device=None: memory(device).reset_peaks(),
        "empty_cache": empty_cache,
        "synchronize": synchronize,
        "device_count": lambda: gpus.plan.gpus,
        "is_available": lambda: True,
    }
    cuda = {
        **counts,
        "mem_get_info": mem_get_info,
        "current_device": lambda: gpus.current,
        "set_device": set_device,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "get_device_name": lambda device=None: gpus.plan.name,
        "get_device_capability": lambda device=None: gpus.plan.capability,
        "get_device_properties": properties,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "is_bf16_supported": lambda including_emulation=True: including_emulation or gpus.plan.capability >= (8, 0),
        "is_initialized": lambda: True,
        "_is_compiled": lambda: True,
        "_lazy_init": nothing,
        "init": nothing,
        "ipc_collect": nothing,
        "manual_seed": nothing,
        "manual_seed_all": nothing,
        "current_stream": lambda device=None: _stream(simulation),
        "default_stream": lambda device=None: _stream(simulation),
        "is_current_stream_capturing": lambda: False,
    }
    accelerator = {
        **counts,
        "get_memory_info": mem_get_info,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: gpus.current,
        "set_device_index": set_device,
    }
    compile_on_host = torch.compile

    def compile_(model: Any = None, **options: Any) -> Any:
        if options.get("mode") != "reduce-overhead":
            return compile_on_host(model, **options)
        return Compiled(simulation, model)

    profile_host = torch.profiler.profile

    def profile(**options: Any) -> Any:
        if torch.profiler.ProfilerActivity.CUDA not in (options.get("activities") or ()):
            return profile_host(**options)
        return Profile(simulation)

    return {
        torch.cuda: cuda,
        torch.accelerator: accelerator,
        torch: {"compile": compile_},
        torch.profiler: {"profile": profile},
    }


def _values(simulation: _Simulation) -> Iterator[tuple[Any, str, Any]]:
    yield torch.version, "cuda", "13.0"
    yield torch.cuda, "Event", type("Event", (Event,), {"simulation": simulation})
    yield torch.cuda, "Stream", type("Stream", (Stream,), {"simulation": simulation})
    host_generator = torch.Generator

    class Generator(host_generator):  # type: ignore[misc,valid-type]
        """torch.Generator, which knows the GPU that it was made for."""

        def __new__(cls, device: Any = "cpu") -> Generator:
            made = super().__new__(cls)
            made._device = simulation.full(device)
            return made  # type: ignore[no-any-return]

        @property
        def device(self) -> torch.device:
            return self._device  # type: ignore[no-any-return]

    yield torch, "Generator", Generator


def _stream(simulation: _Simulation) -> Stream:
    return type("Stream", (Stream,), {"simulation": simulation})()  # type: ignore[no-any-return]


def _address(tensor: torch.Tensor) -> int | None:
    """The address of a plain tensor's storage; None if it has none."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
