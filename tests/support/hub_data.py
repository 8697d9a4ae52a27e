"""Data sets of a hub as they lie in a user's cache once they were fetched."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def keep_data_set(cache: Path, hub_id: str, split: str, rows: Sequence[str]) -> None:
    """Writes a data set with one field, ``text``, into a folder for ``HF_DATASETS_CACHE``."""
    import pyarrow

    name = hub_id.split("/")[-1]
    folder = cache / hub_id.replace("/", "___") / "default" / "0.0.0" / ("a" * 40)
    folder.mkdir(parents=True)
    table = pyarrow.table({"text": list(rows)})
    with pyarrow.ipc.new_stream(folder / f"{name}-{split}.arrow", table.schema) as file:
        file.write_table(table)
    info = {
        "builder_name": name,
        "dataset_name": name,
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": {split: {"name": split, "num_bytes": table.nbytes, "num_examples": len(rows), "dataset_name": name}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
