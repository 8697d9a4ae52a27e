"""One run, said completely: what the planner makes, the worker reads and the store keeps.

Only the standard library is imported in this room.
"""

from harness.spec.identity import NAME, RUN_ID, DecodeMode, Kind, KvCache, Scalar, Stage, digest, file_sha256
from harness.spec.inputs import Input
from harness.spec.model import MAIN_ENGINE, MethodRef, ModelRef, labelled, model_identity
from harness.spec.run import Limits, Price, RunSpec, baseline_engine
from harness.spec.variant import Variant, labels
from harness.spec.work import (
    CalibrationRef,
    Cell,
    PerplexityWorkload,
    TaskWorkload,
    TextRef,
    ThroughputWorkload,
)

__all__ = [
    "MAIN_ENGINE",
    "NAME",
    "RUN_ID",
    "CalibrationRef",
    "Cell",
    "DecodeMode",
    "Input",
    "Kind",
    "KvCache",
    "Limits",
    "MethodRef",
    "ModelRef",
    "PerplexityWorkload",
    "Price",
    "RunSpec",
    "Scalar",
    "Stage",
    "TaskWorkload",
    "TextRef",
    "ThroughputWorkload",
    "Variant",
    "baseline_engine",
    "digest",
    "file_sha256",
    "labelled",
    "labels",
    "model_identity",
]
