"""A folder of packed shards while splits are added to it: its dataset.json says what is there, whole."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data_pipelines import shards
from data_pipelines.dataset_info import FILE_NAME, DatasetInfo, read_info, write_info
from data_pipelines.schema import SchemaError
from data_pipelines.split_packer import state_of


class PackedFolder:
    """`path` with what is described there, but for the splits that are to be `replaced`.

    Raises SchemaError or VocabularyError when the others were made otherwise than `wanted`.
    """

    def __init__(self, path: Path, wanted: DatasetInfo, replaced: Collection[str] = ()):
        self.path, self.info = path, wanted
        if (path / FILE_NAME).exists():
            self.info = _existing(path, wanted, replaced)

    def holds(self, split: str, origin: Mapping[str, Any]) -> bool:
        """Whether the split is there, whole; SchemaError when it was packed from other documents than `origin`."""
        entry = self.info.splits.get(split)
        if entry is None:
            return False
        if any(entry["origin"].get(key, value) != value for key, value in origin.items()):
            raise SchemaError(
                f"{self.path / split} was packed from other documents; run with --overwrite or give another --output"
            )
        try:
            counts = {
                group: sum(shards.count_records(path) for path in shards.shard_paths(self.path / split, group))
                for group in entry["rows"]
            }
        except SchemaError:  # a shard is gone or damaged
            return False
        return counts == entry["rows"]

    def add(self, split: str, entry: dict[str, Any]) -> None:
        """Describes a split whose shards are whole."""
        self.info.splits[split] = entry
        write_info(self.path, self.info)


def _existing(path: Path, wanted: DatasetInfo, replaced: Collection[str]) -> DatasetInfo:
    """The description in `path` without the splits to be replaced; SchemaError if the rest is of another make."""
    info = read_info(path, "packed")
    kept = {split: entry for split, entry in info.splits.items() if split not in replaced}
    if not kept:
        return wanted
    wanted.vocabulary.require_same(info.vocabulary.fingerprint, str(path))
    for name in ("settings", "tokenizers", "length"):
        if getattr(info, name) != getattr(wanted, name):
            raise SchemaError(
                f"{path}: {', '.join(kept)} packed with {name} {getattr(info, name)}, not {getattr(wanted, name)}; "
                "replace all splits with --overwrite or give another --output"
            )
    return dataclasses.replace(info, splits=kept)


def forget(path: Path, splits: Collection[str]) -> None:
    """Takes splits out of dataset.json: nothing that is being replaced may look finished."""
    if not (path / FILE_NAME).exists():
        return
    info = read_info(path, "packed")
    info.splits = {split: entry for split, entry in info.splits.items() if split not in splits}
    if info.splits:
        write_info(path, info)
    else:
        (path / FILE_NAME).unlink()


def discard(path: Path, split: str) -> None:
    """Deletes the shards of a split and what a stopped job has left."""
    shutil.rmtree(state_of(path, split), ignore_errors=True)
    shutil.rmtree(path / split, ignore_errors=True)
