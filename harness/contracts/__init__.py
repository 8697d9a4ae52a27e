"""What the rooms of the house hand to one another: frozen data and protocols, no behaviour.

torch is named here for type checkers alone; importing this room imports none of it.
"""

from harness.contracts.engines import (
    Decoder,
    Engine,
    HeadWeights,
    KernelFamily,
    LoadedModel,
    LoadRequest,
    Role,
    Stop,
    StoredTensor,
)
from harness.contracts.methods import (
    Beside,
    CalibrationSet,
    Method,
    MethodParams,
    Needs,
    QuantizeJob,
    Setting,
)
from harness.contracts.metrics import (
    Chunk,
    Instrument,
    Metric,
    MetricKind,
    Observer,
    Prediction,
    Windows,
)

__all__ = [
    "Beside",
    "CalibrationSet",
    "Chunk",
    "Decoder",
    "Engine",
    "HeadWeights",
    "Instrument",
    "KernelFamily",
    "LoadRequest",
    "LoadedModel",
    "Method",
    "MethodParams",
    "Metric",
    "MetricKind",
    "Needs",
    "Observer",
    "Prediction",
    "QuantizeJob",
    "Role",
    "Setting",
    "Stop",
    "StoredTensor",
    "Windows",
]
