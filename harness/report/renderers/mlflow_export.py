"""Exports figures to MLflow: a run per session, a child run per variant, the report as artifacts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeGuard

from harness.analysis.selection import in_order
from harness.core.owner import temporary_folder
from harness.core.record import RunRecord
from harness.errors import UsageError
from harness.report.escape import mlflow_name, mlflow_value, unique
from harness.report.flat import Item, entries
from harness.report.page import Page, page
from harness.report.write import write_report

if TYPE_CHECKING:
    from mlflow import MlflowClient

MISSING = "MLflow is not installed; install it with: pip install 'qharness[mlflow]'"
PARAMS = ("model", "method", "engine", "decode_mode", "perplexity_protocol", "hardware", "is_baseline")
"""Logged as parameters; all other text of a line is logged as tags, all numbers as metrics."""
MOST_METRICS, MOST_OTHERS = 1000, 100
"""Limits of one request to a server."""
FORMATS = ("html", "md", "csv")


@dataclass(frozen=True)
class Exported:
    """A session and its run; ``variants`` counts its child runs, None if the run already existed."""

    session: str
    run_id: str
    variants: int | None


def export(records: Sequence[RunRecord], tracking_uri: str, experiment: str) -> list[Exported]:
    """One run per session that measured a variant, oldest first, in an experiment that is created if needed.

    A session with a finished run tagged ``qharness.session`` is skipped. Raises UsageError if MLflow is missing or
    reports an error, and if no session measured a variant.
    """
    with _usage_errors(tracking_uri):
        client = _client(tracking_uri)
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        made = []
        for session, own in _sessions(records).items():
            whole = page(own)
            if whole.tables:
                there = _there(client, experiment_id, session)
                made.append(Exported(session, there, None) if there else _session(client, experiment_id, own, whole))
    if not made:
        raise UsageError("nothing to export: no session measured a variant")
    return made


def _client(tracking_uri: str) -> MlflowClient:
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise UsageError(MISSING) from None
    return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def _usage_errors(tracking_uri: str) -> Iterator[None]:
    """MLflow's errors are for the user to fix: the URI, permissions, requirements of its store."""
    try:
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UsageError(MISSING) from None
    try:
        yield
    except (MlflowException, ImportError, OSError) as error:
        raise UsageError(f"MLflow at {tracking_uri}: {error}") from None


def _sessions(records: Sequence[RunRecord]) -> Mapping[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for record in in_order(records):
        found.setdefault(record.session, []).append(record)
    return found


def _there(client: MlflowClient, experiment_id: str, session: str) -> str | None:
    """The run of a session, if one was completed."""
    runs = client.search_runs(
        [experiment_id], f"tags.`qharness.session` = '{_quotable(session)}' and tags.`qharness.kind` = 'session'"
    )
    whole = [run.info.run_id for run in runs if run.info.status == "FINISHED"]
    return whole[0] if whole else None


def _session(client: MlflowClient, experiment_id: str, own: Sequence[RunRecord], whole: Page) -> Exported:
    session = own[0].session
    began, ended = _milliseconds(own[0].started_at), max(_milliseconds(r.started_at) + _wall_ms(r) for r in own)
    recipes = sorted({record.spec.recipe for record in own})
    tags = {
        "qharness.kind": "session",
        "qharness.session": _quotable(session),
        **{f"hardware.{name}": value for name, value in whole.hardware},
        **{f"software.{name}": value for name, value in whole.software},
    }
    name = mlflow_value(f"{', '.join(recipes)} {session}")
    parent = client.create_run(experiment_id, start_time=began, tags=_tags(tags), run_name=name).info.run_id
    _log(client, parent, began, {}, {"recipe": ", ".join(recipes), "session": session})
    lines = entries(whole.tables)
    for line in lines:
        _variant(client, experiment_id, parent, line, tags, (began, ended))
    with temporary_folder() as folder:
        write_report(own, folder, FORMATS)
        client.log_artifacts(parent, str(folder))
    client.set_terminated(parent, "FINISHED", end_time=ended)
    return Exported(session, parent, len(lines))


def _variant(
    client: MlflowClient,
    experiment_id: str,
    parent: str,
    line: Mapping[str, Item],
    surroundings: Mapping[str, str],
    times: tuple[int, int],
) -> None:
    params = {name: str(line[name]) for name in PARAMS if line.get(name) not in (None, "")}
    words = {name: value for name, value in line.items() if isinstance(value, str) and value and name not in PARAMS}
    tags = {**surroundings, **words, "qharness.kind": "variant", "mlflow.parentRunId": parent}
    name = mlflow_value(f"{line['model']} × {line['variant']}")
    run = client.create_run(experiment_id, start_time=times[0], tags=_tags(tags), run_name=name).info.run_id
    numbers = {name: float(value) for name, value in line.items() if _is_number(value) and name not in PARAMS}
    finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
    _log(client, run, times[1], finite, params)
    client.set_terminated(run, "FINISHED" if line["status"] == "ok" else "FAILED", end_time=times[1])


def _log(client: MlflowClient, run: str, at_ms: int, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
    from mlflow.entities import Metric, Param

    names = unique(map(mlflow_name, metrics))
    numbers = [Metric(name, value, at_ms, 0) for name, value in zip(names, metrics.values(), strict=True)]
    words = [Param(name, mlflow_value(value)) for name, value in params.items()]
    for some in _parts(words, MOST_OTHERS):
        client.log_batch(run, params=some)
    for some in _parts(numbers, MOST_METRICS):
        client.log_batch(run, metrics=some)


def _parts(whole: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    yield from (whole[start : start + most] for start in range(0, len(whole), most))


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {mlflow_name(name): mlflow_value(value) for name, value in tags.items()}


def _quotable(session: str) -> str:
    """A session as a value that a search can quote."""
    return mlflow_value(session).replace("'", "")


def _is_number(value: object) -> TypeGuard[float]:
    """True and False count as 1 and 0."""
    return isinstance(value, int | float)


def _milliseconds(started_at: str) -> int:
    return int(datetime.fromisoformat(started_at).timestamp() * 1000)


def _wall_ms(record: RunRecord) -> int:
    return int(record.wall_s * 1000)
