"""The job of a server under load: what it asks at each level, what it records, and when its run is invalid."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import urllib3
from clock_server import MODEL, Answer, clock_server
from run_specs import NONE, run_spec

from harness.core.capability import Endpoint
from harness.core.job import MeasureServing
from harness.core.model import ModelRef, ServerRef
from harness.core.record import Measurement
from harness.core.workload import ServingWorkload, Slo
from harness.engines.transformers.engine import TRANSFORMERS
from harness.errors import InvalidRunError, RunError, UndrivenError, UnsupportedError
from harness.execution.context import Context
from harness.execution.counters import counting, read
from harness.execution.jobs.serve import run
from harness.execution.worker import classify
from harness.libraries.load_generator import INTERPRETER
from harness.libraries.serving import HOST, LOG, free_port, serving
from harness.recipe import Text
from harness.stats.serving import Answered
from harness.storage.cache import Cache
from harness.text.load import PlannedRequest, arrivals
from harness.text.sources import resolve

pytestmark = pytest.mark.heavy

PROGRAM = Path(__file__).parents[1] / "support" / "http_child.py"
WORKLOAD = ServingWorkload(
    arrival="poisson",
    levels=(1.0, 4.0, 16.0),
    text=resolve(Text(name="demo"), Path()),
    prompt_tokens=32,
    new_tokens=8,
    natural=False,
    requests=20,
    duration_s=None,
    warmup=2,
    slo=Slo(ttft_s=0.5),
)


@dataclass
class Planted:
    """A load generator whose server answers each request of a load of ``rate`` after ``rate`` / 10 s, at ``lag`` s."""

    version: str = "planted"
    lag_s: float = 0.0
    failing: int = 0
    asked: list[tuple[Sequence[PlannedRequest], int | None]] = field(default_factory=list)

    def drive(
        self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
    ) -> list[Answered]:
        self.asked.append((requests, concurrent))
        rate = concurrent or (len(requests) - 1) / max(each.at_s or 0.0 for each in requests)
        ttft_s = rate / 10
        return [
            Answered(
                each.name,
                (each.at_s or 0.0) + number * self.lag_s,
                each.at_s,
                ttft_s,
                ttft_s + 0.07,
                32,
                8,
                (0.01,) * 7,
                "Service Unavailable" if number < self.failing else "",
            )
            for number, each in enumerate(requests)
        ]


@contextmanager
def planted_server(folder: Path) -> Iterator[Endpoint]:
    yield Endpoint("http://127.0.0.1:1", MODEL)
    (folder / LOG).write_text("the server's last words")


@contextmanager
def child_server(folder: Path) -> Iterator[Endpoint]:
    """A process of its own, which ends with exit code 3 when it is asked for /end."""
    url = f"http://{HOST}:{(port := free_port())}"
    with serving([sys.executable, str(PROGRAM), str(port)], {"PYTHONUNBUFFERED": "1"}, f"{url}/health", folder):
        yield Endpoint(url, MODEL)


@dataclass
class Deadly(Planted):
    """The second level of its load ends the server; from then on no request is answered."""

    def drive(
        self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
    ) -> list[Answered]:
        found = super().drive(endpoint, requests, concurrent, natural)
        if len(self.asked) == 1:
            return found
        if len(self.asked) == 2:
            urllib3.request("GET", f"{endpoint.url}/end", retries=False)
        while _answers(f"{endpoint.url}/health"):
            time.sleep(0.01)
        return [replace(each, error="Connection refused") for each in found]


def _answers(url: str) -> bool:
    try:
        return urllib3.request("GET", url, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def measured(
    workload: ServingWorkload,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    planted: Planted,
    energy: bool = False,
    server: Callable[[Path], AbstractContextManager[Endpoint]] = planted_server,
) -> Context:
    context = prepared(workload, tiny, monkeypatch, planted, server)
    assert isinstance(context.spec.job, MeasureServing)
    run(replace(context.spec.job, energy=energy), context, Path())
    return context


def prepared(
    workload: ServingWorkload,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    planted: Planted,
    server: Callable[[Path], AbstractContextManager[Endpoint]] = planted_server,
) -> Context:
    """A run that has not begun."""
    source = ModelRef("tiny", "tiny", "0", "directory", str(tiny), "float32")
    method = replace(NONE, params={"dtype": "model"})
    context = Context(
        run_spec("serve", "load", source, method, method, serving=workload, memory=False), Cache(tiny), str
    )
    runtime = replace(TRANSFORMERS, serve=lambda request, params, folder: server(folder))
    monkeypatch.setattr("harness.execution.context.engine", lambda name: runtime)
    monkeypatch.setattr("harness.execution.jobs.serve.load_generator_of", lambda python, endpoint: nullcontext(planted))
    monkeypatch.setenv(INTERPRETER, "python")
    return context


def found(context: Context, metric: str, **protocol: object) -> Measurement:
    (only,) = (
        each
        for each in context.measurements
        if each.metric == metric and protocol.items() <= dict(each.protocol).items()
    )
    return only


def test_each_level_is_measured_without_what_warms_up(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted()
    context = measured(WORKLOAD, tiny, monkeypatch, planted)
    assert [len(requests) for requests, _ in planted.asked] == [22, 22, 22]
    ttft = found(context, "serving_ttft_s", level=4.0)
    assert ttft.item_ids == tuple(f"r{number:05d}" for number in range(2, 22))
    assert ttft.protocol["arrival"] == "poisson"
    assert [phase.name for phase in context.phases][-3:] == ["load"] * 3
    assert found(context, "serving_largest_load").values == (4.0,)  # the tail of a level of 4 a second is slower


def test_variants_are_asked_the_same_and_levels_are_not(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Planted(), Planted()
    for planted in (first, second):
        measured(WORKLOAD, tiny, monkeypatch, planted)
    assert first.asked == second.asked
    prompts = [{each.prompt for each in requests} for requests, _ in first.asked]
    assert not prompts[0] & prompts[1]
    one, other = ([each.at_s or 0.0 for each in requests] for requests, _ in first.asked[:2])
    assert [each / 4 for each in one] == pytest.approx(other)  # one schedule at two speeds


def test_levels_between_bisect_the_load(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    concurrent = replace(WORKLOAD, arrival="concurrent", levels=(1.0, 16.0), bisect=3)
    planted = Planted()
    context = measured(concurrent, tiny, monkeypatch, planted)
    assert [at_once for _, at_once in planted.asked] == [1, 16, 8, 4, 6]
    assert found(context, "serving_largest_load").values == (4.0,)


def test_gaps_that_a_record_cannot_have_are_left_out_with_a_label(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    natural = replace(WORKLOAD, natural=True)
    whole = measured(natural, tiny, monkeypatch, Planted())
    values = sum(len(each.values) for each in whole.measurements)
    assert not any(each.code == "gaps_left_out" for each in whole.labels)
    monkeypatch.setattr("harness.execution.jobs.serve.MAX_ROWS", values - 200)  # of 3 levels of 20 requests of 7 gaps
    context = measured(natural, tiny, monkeypatch, Planted())
    (label,) = (each for each in context.labels if each.code == "gaps_left_out")
    assert label.sentence.startswith("times between tokens are those of one in 2 requests")
    assert [len(found(context, "serving_gap_s", level=level).values) for level in natural.levels] == [70, 70, 70]
    assert found(context, "serving_ttft_s", level=4.0) == found(whole, "serving_ttft_s", level=4.0)


def test_an_slo_that_no_load_holds_names_the_nearest(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = measured(
        replace(WORKLOAD, arrival="concurrent", slo=Slo(ttft_s=0.001, itl_s=0.02)), tiny, monkeypatch, Planted()
    )
    (fact,) = (each for each in context.facts if each.code == "slo_not_held")
    assert fact.value == (
        "no load down to 1 concurrent requests holds ttft ≤ 0.001 s, itl ≤ 0.02 s for 90%; the nearest is 1 concurrent "
        "requests, where 0.0% of the requests meet it, and the others mostly miss ttft"
    )
    assert found(context, "serving_largest_load").values == (0.0,)


def test_an_slo_that_no_rate_holds_is_not_looked_for_at_rates_without_end(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten levels that may bisect two are measured: 20 requests at 1/1024 a second would take six hours."""
    planted = Planted()
    strict = replace(WORKLOAD, arrival="constant", levels=(1.0, 2.0), slo=Slo(ttft_s=0.001), bisect=10)
    context = measured(strict, tiny, monkeypatch, planted)
    spans = [max(each.at_s or 0.0 for each in requests) for requests, _ in planted.asked]
    assert spans == pytest.approx([21 / rate for rate in (1, 2, 0.5, 0.25)])
    (fact,) = (each for each in context.facts if each.code == "slo_not_held")
    assert fact.value.startswith("no load down to 0.25 requests/s holds ttft ≤ 0.001 s for 90%; the nearest is ")


def test_a_rate_beyond_the_client_makes_the_run_invalid(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRunError, match=r"1 requests/s: the client itself sent requests .* lower the rate"):
        measured(WORKLOAD, tiny, monkeypatch, Planted(lag_s=0.05))


@dataclass
class Lagging(Planted):
    """It cannot send the requests of its second load when they are due."""

    def drive(
        self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
    ) -> list[Answered]:
        self.lag_s = 0.05 if self.asked else 0.0
        return super().drive(endpoint, requests, concurrent, natural)


def test_what_the_client_drove_is_kept_with_the_largest_load_of_it(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Lagging()
    context = prepared(WORKLOAD, tiny, monkeypatch, planted)
    assert isinstance(context.spec.job, MeasureServing)
    with pytest.raises(UndrivenError, match=r"4 requests/s: the client itself sent requests"):
        run(context.spec.job, context, Path())
    assert len(planted.asked) == 2, "a higher rate is no easier"
    assert {each.protocol.get("level") for each in context.measurements} == {1.0, None}
    assert found(context, "serving_largest_load").values == (1.0,)


@dataclass
class Saturated(Planted):
    """A client that takes so long to read what arrives that requests are sent late where several are open."""

    def drive(
        self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
    ) -> list[Answered]:
        assert concurrent is not None
        wait_s, answer_s = 0.02 * concurrent, 0.1
        return [
            replace(each, sent_s=number // concurrent * (answer_s + wait_s), ttft_s=0.03, e2e_s=answer_s)
            for number, each in enumerate(super().drive(endpoint, requests, concurrent, natural))
        ]


def test_a_client_that_cannot_keep_so_many_requests_open_makes_the_run_invalid(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concurrent = replace(WORKLOAD, arrival="concurrent", levels=(1.0, 2.0, 8.0))
    context = prepared(concurrent, tiny, monkeypatch, Saturated())
    assert isinstance(context.spec.job, MeasureServing)
    with pytest.raises(
        UndrivenError, match=r"8 concurrent requests: the client itself took 0\.16 s .* the concurrency"
    ):
        run(context.spec.job, context, Path())
    assert found(context, "serving_largest_load").values == (2.0,)


@contextmanager
def small_server(folder: Path) -> Iterator[Endpoint]:
    """It computes four requests together, each of at most 64 tokens."""
    yield Endpoint("http://127.0.0.1:1", MODEL, together=4, longest_tokens=64)


@pytest.mark.parametrize(
    ("levels", "labels"),
    [
        ((1.0, 4.0), []),
        (
            (4.0, 16.0),
            ["requests wait in a queue: up to 16 are open at the same time, and the server computes 4 together"],
        ),
    ],
)
def test_requests_that_wait_in_the_servers_queue_are_labelled(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, levels: tuple[float, ...], labels: list[str]
) -> None:
    concurrent = replace(WORKLOAD, arrival="concurrent", levels=levels)
    context = measured(concurrent, tiny, monkeypatch, Planted(), server=small_server)
    assert [each.sentence for each in context.labels if each.code == "requests_queue"] == labels


def test_rows_that_the_server_has_no_room_for_are_unsupported(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = Planted()
    with pytest.raises(UnsupportedError, match=r"a row of demo has \d+ tokens, .* with 8 new ones exceed the 64 that"):
        measured(replace(WORKLOAD, prompt_tokens=None), tiny, monkeypatch, planted, server=small_server)
    assert not planted.asked


def test_requests_without_an_answer_are_counted_with_their_reason(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = measured(replace(WORKLOAD, levels=(1.0,)), tiny, monkeypatch, Planted(failing=7))
    assert found(context, "serving_failures").values == (5.0,)  # two of them warm up
    assert sum(found(context, "serving_met").values) == 15
    assert len(found(context, "serving_ttft_s").values) == 15
    (fact,) = (each for each in context.facts if each.code == "requests_failed")
    assert (fact.name, fact.value) == (
        "requests at 1 requests/s",
        "5 of 20 without an answer: Service Unavailable",
    )
    every = measured(replace(WORKLOAD, levels=(1.0,)), tiny, monkeypatch, Planted(failing=22))
    assert found(every, "serving_failures").values == (20.0,)
    for rate in ("serving_goodput_per_s", "serving_requests_per_s", "serving_output_tok_per_s"):
        assert found(every, rate).values == (0.0,)
    assert not any(each.metric == "serving_ttft_s" for each in every.measurements)
    for kept in ("serving_planned_s", "serving_sent_s"):  # that the load was sent, and when, is the evidence
        assert found(every, kept).item_ids == tuple(f"r{number:05d}" for number in range(2, 22))


def test_what_the_server_printed_is_in_the_log(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    measured(replace(WORKLOAD, levels=(1.0,)), tiny, monkeypatch, Planted())
    assert "the server's last words" in capfd.readouterr().err


def test_a_server_that_ends_under_load_fails_the_run_with_the_end_of_its_log(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = Deadly()
    context = prepared(WORKLOAD, tiny, monkeypatch, planted, child_server)
    assert isinstance(context.spec.job, MeasureServing)
    with pytest.raises(RunError) as caught:
        run(context.spec.job, context, Path())
    assert re.fullmatch(
        r"its server ended while it was measured: exit code 3: child \d+ \| told to end", str(caught.value)
    )
    assert classify(caught.value) == "failed"
    assert len(planted.asked) == 3, "a level without an answer is measured like the others"
    assert found(context, "serving_largest_load").values == (1.0,)
    assert found(context, "serving_e2e_s").protocol["level"] == 1.0
    assert "told to end" in capfd.readouterr().err


def test_joules_of_a_level_are_divided_by_the_tokens_of_all_its_answers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter is read before and after each level, and rises by 44 J in one and 88 J in the other."""

    class Counter:
        source = "planted"
        counts = iter((1000.0, 1044.0, 1044.0, 1132.0))

        def read(self) -> float:
            return next(self.counts)

    monkeypatch.setattr("harness.execution.jobs.serve.meters", lambda device, note: nullcontext((Counter(),)))
    levels = replace(WORKLOAD, levels=(1.0, 4.0))
    context = measured(levels, tiny, monkeypatch, Planted(failing=11), energy=True)
    tokens = 11 * 8  # 22 requests, of which half are answered; those that warm up take energy too
    spent = [found(context, "serving_j_per_tok", level=level, source="planted").values for level in levels.levels]
    assert spent == [(44 / tokens,), (88 / tokens,)]
    assert not any(
        each.metric == "serving_j_per_tok" for each in measured(levels, tiny, monkeypatch, Planted()).measurements
    )


def test_the_load_of_a_server_of_the_users_is_measured_without_its_energy(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.execution.jobs.serve.meters", lambda device, note: pytest.fail("counted"))
    levels = replace(WORKLOAD, levels=(1.0, 4.0))
    context = prepared(levels, tiny, monkeypatch, Planted())
    job = context.spec.job
    assert isinstance(job, MeasureServing)
    method = replace(job.variant.method, server=ServerRef("http://127.0.0.1:1"))
    run(replace(job, energy=True, variant=replace(job.variant, method=method)), context, Path())
    assert [len(found(context, "serving_ttft_s", level=level).values) for level in levels.levels] == [20, 20]
    assert not any(each.metric == "serving_j_per_tok" for each in context.measurements)
    (fact,) = [each for each in context.facts if each.code == "energy_not_measured"]
    assert fact.name == "energy of the server"


def test_a_duration_has_requests_that_count_at_every_rate() -> None:
    """At random, or where the load is halved until the SLO holds, fewer may come than those that warm up."""
    short = replace(WORKLOAD, requests=None, duration_s=10.0)
    for seed in range(50):
        assert len(arrivals(short, 0.4, seed)) >= short.warmup + 2
    evenly = arrivals(replace(short, arrival="constant"), 2.0, 0)
    assert evenly == pytest.approx([number / 2 for number in range(21)])


@pytest.mark.parametrize(("own_s", "labels"), [(95.0, []), (50.0, ["cpu_shared"])])
def test_a_run_beside_other_programs_is_suspect(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, own_s: float, labels: list[str]
) -> None:
    """A clock is high before a load and lower under it: that is no finding."""
    idle = {"cpu_total_s": 0.0, "cpu_busy_s": 0.0, "cpu_own_s": 0.0, "cpu_steal_s": 0.0, "gpu_sm_clock_mhz": 1980.0}
    busy = {
        "cpu_total_s": 100.0,
        "cpu_busy_s": 98.0,
        "cpu_own_s": own_s,
        "cpu_steal_s": 0.0,
        "gpu_sm_clock_mhz": 1400.0,
    }
    states = iter((idle, busy))
    monkeypatch.setattr("harness.execution.context.state", lambda: next(states))
    context = measured(replace(WORKLOAD, levels=(1.0,)), tiny, monkeypatch, Planted())
    assert [each.arguments["reason"] for each in context.labels if each.code == "suspect"] == labels


def test_levels_below_one_that_fails_are_suspect_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs took the cores while the first level was measured; at the second the generator ends."""

    class Ending(Planted):
        def drive(
            self, endpoint: Endpoint, requests: Sequence[PlannedRequest], concurrent: int | None, natural: bool
        ) -> list[Answered]:
            if self.asked:
                raise RunError("the load generator ended")
            return super().drive(endpoint, requests, concurrent, natural)

    begins, ends = ({"cpu_total_s": at, "cpu_busy_s": at, "cpu_own_s": 0.0, "cpu_steal_s": 0.0} for at in (0.0, 100.0))
    states = iter((begins, ends, ends, ends))
    monkeypatch.setattr("harness.execution.context.state", lambda: next(states))
    context = prepared(WORKLOAD, tiny, monkeypatch, Ending())
    assert isinstance(context.spec.job, MeasureServing)
    with pytest.raises(RunError, match="the load generator ended"):
        run(context.spec.job, context, Path())
    assert [each.name for each in context.moments] == ["load begins", "load ends"] * 2
    assert [each.arguments["reason"] for each in context.labels if each.code == "suspect"] == ["cpu_shared"]


def test_a_text_too_short_for_a_prompt_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRunError, match="has no prompt of 10000000 tokens; name a longer text"):
        measured(replace(WORKLOAD, prompt_tokens=10_000_000), tiny, monkeypatch, Planted())


def test_several_engines_requests_add_up_and_the_fullest_cache_counts() -> None:
    page = (
        'vllm:kv_cache_usage_perc{engine="0"} 0.75\nvllm:kv_cache_usage_perc{engine="1"} 0.5\n'
        'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 2\nllamacpp:other NaN\n'
    )
    with clock_server(lambda number, active: Answer(), lambda: page) as server:
        found = read(f"{server.url}/metrics")
    assert found == {"vllm:kv_cache_usage_perc": 0.75, "vllm:num_requests_running": 5.0}


def test_no_counts_are_read_from_where_a_server_points_to() -> None:
    class Pointing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", f"{elsewhere.url}/metrics")
            self.end_headers()

    with (
        clock_server(lambda number, active: Answer(), lambda: "vllm:num_requests_running 5\n") as elsewhere,
        ThreadingHTTPServer(("127.0.0.1", 0), Pointing) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert read(f"{elsewhere.url}/metrics") == {"vllm:num_requests_running": 5.0}
        assert read(f"http://127.0.0.1:{server.server_port}/metrics") == {}
        server.shutdown()


def test_the_servers_own_counts_are_read() -> None:
    pages = iter([(5, 0.2), (5, 0.2), (8, 0.9), (9, 0.4)])
    last = [(0, 0.0)]

    def page() -> str:
        last[:] = [next(pages, last[0])]
        preempted, used = last[0]
        return (
            f'# HELP x\nvllm:num_preemptions_total{{engine="0"}} {preempted}\n'
            f'vllm:kv_cache_usage_perc{{engine="0"}} {used}\n'
            "vllm:prefix_cache_queries_total 100.0\nvllm:prefix_cache_hits_total 25\nbroken line\n"
        )

    with clock_server(lambda number, active: Answer(), page) as server:
        with counting(f"{server.url}/metrics") as counted:
            while last[0] != (9, 0.4):
                time.sleep(0.05)
        assert counted.risen == {"preemptions": 4, "prefix_cache_queries": 0, "prefix_cache_hits": 0}
        assert counted.highest == {"cache_use": 0.9}
        with counting(f"{server.url}/nothing") as nothing:
            pass
    assert (nothing.risen, nothing.highest) == ({}, {})
