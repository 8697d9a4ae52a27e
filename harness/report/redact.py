"""Records without what their owner may not want to publish, for ``--redact``: figures, versions and machine class stay.

Only what is shown is made from these records: their ids are not those of the runs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.core.label import Fact, Label
from harness.core.model import MethodRef, ModelRef
from harness.core.parts import with_parts
from harness.core.record import Damaged, Failure, Fingerprint, Measurement, RunRecord
from harness.core.variant import Variant
from harness.core.workload import MetricRef, TextRef
from harness.tasks.answers import PROMPT, TARGET, TEXT
from harness.text.sources import TEXTS

LEFT_OUT = (
    "Redacted: paths and every parameter that looks like one; messages and log tails of failed runs; free text from "
    "libraries, methods and the machine; questions and what models answered; all details of the machine but its "
    "processors, memory, GPU and driver; names of local models and texts, which are numbered instead. Not redacted: "
    "names of recipes and tasks, and of models and data sets on a hub; and the hashes of models and texts, by which "
    "figures are comparable: who has the same file finds it again."
)
"""What a redacted report does not show, in its own words."""
HARDWARE = (
    "cpu",
    "cores",
    "memory_bytes",
    "gpu",
    "gpu_memory_bytes",
    "gpu_capability",
    "gpu_power_limit_w",
    "gpu_mig_profile",
    "driver",
)
"""The details that describe a class of machines; others, such as a kernel's build, may describe one machine."""
FREE = ("reason", "remark", "text", "value")
"""The arguments of labels and facts that hold free text."""
CLOSED = frozenset({"suspect", "implausible_baseline"})
"""The codes whose reason is itself a code."""
HIDDEN = "(redacted)"
_VERSION = re.compile(r"[\w.+!-]{1,40}")
_PATH = re.compile(r"[/\\]|^[~$]")


@dataclass
class Redaction:
    """Redacts records. Equal names get equal numbers in all records that one redaction sees."""

    _numbers: dict[tuple[str, str], str] = field(default_factory=dict)

    def records(self, records: Sequence[RunRecord]) -> tuple[RunRecord, ...]:
        return tuple(with_parts(record, self._part) for record in records)

    def damaged(self, damaged: Damaged) -> Damaged:
        """The run and the attempt remain."""
        return replace(damaged, path=Path(*damaged.path.parts[-2:]), reason=HIDDEN, url="")

    def name(self, what: str, name: str) -> str:
        """``what-1`` and so on, the same for the same name."""
        count = sum(kind == what for kind, _ in self._numbers)
        return self._numbers.setdefault((what, name), f"{what}-{count + 1}")

    def _part(self, value: Any) -> Any:
        """A part of a record without its details; None for a part without any."""
        if isinstance(value, ModelRef):
            return self._model(value)
        if isinstance(value, MethodRef):
            return self._method(value)
        if isinstance(value, Variant):
            parts = {name: with_parts(getattr(value, name), self._part) for name in ("model", "method", "calibration")}
            return replace(value, engine_params=self._params(value.engine_params), **parts)
        if isinstance(value, MetricRef):
            return replace(value, params=self._params(value.params))
        if isinstance(value, TextRef):
            return value if value.path is None or value.id in TEXTS else self._text(value)
        if isinstance(value, Failure):
            return Failure(value.phase, value.type, f"{value.type} {HIDDEN}")
        if isinstance(value, Fingerprint):
            hardware = {name: value.hardware[name] for name in HARDWARE if name in value.hardware}
            software = {name: v if _VERSION.fullmatch(v) else HIDDEN for name, v in value.software.items()}
            return Fingerprint(hardware, software, value.state)
        if isinstance(value, Measurement):
            hidden = (HIDDEN,) * len(value.values) if value.metric in (TEXT, PROMPT, TARGET) else value.item_ids
            text = value.protocol.get("text")
            named = {"text": self._numbers.get(("text", text), text)} if isinstance(text, str) else {}
            protocol = {**value.protocol, **named}
            return replace(value, item_ids=hidden, protocol=protocol)  # its values, which may be many, hide nothing
        if isinstance(value, Label | Fact):
            return replace(value, arguments={name: self._argument(value, name) for name in value.arguments})
        return None

    def _model(self, model: ModelRef) -> ModelRef:
        scheme, _, rest = model.id.partition(":")
        public = model.on_hub or scheme == "package" or (scheme == "synthetic" and not rest.endswith(".json"))
        if public:
            return replace(model, path="")
        name = self.name("model", model.label)
        return replace(model, id=name, label=name, path="")

    def _method(self, method: MethodRef) -> MethodRef:
        if method.published is not None:
            published = self._model(method.published)
            label = method.label.replace(method.published.label, published.label)
            return replace(method, label=label, params={**method.params, "id": published.id}, published=published)
        if method.server is not None:  # where it is helps nobody who cannot reach it
            method = replace(method, server=None)
        params, label = self._params(method.params), method.label
        for name, value in method.params.items():
            label = label.replace(f"{name}={value}", f"{name}={params[name]}")
        return replace(method, label=label, params=params)

    def _params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: self.name("path", value) if isinstance(value, str) and _PATH.search(value) else value
            for name, value in params.items()
        }

    def _text(self, text: TextRef) -> TextRef:
        suffix = ".jsonl" if str(text.path).endswith((".jsonl", ".json")) else ""  # how its rows are read
        name = self.name("text", text.id)
        return replace(text, id=name, path=name + suffix)

    def _argument(self, finding: Label | Fact, name: str) -> Any:
        value = finding.arguments[name]
        if not isinstance(value, str) or (name == "reason" and finding.code in CLOSED):
            return value
        if finding.code == "calibration" and name == "text":
            return self._numbers.get(("text", value), value)
        return HIDDEN if name in FREE else value
