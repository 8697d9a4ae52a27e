"""Where recipes run: the places that the user names, opened on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.api.locations import open_results
from harness.execution.local import LocalSite, local_site
from harness.storage.anonymizer import Anonymizer
from harness.storage.store import Store


@dataclass(frozen=True)
class Workplace:
    """Where records and artifacts are kept, each in a folder or at a URL, and the caller's interpreters, by stack.

    Artifacts are kept in the user's cache folder if ``cache`` is None, and also there if it is a URL.
    """

    results: str | Path = "results"
    cache: str | Path | None = None
    pythons: Mapping[str, Path] | None = None

    def site(self, device: str = "auto") -> LocalSite:
        """This machine for a recipe's device."""
        return local_site(self.cache, self.pythons, device)

    def reachable_site(self, device: str) -> LocalSite:
        """The same. Raises ResultsError if artifacts are shared at a URL where nothing can be read."""
        site = self.site(device)
        if site.artifacts.shared is not None:
            site.artifacts.shared.refuse_unreachable()
        return site

    def store(self, site: LocalSite, anonymizer: Anonymizer | None = None) -> Store:
        """The results, to be written or read."""
        return open_results(self.results, site.artifacts.root, anonymizer)


USUAL_PLACE = Workplace()
"""Results in the working folder, and the user's cache."""
