"""Options shared by several commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from harness.api.workplace import Workplace
    from harness.stacks import Stacks


class Purpose(StrEnum):
    """What a user is after: which methods are compared first."""

    SIZE = "size"
    SPEED = "speed"
    QUALITY = "quality"


class Device(StrEnum):
    """What a recipe's ``device`` may be."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def built_in_names(incomplete: str) -> list[str]:
    """The built-in recipes whose names begin so, for the shell."""
    from harness.recipe.built_in import built_in_recipes

    return [name for name in built_in_recipes() if name.startswith(incomplete)]


def offered_recipes(incomplete: str) -> list[str]:
    """What the shell offers where a recipe is expected: recipe files, folders, built-in recipes."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    near = [path for path in Path(folder or ".").glob("*") if path.suffix == ".yaml" or path.is_dir()]
    names = sorted(f"{folder}{path.name}{'/' if path.is_dir() else ''}" for path in near)
    return [*(name for name in names if name.startswith(incomplete)), *built_in_names(incomplete)]


RecipeFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file (YAML), or the name of one that 'qharness recipes' lists.",
        autocompletion=offered_recipes,
    ),
]
Results = Annotated[
    str, typer.Argument(metavar="RESULTS", help="A results folder, or its URL, such as s3://BUCKET/DIR.")
]
ResultsFolder = Annotated[
    str,
    typer.Option("--results", metavar="DIR|URL", help="Folder of the records, or its URL, such as s3://BUCKET/DIR."),
]
BaselinesFolder = Annotated[Path, typer.Option("--baselines", metavar="DIR", help="Folder of the baselines.")]
CacheFolder = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads it at run time
    typer.Option("--cache", metavar="DIR", help="Folder of checkpoints and references (or $QHARNESS_CACHE)."),
]
CacheLocation = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--cache",
        metavar="DIR|URL",
        help="Folder of checkpoints and references (or $QHARNESS_CACHE), or the URL where machines share them.",
    ),
]
Pythons = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--python", metavar="NAME=PATH", help="Your own interpreter for a stack; may be repeated."),
]
AllowLeak = Annotated[
    bool,
    typer.Option("--allow-leak", help="Allow calibration to overlap the evaluation text; every such row is marked."),
]
StackName = Annotated[str, typer.Argument(metavar="NAME", help="A stack listed by 'qharness stack list'.")]
StackDevice = Annotated[
    Device, typer.Option("--device", help="The device of the runs that use it: vllm has builds for two.")
]
_MODEL = typer.Argument(metavar="MODEL", help="A folder, a .gguf file, package:NAME/FILE, synthetic:TYPE, or a hub id.")
_MINUTES = typer.Option("--minutes", metavar="N", help="How long it is expected to take at most.")
_FOR = typer.Option("--for", help="Which methods are taken first.")
_ENGINE = typer.Option("--engine", metavar="ENGINE", help="What runs the model.")
ModelName = Annotated[str, _MODEL]
Minutes = Annotated[float, _MINUTES]
For = Annotated[Purpose, _FOR]
EngineName = Annotated[str, _ENGINE]
AskedModel = Annotated[Optional[str], _MODEL]  # noqa: UP045
"""The same arguments where the user is asked for what is not given."""
AskedMinutes = Annotated[Optional[float], _MINUTES]  # noqa: UP045
AskedPurpose = Annotated[Optional[Purpose], _FOR]  # noqa: UP045
AskedEngine = Annotated[Optional[str], _ENGINE]  # noqa: UP045
Methods = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--methods",
        metavar="METHODS",
        help="Such as 'int8, rtn bits=4'; may be repeated. Default: those that suit the purpose and this machine.",
    ),
]
MemoryBudget = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--budget", metavar="SIZE|GPU", help="Memory to serve in: 24GiB, 24GB, or a GPU such as 'RTX 4090'."),
]
TextName = Annotated[str, typer.Option("--text", metavar="TEXT", help="A text's name, or a file, to score.")]
Revision = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--revision", metavar="COMMIT", help="Commit of a hub model; default: the newest."),
]
RecipeOut = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--out", metavar="FILE", help="The recipe's file; default: named after the model."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the recipe's file if it exists.")]
Redact = Annotated[
    bool,
    typer.Option("--redact", help="Leave out paths, logs, messages, and names of local models and texts."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
ExecutorName = Annotated[
    str,
    typer.Option("--executor", metavar="NAME", help="What executes the runs: local (this machine), ray or slurm."),
]
ClusterAddress = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--address", metavar="A", help="Ray: the cluster, host:port or auto (default: one of this machine alone)."
    ),
]
NodeCount = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--nodes", min=1, help="Slurm: how many nodes to use (default: 1)."),
]
SbatchOptions = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--slurm", metavar="KEY=VALUE", help="Slurm: an option of sbatch; may be repeated."),
]


def below(results: str, recipe: str) -> str:
    """The folder of a recipe in a results folder, or its URL."""
    return f"{results.rstrip('/')}/{recipe}"


def split_methods(given: list[str] | None) -> tuple[str, ...]:
    """Methods that were listed with commas, repeated, or both."""
    return tuple(each.strip() for text in given or () for each in text.split(",") if each.strip())


def workplace(results: str, cache: str | Path | None, pythons: list[str] | None) -> Workplace:
    """Where the options say that recipes run. Raises UsageError for a wrong ``--python``."""
    from harness.api.workplace import Workplace

    return Workplace(results, cache, interpreters(pythons))


def interpreters(pythons: list[str] | None) -> dict[str, Path]:
    """The user's own interpreters, by stack. Raises UsageError for anything but NAME=PATH."""
    from harness.stacks import parse_pythons

    return parse_pythons(pythons or [])


def stacks_of(cache: Path | None, pythons: list[str] | None = None, device: Device = Device.AUTO) -> Stacks:
    """The stacks in a cache folder, with the user's own interpreters, as runs on a device use them."""
    from harness.execution.local import local_site

    return local_site(cache, interpreters(pythons), device.value).stacks
