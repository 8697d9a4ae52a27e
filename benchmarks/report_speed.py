"""How large a report of many records is, and how fast it is written and opened: ``python benchmarks/report_speed.py``.

Records are made up: a sweep of many variants of one model, each scored on 8 windows with 512 tokens compared one by
one, and timed in several processes. They are written as a report of one page, which Chromium then opens: from the
request to the load event, until the table can be sorted, and until the first plot is drawn. Sorting is a click on a
head, with what the browser then lays out. docs/measurements/report-speed.md records what it prints.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.core.job import VariantJob
from harness.core.label import Label
from harness.core.record import RunRecord
from harness.report import write_report

TESTS = Path(__file__).parents[1] / "tests"
BENCH = TESTS / "analysis" / "conftest.py"
METHODS = 12
PROCESSES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=5, help="how often each page is opened")
    asked = parser.parse_args()
    print("| records | variants | written in, s | page, MB | loaded in, s | first plot, s | sorted in, s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for count in asked.records:
        made = list(records(count))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            (path,) = write_report(made, Path(folder), ("html",))
            written_s = time.perf_counter() - start
            loaded_s, plot_s, sorted_s = opened(path, asked.rounds)
            size = path.stat().st_size / 1e6
        jobs = (record.spec.job for record in made)
        variants = len({job.variant.method.label for job in jobs if isinstance(job, VariantJob)}) - 1
        print(
            f"| {len(made):,} | {variants:,} | {written_s:.1f} | {size:.1f} | {loaded_s:.2f} | {plot_s:.2f} "
            f"| {sorted_s:.2f} |",
            flush=True,
        )


def records(count: int) -> Iterator[RunRecord]:
    """The baseline and as many variants as fit into ``count`` records; one in fifty failed."""
    builder = _builder()
    bench, none = builder.Bench(), builder.NONE
    yield bench.prepare()
    yield bench.reference()
    yield bench.quality(none)
    yield from (bench.performance(none, 1.0, process, (128, 512)) for process in range(PROCESSES))
    for number in range((count - 3 - PROCESSES) // (1 + PROCESSES)):
        method = builder.MethodRef(
            f"method{number % METHODS}", 1, {"n": number}, f"method{number % METHODS} variant {number}", "on_load"
        )
        bits = 2 + 14 * (number * 0.618 % 1)
        if number % 50 == 49:
            failing = bench.failed(bench.spec("quality", method))
            yield replace(
                failing,
                outcome=replace(failing.outcome, labels=(Label("other", {"text": "fell back to a slow kernel"}),)),
            )
            continue
        yield bench.quality(method, bits, 2.0 ** -(bits - 2) * (1 + number * 0.414 % 1))
        speed = 0.5 + 8 / bits
        yield from (bench.performance(method, speed, process, (128, 512)) for process in range(PROCESSES))


def opened(path: Path, rounds: int) -> tuple[float, float, float]:
    """Median seconds: to the load event, to the first visible plot, and of one sort."""
    from playwright.sync_api import sync_playwright

    figures = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            page.goto(path.as_uri(), wait_until="load")
            loaded_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            figures.append((loaded_ms / 1000, _first_plot(page), _sorting(page)))
            page.close()
        browser.close()
    loaded, plotted, sorting = (statistics.median(column) for column in zip(*figures, strict=True))
    return loaded, plotted, sorting


def _first_plot(page: Any) -> float:
    """Seconds from scrolling to the plots until the first one is drawn."""
    return float(
        page.evaluate(
            """() => new Promise(done => {
              const start = performance.now(), plot = document.querySelector("[data-figure]");
              plot.scrollIntoView({behavior: "instant"});
              const look = () => plot.querySelector(".main-svg") ? done((performance.now() - start) / 1000)
                                                                 : requestAnimationFrame(look);
              look();
            })"""
        )
    )


def _sorting(page: Any) -> float:
    """Seconds of a click on the header of the KL column, including layout."""
    return float(
        page.evaluate(
            """() => {
              const heads = [...document.querySelectorAll("[data-sortable] thead th button")];
              const start = performance.now();
              heads.find(head => head.textContent.startsWith("KL mean")).click();
              document.body.getBoundingClientRect();
              return (performance.now() - start) / 1000;
            }"""
        )
    )


def _builder() -> Any:
    """The tests' builder of records, which imports what the tests share."""
    sys.path.append(str(TESTS / "support"))
    from modules_by_path import module_at

    return module_at(BENCH, "made_up_records")


if __name__ == "__main__":
    main()
