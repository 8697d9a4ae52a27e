"""``qharness selfcheck``: what a machine's checks conclude from records, what they leave to send, and their limits."""

from __future__ import annotations

import errno
import json
import os
import time
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nvml_stub import A100, H200, SLICED_H200, NvmlStub
from run_specs import changed, run_spec

from harness.acceptance import archive, recipes
from harness.acceptance.bench import Bench, CheckResult, Timed, passed
from harness.acceptance.checks import identity, speed, storage
from harness.acceptance.checks.speed import own_speeds
from harness.acceptance.datasheet import data_sheet
from harness.acceptance.models import SMALL, write_small
from harness.api import selfcheck as api
from harness.api.selfcheck import MachineCheck, selfcheck
from harness.cli.app import main
from harness.core.label import Label
from harness.core.model import MethodRef
from harness.core.record import Failure, Measurement, Outcome, Phase, RunRecord
from harness.core.run import RunLimits
from harness.core.site import HERE, Machine
from harness.core.workload import ThroughputWorkload
from harness.errors import StorageError, UsageError
from harness.host.gpu import gpu, identifying
from harness.host.preflight import Preflight, TorchAnswer
from harness.models.headers import read_directory

CPU = Machine("cpu", "a processor")
GPU = Machine("cuda", f"{H200.name}; a processor", (9, 0), (H200.uuid,), H200.total_bytes)


def bench(folder: Path, machine: Machine | None = CPU, told: Preflight | None = None) -> Bench:
    on_gpu = machine is None or machine.device == "cuda"
    return Bench(folder, on_gpu, machine, told, lambda title: None, time.monotonic() + 3600)


def record(kind: str, *measured: Measurement, labels: tuple[Label, ...] = (), **others) -> RunRecord:
    status = others.pop("status", "ok")
    failure = None if status == "ok" else Failure("load", "Error", "it broke\nand more")
    outcome = Outcome(status, failure, measured, labels)
    return RunRecord(run_spec(kind, **others), outcome, "s1", 1, "2026-01-01T00:00:00+00:00", 1.0)


def exact(metric: str, value: float, **protocol) -> Measurement:
    return Measurement(metric, 1, "byte", "lower", "exact", (value,), protocol)


def answering(monkeypatch: pytest.MonkeyPatch, *records: RunRecord) -> None:
    """Every recipe has these records."""
    monkeypatch.setattr(Bench, "measure", lambda bench, recipe, adapt=None: records)


def test_the_formats_of_the_8b_shape_take_the_known_fractions_of_16_bits() -> None:
    expected = {"int8": 0.50049, "fp8": 0.50039, "bnb-nf4": 0.28125, "bnb-nf4 double_quant": 0.2579}
    for shape in (recipes.WHOLE, recipes.NARROW):
        assert shape.parameters == 4 * 218_103_808
        assert shape.cache_bytes_per_token(2) == 16_384
        for method, ratio in expected.items():
            assert storage.expected_ratio(shape, method) == pytest.approx(ratio, abs=6e-5), method


def stored(method: str, ratio: float, status: str = "ok") -> RunRecord:
    parameters = recipes.NARROW.parameters
    held = exact("stored_bytes", 2 * parameters * ratio, role="linear", part="values")
    head = exact("stored_bytes", 1e9, role="head", part="values")
    count = exact("parameters", parameters, role="linear")
    own = MethodRef(method, 1, {}, method, "on_load")
    return record("performance", held, head, count, method=own, status=status)


def test_stored_bytes_pass_at_the_formats_own_and_fail_beside_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ratios = {"int8": 0.50049, "fp8": 0.51, "bnb-nf4": 0.28125}
    broken = stored("bnb-nf4 double_quant", 0.2579, "failed")
    answering(monkeypatch, *(stored(method, ratio) for method, ratio in ratios.items()), broken)
    found = {each.about: each for each in storage.storage(bench(tmp_path))}
    assert [each.verdict for each in found.values()] == ["PASS", "FAIL", "PASS", "FAIL"]
    assert found["stored bytes, fp8"].reason == "0.51000 of 16-bit linears, 0.50039 by the format"
    assert found["stored bytes, nf4 double"].reason == "in load: it broke"


@pytest.mark.parametrize(("per_token", "verdict"), [(16_384, "PASS"), (32_768, "FAIL")])
def test_the_cache_takes_what_the_shape_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, per_token: int, verdict: str
) -> None:
    answering(monkeypatch, record("performance", exact("kv_cache_bytes_per_token", per_token)))
    assert [each.verdict for each in storage.cache(bench(tmp_path))] == [verdict]


@pytest.mark.parametrize(
    ("name", "product"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("Quadro GV100", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GB200", None),
    ],
)
def test_a_data_sheet_is_that_of_the_product(name: str, product: str | None) -> None:
    sheet = data_sheet(name)
    assert (sheet.product if sheet else None) == product


def speeds(bandwidth: float, half: float, narrow: float, labels: tuple[Label, ...] = ()) -> RunRecord:
    rates = {"bfloat16": half, "int8": narrow, "float8_e4m3fn": narrow}
    measured = [
        Measurement("matmul_op_per_s", 2, "operation/s", "higher", "samples", (rate / 2, rate), {"dtype": dtype})
        for dtype, rate in rates.items()
    ]
    where = {"access": "sum", "working_set_bytes": 2**30}
    read = Measurement("bandwidth_byte_per_s", 2, "byte/s", "higher", "samples", (bandwidth,), where)
    return record("machine", read, *measured, labels=labels)


SHARED = Label("suspect", {"reason": "gpu_shared", "of": "machine"})


@pytest.mark.parametrize(
    ("machine", "verdict"),
    [
        (speeds(4.2e12, 700e12, 1300e12), "PASS"),
        (speeds(2.0e12, 700e12, 1300e12), "FAIL"),  # memory at half its speed
        (speeds(4.2e12, 300e12, 1300e12), "FAIL"),  # a power limit, or no tensor cores
        (speeds(4.2e12, 700e12, 3000e12), "FAIL"),  # faster than the product is
        (speeds(2.0e12, 300e12, 500e12, (SHARED,)), "SKIP"),
        (record("machine", status="crashed"), "FAIL"),
    ],
)
def test_own_speeds_are_held_against_the_data_sheet(tmp_path: Path, machine: RunRecord, verdict: str) -> None:
    tested = bench(tmp_path, GPU, Preflight(H200.name, H200.uuid, TorchAnswer()))
    tested.records.append(machine)
    assert [each.verdict for each in own_speeds(tested)] == [verdict]


def test_a_geforce_card_may_exceed_the_clock_of_its_data_sheet(tmp_path: Path) -> None:
    name = "NVIDIA GeForce RTX 4090"
    for half, verdict in ((165e12, "PASS"), (185e12, "PASS"), (220e12, "FAIL")):
        tested = bench(tmp_path, GPU, Preflight(name, H200.uuid, TorchAnswer()))
        tested.records.append(speeds(0.9e12, half, 300e12))
        assert [each.verdict for each in own_speeds(tested)] == [verdict], half


def decoded(read_bytes: float, joule_per_tok: float | None, *labels: Label) -> RunRecord:
    """A run on a GPU that decodes 100 tokens a second at batch 1, and whose energy phase lasts two seconds."""
    where = {"batch_size": 1, "prompt_tokens": 128, "new_tokens": 128}
    measured = [
        Measurement("decode_step_s", 1, "s", "lower", "samples", (0.009, 0.011), {**where, "decode_mode": "compiled"}),
        exact("decode_read_bytes", read_bytes, part="weights", **where),
        exact("decode_dequantize_bytes", 0.0, **where),
    ]
    if joule_per_tok is not None:
        counted = {**where, "source": "NVML", "idle": "included"}
        measured.append(Measurement("decode_j_per_tok", 1, "J/token", "lower", "exact", (joule_per_tok,), counted))
    grid = ThroughputWorkload((1,), (128,), 128, 1, 3, "compiled")
    made = record("performance", *measured, labels=labels, device="cuda", throughput=grid)
    return replace(made, outcome=replace(made.outcome, phases=(Phase("energy", 2.0),)))


@pytest.mark.parametrize(
    ("run", "verdicts"),
    [
        (decoded(0.8 * 40e9, 3.0), ["PASS", "PASS"]),
        (decoded(0.5 * 40e9, 3.0), ["FAIL", "PASS"]),  # half of what the memory can read
        (decoded(1.2 * 40e9, 3.0), ["FAIL", "PASS"]),  # more than it can
        (decoded(0.8 * 40e9, 3.6), ["PASS", "FAIL"]),  # a fifth more than its power says
        (decoded(0.8 * 40e9, None), ["PASS", "SKIP"]),
        (decoded(0.5 * 40e9, 3.6, Label("suspect", {"reason": "gpu_shared", "of": "run"})), ["SKIP", "SKIP"]),
    ],
)
def test_compiled_decoding_is_held_against_its_bound_and_its_energy_against_its_power(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: RunRecord, verdicts: list[str]
) -> None:
    """The memory reads 4 TB/s: 40 GB in the 10 ms of a step. The GPU takes 300 W where it only generates."""
    tested = bench(tmp_path, GPU)
    machine = speeds(4e12, 700e12, 1300e12)
    tested.records += [replace(machine, spec=changed(machine.spec, device="cuda")), run]
    tested._moments[run.spec.run_id, "energy"] = 100.0
    read = [(100.5, 90.0), (101.2, 290.0), (101.8, 310.0), (101.95, 90.0)]  # it begins, generates, ends
    monkeypatch.setattr(speed, "_power", lambda on_gpu: nullcontext(speed._Samples(read)))
    modes: list[str] = []

    def measure(bench: Bench, recipe: Any) -> tuple[RunRecord, ...]:
        modes.append(recipe["decode_mode"])
        return (run,)

    monkeypatch.setattr(Bench, "measure", measure)
    found = list(speed.decode(tested))
    assert modes == ["compiled"]
    assert [each.verdict for each in found] == verdicts, found


def test_own_speeds_of_a_processor_are_only_shown(tmp_path: Path) -> None:
    tested = bench(tmp_path)
    tested.records.append(speeds(20e9, 1e12, 2e12))
    (finding,) = own_speeds(tested)
    assert finding.verdict == "SKIP"
    assert "20 GB/s" in finding.reason


def test_the_small_model_can_be_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_small(tmp_path / "small")
    shapes = read_directory(tmp_path / "small").shapes
    assert sum(name.startswith("model.layers.") for name in shapes) == SMALL.layers * 9
    assert shapes["model.layers.1.mlp.down_proj.weight"] == (SMALL.hidden, SMALL.inner)
    tokenizer = Tokenizer.from_file(str(tmp_path / "small" / "tokenizer.json"))
    ids = tokenizer.encode("naïve 量").ids
    assert len(ids) == len("naïve 量".encode())
    assert max(ids) < SMALL.vocabulary
    assert tokenizer.decode(ids) == "naïve 量"


class Recorder:
    """An executor that keeps what it is given."""

    site = None

    def __init__(self) -> None:
        self.limits: list[RunLimits] = []

    def run(self, spec, inputs, on_phase, node) -> tuple[Outcome, bytes]:
        self.limits.append(spec.limits)
        return Outcome("ok"), b""


def test_no_run_gets_more_time_than_its_check_has_left() -> None:
    inner = Recorder()
    spec = run_spec("performance")
    Timed(inner, time.monotonic() + 100).run(spec, (), print, HERE)
    Timed(inner, time.monotonic() + 100).run(replace(spec, limits=RunLimits(5.0, 10**9)), (), print, HERE)
    late, _ = Timed(inner, time.monotonic() - 1).run(spec, (), print, HERE)
    assert inner.limits[0].time_s == pytest.approx(100, abs=5)
    assert inner.limits[1] == RunLimits(5.0, 10**9)
    assert late.status == "timeout"
    assert len(inner.limits) == 2


def well(bench: Bench) -> Iterator[CheckResult]:
    yield passed("well", "it is")


def fault(bench: Bench) -> Iterator[CheckResult]:
    yield passed("before the fault", "it was")
    raise ValueError(f"in {bench.folder}")


def wrong(bench: Bench) -> Iterator[CheckResult]:
    raise UsageError("not possible here")
    yield


def test_a_fault_in_a_check_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checks = (MachineCheck("first", 1, fault), MachineCheck("second", 1, wrong), MachineCheck("third", 1, well))
    monkeypatch.setattr(api, "CHECKS", checks)
    shown: list[CheckResult] = []
    checked = selfcheck(tmp_path / "out.zip", cache_root=tmp_path / "cache", on_finding=shown.append)
    assert [(each.about, each.verdict) for each in checked.findings] == [
        ("before the fault", "PASS"),
        ("first", "FAIL"),
        ("second", "FAIL"),
        ("well", "PASS"),
    ]
    assert list(checked.findings) == shown
    assert str(tmp_path) not in checked.findings[1].reason
    assert checked.findings[2].reason == "not possible here"
    assert not checked.passed
    assert not list((tmp_path / "cache").glob("*selfcheck*"))


def test_what_no_time_is_left_for_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(api, "CHECKS", (MachineCheck("first", 1, well),))
    checked = selfcheck(tmp_path / "out.zip", minutes=0, cache_root=tmp_path / "cache")
    assert [each.verdict for each in checked.findings] == ["SKIP"]
    assert checked.passed


def test_a_gpu_that_cannot_be_used_fails_once_and_is_reported(tmp_path: Path) -> None:
    checked = selfcheck(tmp_path / "out.zip", on_gpu=True, cache_root=tmp_path / "cache")
    failures = [each for each in checked.findings if each.verdict == "FAIL"]
    assert [each.about for each in failures] == ["machine", "torch on the GPU"]
    assert {each.verdict for each in checked.findings} == {"FAIL", "SKIP"}
    assert len(checked.findings) == len(api.CHECKS)
    with zipfile.ZipFile(checked.archive) as opened:
        assert "torch on the GPU" in opened.read("findings.txt").decode()


def test_an_existing_file_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.zip").write_text("mine")
    monkeypatch.setattr("sys.argv", ["qharness", "selfcheck", "--out", str(tmp_path / "mine.zip")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "name another file with --out" in capsys.readouterr().err
    assert (tmp_path / "mine.zip").read_text() == "mine"


def test_a_zip_that_cannot_be_written_is_said_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a file in a folder of yours"):
        selfcheck(tmp_path / "absent" / "out.zip", cache_root=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_said_at_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(api, "CHECKS", (MachineCheck("first", 1, well),))
    monkeypatch.setattr(archive, "write", full)
    with pytest.raises(StorageError, match="No space left"):
        selfcheck(tmp_path / "out.zip", cache_root=tmp_path / "cache")


def test_a_report_that_cannot_be_made_hides_no_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ValueError(f"no row in {tmp_path}")

    monkeypatch.setattr(archive, "write_report", broken)
    tested = bench(tmp_path)
    tested.records.append(record("machine"))
    with zipfile.ZipFile(archive.write(tmp_path / "out.zip", tested, [passed("it", "well")], "")) as opened:
        assert "PASS" in opened.read("findings.txt").decode()
        assert "ValueError: no row in" in (fault := opened.read("report-failed.txt").decode())
        assert str(tmp_path) not in fault


def test_a_zip_that_could_not_be_written_whole_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive, "_fill", full)
    with pytest.raises(OSError, match="No space"):
        archive.write(tmp_path / "out.zip", bench(tmp_path), [], "")
    assert not (tmp_path / "out.zip").exists()


def test_a_cache_that_is_no_folder_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--cache"):
        selfcheck(tmp_path / "out.zip", cache_root=tmp_path / "file")


@pytest.mark.parametrize(("checks", "code"), [((well,), 0), ((well, wrong), 1)])
def test_the_exit_code_says_whether_a_check_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checks, code: int
) -> None:
    monkeypatch.setattr(api, "CHECKS", tuple(MachineCheck(each.__name__, 1, each) for each in checks))
    out = tmp_path / "out.zip"
    monkeypatch.setattr("sys.argv", ["qharness", "selfcheck", "--out", str(out), "--cache", str(tmp_path / "cache")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code or 0) == code
    assert "PASS  well: it is" in capsys.readouterr().out
    with zipfile.ZipFile(out) as opened:
        assert {"findings.txt", "doctor.txt", "versions.txt", "nvidia-smi.txt"} <= set(opened.namelist())
        assert "torch==" in opened.read("versions.txt").decode()
        assert "methods" in opened.read("doctor.txt").decode()


SMI = f"""
==============NVSMI LOG==============

Timestamp                                 : Sun Nov 29 08:00:00 2026
Driver Version                            : 580.65.06
Attached GPUs                             : 1
GPU 00000000:1B:00.0
    Product Name                          : NVIDIA H200
    Serial Number                         : 1654922006536
    GPU UUID                              : {H200.uuid}
    GPU PDI                               : 0x5d4c3b2a19087f6e
    Board ID                              : 0x1b00
    Platform Info
        Chassis Serial Number             : 9182736455
        Host ID                           : 17
    PCI
        Bus Id                            : 00000000:1B:00.0
    Clocks
        SM                                : 1980 MHz
    Fabric
        ClusterUUID                       : 01234567-89ab-cdef-0123-456789abcdef
    Processes
        GPU instance ID                   : N/A
        Process ID                        : 4711
            Type                          : C
            Name                          : /home/alice/train
    Capabilities
        EGM                               : disabled
"""


def test_nvidia_smi_is_kept_without_what_identifies_a_card_or_its_user() -> None:
    kept = archive.without_identity(SMI)
    for secret in ("1654922006536", H200.uuid[4:], "0x5d4c", "0x1b00", "9182736455", "1B:00", "4711", "alice", "cdef"):
        assert secret not in kept
    for figure in ("NVIDIA H200", "580.65.06", "1980 MHz", "EGM"):
        assert figure in kept


def test_numbers_of_cards_are_left_out_of_everything_that_is_kept(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(H200, A100)
    tested = bench(tmp_path, GPU)
    text = f"CUDA error on {H200.uuid} beside {A100.uuid[4:]} in {tmp_path}/results"
    assert tested.anonymizer.message(text) == "CUDA error on $GPU beside $GPU in results"
    text_file = tmp_path / "out.zip"
    archive.write(text_file, tested, [passed("it", f"on {H200.uuid}")], f"doctor on {A100.uuid[:12]}")
    with zipfile.ZipFile(text_file) as opened:
        assert all("GPU-" not in opened.read(name).decode() for name in opened.namelist())


def test_spellings_that_mean_the_same_pass(monkeypatch: pytest.MonkeyPatch, nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(H200, A100)
    asked: list[str | None] = []

    def answer(spelling: str | None, within_s: float) -> identity._Visible:
        asked.append(spelling)
        return identity._Visible((H200.uuid[4:],), (H200.uuid[4:],))

    monkeypatch.setattr(identity, "_ask", answer)
    (finding,) = identity.spellings(bench(tmp_path, GPU))
    assert finding.verdict == "PASS"
    assert {None, H200.uuid, H200.uuid[:12], "0", "", "9999,0"} <= set(asked)


def test_a_spelling_that_means_another_gpu_fails_without_naming_the_card(
    monkeypatch: pytest.MonkeyPatch, nvml: NvmlStub, tmp_path: Path
) -> None:
    nvml.holds(H200, A100)

    def answer(spelling: str | None, within_s: float) -> identity._Visible:
        ours = (A100.uuid[4:],) if spelling == H200.uuid[:12] else (H200.uuid[4:],)
        return identity._Visible((H200.uuid[4:],), ours)

    monkeypatch.setattr(identity, "_ask", answer)
    (finding,) = identity.spellings(bench(tmp_path, GPU))
    assert (finding.verdict, finding.reason) == ("FAIL", "abbreviated UUID: CUDA sees GPU 0, qharness GPU 1")


def test_spellings_take_no_more_time_than_their_check_has(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(H200)
    late = bench(tmp_path, GPU)
    late.ends_s = time.monotonic()
    (finding,) = identity.spellings(late)
    assert (finding.verdict, finding.reason) == ("SKIP", "CUDA could not be asked: no time was left to ask")


def test_spellings_are_skipped_where_cuda_cannot_be_asked(nvml: NvmlStub, tmp_path: Path) -> None:
    nvml.holds(SLICED_H200)
    (finding,) = identity.spellings(bench(tmp_path, GPU))
    assert finding.verdict == "SKIP"
    assert "libcuda.so.1" in finding.reason


def test_recipes_are_smaller_on_a_processor_and_all_can_be_read(tmp_path: Path) -> None:
    from harness.recipe import Recipe

    for on_gpu in (False, True):
        made = [recipes.storage(on_gpu), recipes.cache(on_gpu), recipes.decode(on_gpu), recipes.quality(tmp_path)]
        made += [recipes.too_large(on_gpu, 4 * 10**9), recipes.after(on_gpu, 4 * 10**9), recipes.disturbed(on_gpu)]
        for recipe in made:
            Recipe.model_validate_json(json.dumps(recipe))
    for memory_bytes in (16 * 2**30, H200.total_bytes, 300 * 10**9):
        recipe = Recipe.model_validate_json(json.dumps(recipes.too_large(True, memory_bytes)))
        assert recipe.measure.throughput is not None
        (batch,), (prompt,) = recipe.measure.throughput.batch_sizes, recipe.measure.throughput.prompt_tokens
        hidden_bytes = batch * prompt * recipes.WHOLE.hidden * 2
        assert 3 * hidden_bytes > memory_bytes  # the states, and in float32 for their norm


def test_power_and_serial_numbers_are_read_from_the_driver(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(power=412_500, serial="1654922006536"), A100)
    with gpu() as first:
        assert first is not None
        assert (first.power_w(), first.serial()) == (412.5, "1654922006536")
    assert identifying() == {H200.uuid, A100.uuid, "1654922006536"}
    nvml.holds(SLICED_H200)
    with gpu() as part:
        assert part is not None
        assert part.power_w() is None
    assert identifying() == {H200.uuid, *(part.uuid for part in SLICED_H200.slices)}


def test_power_is_sampled_beside_what_runs(nvml: NvmlStub) -> None:
    nvml.holds(H200.answering(power=300_000))
    with speed._power(True) as samples:
        while not samples.read:
            time.sleep(0.01)
    assert {watt for _, watt in samples.read} == {300.0}
    with speed._power(False) as none:
        assert none.read == []
