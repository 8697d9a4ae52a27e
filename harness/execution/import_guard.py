"""Keeps transformers from importing what no run uses: it imports whatever it finds installed."""

from __future__ import annotations

from collections.abc import Collection, Mapping

UNUSED: Mapping[str, str] = {"is_hqq_available": "hqq", "is_sklearn_available": "scikit-learn"}
"""The questions that transformers asks at its import, for a quantized cache and for assisted decoding.

Answered with yes they cost about 4 s and 100 MB in every worker, whose load is what is measured.
"""


def spare_imports(needed: Collection[str]) -> None:
    """Answers them with no, but for packages that the run itself needs."""
    import transformers.utils as utils
    from transformers.utils import import_utils

    for question, package in UNUSED.items():
        if package not in needed:
            for module in (utils, import_utils):
                if hasattr(module, question):
                    setattr(module, question, lambda: False)
