"""Keeps transformers from importing installed packages that no run uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping

UNUSED: Mapping[str, str] = {"is_hqq_available": "hqq", "is_sklearn_available": "scikit-learn"}
"""Transformers' checks for optional packages, for a quantized cache and for assisted decoding.

If they succeed, the imports cost about 4 s and 100 MB in every worker, whose load time is measured.
"""


def skip_unused_imports(needed: Collection[str]) -> None:
    """Makes these checks fail, except for packages that the run itself needs."""
    import transformers.utils as utils
    from transformers.utils import import_utils

    for check, package in UNUSED.items():
        if package not in needed:
            for module in (utils, import_utils):
                if hasattr(module, check):
                    setattr(module, check, lambda: False)
