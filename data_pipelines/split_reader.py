"""The documents of one split of token shards, in one folder or in several that are read as one, by number."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import TokenDocument
from ar_omni_jax.vocabulary import JointVocabulary
from data_pipelines import schema, shards
from data_pipelines.dataset_info import FILE_NAME, Counts, DatasetInfo, merge_infos, read_info
from data_pipelines.schema import SchemaError

READ_BATCH = 512
_SAMPLED = 1 << 16  # bytes of a shard's beginning, and of its end, that tell it from another

Inputs = Sequence[tuple[Path, DatasetInfo]]  # folders of token shards, each with its dataset.json


def open_inputs(source: str | os.PathLike | Sequence[str | os.PathLike]) -> tuple[Inputs, DatasetInfo]:
    """Folders that build_shards wrote, and one description of them all; splits of one name are one.

    Raises SchemaError or VocabularyError when one is missing, comes twice, or was made otherwise than the first.
    """
    folders = [Path(source)] if isinstance(source, str | os.PathLike) else [Path(one) for one in source]
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise SchemaError(f"{folder} is given twice; its documents would come twice")
    inputs = [(folder, read_info(folder, "documents")) for folder in folders]
    return inputs, merge_infos([info for _, info in inputs], [str(folder) for folder in folders])


class SplitReader:
    """Random access to the documents of a split, those of the first input first. `len` documents, `counts` of them.

    digest: changes with the shards: of their names, sizes, beginnings and ends.
    """

    def __init__(self, inputs: Inputs, split: str):
        self.paths: list[Path] = []
        self.counts = Counts()
        sizes: list[int] = []
        for folder, info in inputs:
            if split not in info.splits:
                continue
            counts, paths = Counts.from_dict(info.splits[split]), shards.shard_paths(folder, split)
            records = [shards.count_records(path) for path in paths]
            if sum(records) != counts.documents:
                raise SchemaError(
                    f"{folder}: {split} shards hold {sum(records)} documents, {FILE_NAME} says {counts.documents}; "
                    "did build_shards finish? run it again"
                )
            self.paths += paths
            sizes += records
            self.counts = self.counts.merge(counts)
        if not self.counts.documents:
            folders = ", ".join(str(folder) for folder, _ in inputs)
            there = sorted({name for _, info in inputs for name in info.splits})
            if split in there:
                raise SchemaError(f"{folders}: {split} has no documents, every record was left out; name other splits")
            raise SchemaError(f"{folders}: no {split} shards; it has {there}; run build_shards --split={split}")
        self._ends = np.cumsum(sizes)
        self._pool = shards.ReaderPool()
        self.digest = _digest(self.paths)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def records(self, indices: Sequence[int]) -> Iterator[tuple[bytes, str]]:
        """(record, its place) at each global index, in the given order."""
        indices = np.asarray(indices, np.int64)
        files = np.searchsorted(self._ends, indices, side="right")
        local = indices - np.where(files > 0, self._ends[files - 1], 0)
        found: dict[int, tuple[bytes, str]] = {}
        for file in np.unique(files).tolist():
            reader, slots = self._pool[self.paths[file]], np.flatnonzero(files == file)
            for slot, data in zip(slots.tolist(), reader.read(local[slots].tolist()), strict=True):
                found[slot] = data, reader.where(int(local[slot]))
        return (found[slot] for slot in range(len(indices)))

    def documents(self, indices: Sequence[int], vocabulary: JointVocabulary) -> Iterator[TokenDocument]:
        """Checked documents at the global indices, in order, READ_BATCH in memory at a time."""
        for start in range(0, len(indices), READ_BATCH):
            for data, where in self.records(indices[start : start + READ_BATCH]):
                yield schema.decode_document(data, vocabulary, where)

    def close(self) -> None:
        self._pool.close()


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = os.pread(file.fileno(), _SAMPLED, 0) + os.pread(file.fileno(), _SAMPLED, max(0, size - _SAMPLED))
        digest.update(f"{path.name}\0{size}\0".encode() + ends)
    return digest.hexdigest()[:16]


def refuse_overlong(reader: SplitReader, length: int) -> None:
    """SchemaError that counts the documents longer than `length` and names the first few."""
    if 0 < reader.counts.longest <= length:
        return
    count, longest, names = 0, 0, []
    for start in range(0, len(reader), READ_BATCH):
        for data, where in reader.records(range(start, min(start + READ_BATCH, len(reader)))):
            tokens = schema.record_length(data, where)
            longest = max(longest, tokens)
            if tokens > length:
                count += 1
                if len(names) < 8:
                    names.append(f"{schema.decode_document(data, where=where).id} ({tokens} tokens)")
    if count:
        raise SchemaError(
            f"{count} of {len(reader)} documents are longer than a row of {length}: {', '.join(names)}"
            f"{', ...' if count > len(names) else ''}; use --length={longest}, --overlong=split to cut them, or "
            "--overlong=drop_counted to leave them out (listed in dataset.json)"
        )
