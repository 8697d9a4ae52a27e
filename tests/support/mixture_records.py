"""Records of quality as a mixture of experts leaves them."""

from __future__ import annotations

from dataclasses import replace

from harness.core.record import Measurement, RunRecord

OVERLAPS, ROUTER_KLS = (0.9, 0.8, 0.95, 0.7, 0.99, 0.6), (0.01, 0.04, 0.02, 0.03, 0.005, 0.1)
"""Of two layers in each of three windows, which hold 100, 200 and 300 tokens."""
EXPERT_TOKENS = (0.0, 255.0, 256.0, 900.0, 0.0, 1.0, 7.0, 4000.0)


def of_a_mixture(run: RunRecord) -> RunRecord:
    """As if the model had two layers of four experts: what its routers and its calibration leave in a record."""
    windows, blocks = 3, ("layers.0.mlp", "layers.1.mlp")
    pairs = [(window, block) for window in range(windows) for block in blocks]
    names = {
        "item_ids": tuple(f"{window}:{block}" for window, block in pairs),
        "cluster_ids": tuple(str(window) for window, _ in pairs),
        "weights": tuple(float(100 * (1 + window)) for window, _ in pairs),
    }
    (nll,) = [m for m in run.outcome.measurements if m.metric == "nll"]
    more = (
        Measurement("router_overlap", 1, "fraction", "higher", "paired", OVERLAPS, nll.protocol, **names),
        Measurement("router_kl", 1, "nat", "lower", "paired", ROUTER_KLS, nll.protocol, **names),
        Measurement(
            *("expert_tokens", 1, "token", "neither", "exact", EXPERT_TOKENS, {"starved": 256}),
            item_ids=tuple(f"{block}: {number}" for block in blocks for number in range(4)),
        ),
    )
    return replace(run, outcome=replace(run.outcome, measurements=(*run.outcome.measurements, *more)))
