"""The tables of ``qharness plan``, ``list``, ``stack list`` and ``doctor``."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from rich.table import Table

from harness import plugins as registry
from harness.api.plan import PlanState
from harness.cli.render.forecast import about, bytes_words, cost_of, forecast_entry, forecast_lines
from harness.core.job import VariantJob
from harness.core.method import Method, MethodParams
from harness.core.run import titles_among
from harness.core.site import MAIN, Site
from harness.errors import UsageError
from harness.execution.local import local_site
from harness.execution.schedule import stacks_needed
from harness.execution.starter import SPAWN, VARIABLE, forks
from harness.figures.formats import DECIMAL, significant, size_unit
from harness.host import machine
from harness.host.preflight import Preflight, preflight
from harness.models.compiled import compiled_by, uncompiled
from harness.planning.plan import PlannedRun
from harness.recipe.built_in import built_in_recipes, read_built_in, summary
from harness.report.terminal import add_row, print_json, show_parts
from harness.stacks import Stacks, stack_names
from harness.storage.anonymizer import Anonymizer
from harness.text.sources import TEXTS


def show_plan(state: PlanState, as_json: bool, costs: bool = False) -> None:
    """The runs in order, and what is left. Sizes are in decimal units (GB is 10⁹ bytes).

    ``costs``: also what each run is expected to leave on disk, and what it costs if the recipe has a price.
    """
    planned, expected = state.planned, state.forecast.runs
    if as_json:
        for run in planned:
            print_json(
                {
                    **run.spec.names(),
                    "stack": run.spec.stack,
                    "state": _state(run, state.done),
                    "weight_bytes": run.weight_bytes,
                    "peak_bytes": run.peak_bytes,
                    "memory_bytes": run.memory_bytes or None,
                    "residency": run.spec.job.conditions.residency,
                    "unsupported": run.unsupported,
                    "note": run.note,
                    "forecast": forecast_entry(expected.get(run.spec.run_id), state.forecast.price),
                }
            )
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    price = state.forecast.price if costs else None
    spent = (*(["disk ≈"] if costs else []), *([f"{price.currency} ≈"] if price else []))
    numbers = ("#", "weights ≈", "peak ≈", "time ≈", *spent)
    for column in ("#", "run", "stack", "weights ≈", "peak ≈", "time ≈", *spent, "state"):
        table.add_column(column, overflow="fold", justify="right" if column in numbers else "left")
    weights = _sizes([run.weight_bytes for run in planned])
    peaks = _sizes([run.peak_bytes for run in planned])
    title = titles_among([run.spec for run in planned])
    for index, run in enumerate(planned, 1):
        spec = run.spec
        made = expected.get(spec.run_id)
        cells = [weights[index - 1], peaks[index - 1], "" if made is None else about(made.time)]
        if costs:
            cells.append("" if made is None else bytes_words(made.disk_bytes))
        if price is not None:
            cells.append("" if made is None else significant(cost_of(made.time, price), 2))
        add_row(table, str(index), title(spec), spec.stack, *cells, _state(run, state.done))
    memory = {run.memory_bytes for run in planned}
    left = sum(_state(run, state.done) == "to do" for run in planned)
    noted = [run for run in planned if run.note and not run.unsupported]
    whose = ((run.spec.subject if isinstance(run.spec.job, VariantJob) else title(run.spec), run.note) for run in noted)
    notes = [f"note: {name}: {note}" for name, note in whose]
    show_parts(
        [
            table,
            *dict.fromkeys(notes),
            f"{len(planned)} runs, {left} to do, on {_where(state)}",
            *_node_lines(state),
            *(f"memory of a run: {size / 2**30:.1f} GiB" for size in sorted(memory) if size),
            *forecast_lines(state),
        ]
    )


def _sizes(column: Sequence[int | None]) -> list[str]:
    """A column in one unit, so that its numbers compare."""
    unit = size_unit([size or 0 for size in column], DECIMAL)
    return ["" if size is None else f"{significant(size / unit.bytes)} {unit.name}" for size in column]


def _where(state: PlanState) -> str:
    """``a Xeon (cpu)``, or ``4 nodes, each a Xeon (cpu)``."""
    spec, count = state.planned[0].spec, len(state.nodes)
    return f"{f'{count} nodes, each ' if count > 1 else ''}{spec.hardware} ({spec.device})"


def _node_lines(state: PlanState) -> Iterator[str]:
    """What the nodes of a cluster have for the runs, those that have the same on one line."""
    wanted = frozenset[str]().union(*map(stacks_needed, state.planned))
    alike: dict[str, list[str]] = {}
    for node in state.nodes:
        devices = _count(node.cores, "core") if node.cores else _count(node.gpus, "GPU")
        stacks = sorted(wanted if node.stacks is None else wanted & {*node.stacks, MAIN})
        alike.setdefault(f"{devices}; stacks: {', '.join(stacks)}", []).append(node.name)
    yield from (f"  {', '.join(names)}: {has}" for has, names in alike.items() if any(names))


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}{'s' * (number != 1)}"


def show_list(what: str) -> None:
    """Names and one line about each."""
    _show_names(_rows(what))


def show_recipes() -> None:
    """The built-in recipes, and how to run or copy one."""
    _show_names([(name, summary(read_built_in(name))) for name in built_in_recipes()])
    show_parts(["run one: qharness run NAME; start your own from it: qharness recipes NAME > my.yaml"])


def _show_names(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for name, about_it in rows:
        add_row(table, name, about_it)
    show_parts([table])


def show_stacks(stacks: Stacks) -> None:
    """Name, state, library and purpose of each stack."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("stack", "state", "library", "purpose"):
        table.add_column(column)
    add_row(
        table, "main", "ready", "", "measures everything, and quantizes with every library that can be installed in it"
    )
    for stack in map(stacks.find, stack_names()):
        add_row(table, stack.name, stack.find_state(), stack.definition.library, stack.definition.summary)
    old = [name for name in stack_names() if stacks.find_obsolete(name)]
    show_parts([table, *(f"made from other pins too: {name}; qharness stack remove {name} --obsolete" for name in old)])


def show_doctor() -> None:
    """The machine, the libraries, and what each method still needs."""
    show_parts(doctor_lines())


def doctor_lines() -> Iterator[str]:
    """What ``qharness doctor`` shows."""
    yield f"CPU     {machine.cpu_name()}, {machine.cores()} cores, {machine.memory_bytes() / 2**30:.1f} GiB"
    yield f"GPU     {machine.gpu_summary()}"
    checked = preflight(machine.cache_folder())
    if checked is not None:
        yield from _gpu(checked)
    chosen = machine.choose("auto")
    yield f"device  {chosen.device}"
    if chosen.absent_compilers:
        yield f"        absent: {', '.join(chosen.absent_compilers)}, with which libraries compile some CUDA kernels"
    for package, version in machine.versions().items():
        yield f"        {package} {version}"
    start = f"forked from a warm server; {VARIABLE}={SPAWN} starts each anew" if forks() else "each starts anew"
    yield f"runs    {start}"
    yield "methods"
    site = local_site()
    for name in registry.method_names():
        yield f"        {name:<20} {_readiness(name, site)}"


def _gpu(checked: Preflight) -> Iterator[str]:
    """What affects runs on the GPU, and what torch cannot do with it."""
    known = {"compute capability": checked.capability, "CUDA of the driver": checked.driver_cuda}
    facts = [f"{name} {number[0]}.{number[1]}" for name, number in known.items() if number is not None]
    if checked.driver is not None:
        facts.append(f"driver {checked.driver}")
    yield f"        {', '.join(facts)}"
    if checked.problem is not None:
        yield f"        {Anonymizer.for_terminals().message(checked.problem)}"
        return
    works = [dtype for dtype, product in checked.torch.products.items() if product.raised is None]
    yield f"        torch multiplies {', '.join(works)} on it"
    for dtype, message in checked.lacking.items():
        yield f"        torch does not multiply {dtype} on it: {message}"


def _readiness(name: str, site: Site) -> str:
    try:
        method = registry.method(name)
        return (
            _no_gpu(method, site)
            or site.obstacle(method.stack)
            or registry.missing(method, site)
            or _uncompiled(method, site)
            or "ready"
        )
    except UsageError as error:
        return f"broken: {error}"


def _no_gpu(method: Method[Any], site: Site) -> str | None:
    """A message if the method needs a GPU with its default parameters and the site has none."""
    params = _defaults(method)
    lacks = params is not None and method.needs(params).device == "cuda" and site.machine("auto").device != "cuda"
    return "needs an NVIDIA GPU" if lacks else None


def _uncompiled(method: Method[Any], site: Site) -> str | None:
    """What is absent to compile the CUDA kernels of the method with its default parameters, in bfloat16; or None."""
    params, here = _defaults(method), site.machine("auto")
    codes = None if params is None else method.stored(params)
    if codes is None or here.capability is None or not here.absent_compilers:
        return None
    package = compiled_by(codes, "bfloat16", here.capability)
    return None if package is None or site.version(package) is None else uncompiled(package, here.absent_compilers)


def _defaults(method: Method[Any]) -> MethodParams | None:
    """The method's parameters at their defaults; None if one has none."""
    if any(field.is_required() for field in method.params.model_fields.values()):
        return None
    return method.params()  # type: ignore[no-any-return]


def _rows(what: str) -> list[tuple[str, str]]:
    if what == "texts":
        return list(TEXTS.items())
    if what == "engines":
        return [(name, registry.engine(name).summary) for name in registry.engine_names()]
    if what == "metrics":
        return [(name, registry.metric(name).summary) for name in registry.metric_names()]
    aliases = {target: alias for alias, target in registry.ALIASES.items()}
    rows = []
    for name in registry.method_names():
        try:
            method = registry.method(name)
        except UsageError as error:
            rows.append((name, f"broken: {error}"))
            continue
        fields = method.params.model_fields.items()
        parameters = ", ".join(
            f"{key} (required)" if each.is_required() else f"{key}={each.default}" for key, each in fields
        )
        shown = f"{name} ({aliases[name]})" if name in aliases else name
        rows.append((shown, method.summary + (f"; {parameters}" if parameters else "")))
    return rows


def _state(run: PlannedRun, done: Collection[str]) -> str:
    if run.spec.run_id in done:
        return "done"
    return f"unsupported: {run.unsupported}" if run.unsupported else "to do"
