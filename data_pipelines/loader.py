"""Packed shards to global batches: mixture by weights, order a pure function of (seed, step), state one integer.

Batch `step` is places [step * B, (step + 1) * B) of the stream (`mixture`); a host reads those of its rows (by default
host p of n the p-th n-th of them), so any number of hosts and workers sees the same global batches, and resuming is a
matter of starting at `step`. Grain delivers the batches: read-ahead in threads, or worker processes. Records of a batch
are read and decoded together, which is what makes it fast.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from ar_omni_jax.documents import GROUPS
from ar_omni_jax.vocabulary import JointVocabulary
from data_pipelines import schema, shards
from data_pipelines.dataset_info import DatasetInfo, read_info
from data_pipelines.mixture import DEFAULT_MIXTURE, MixedOrder, OnePassOrder, training_order
from data_pipelines.schema import PackedExample, SchemaError
from data_pipelines.weights import segment_factors, weight_table

__all__ = ["Loader", "PackedSource", "assemble_batch", "make_loader", "weight_table"]

READ_AHEAD = 4  # batches


class PackedSource:
    """Rows of one split by (group, row). Opens shards when first read, in each process anew (it may be pickled)."""

    def __init__(self, directory: str | os.PathLike, split: str, info: DatasetInfo):
        if split not in info.splits:
            raise SchemaError(f"{directory}: no split {split!r}; it has {sorted(info.splits)}")
        self.directory, self.split, self.length = Path(directory), split, info.length
        self.vocabulary = info.vocabulary
        self.paths, self.ends, self.sizes = {}, {}, {}
        for group, rows in info.splits[split]["rows"].items():
            paths = shards.shard_paths(self.directory / split, group)
            counts = [shards.count_records(path) for path in paths]
            if sum(counts) != rows:
                raise SchemaError(
                    f"{self.directory / split}: {group} shards hold {sum(counts)} rows, dataset.json says "
                    f"{rows}; "
                    "was the copy complete? copy it again, or run pack_shards with --overwrite"
                )
            self.paths[group], self.ends[group], self.sizes[group] = paths, np.cumsum(counts), rows

    @functools.cached_property
    def _pool(self) -> shards.ReaderPool:
        return shards.ReaderPool()

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_pool"}

    def read(self, groups: np.ndarray, rows: np.ndarray) -> PackedExample:
        """Group indices and row indices [n] -> the rows, arrays [n, L], ids checked against the vocabulary."""
        records: list[bytes] = [b""] * len(rows)
        places = [""] * len(rows)
        for group in np.unique(groups).tolist():
            ends = self.ends[GROUPS[group]]
            slots = np.flatnonzero(groups == group)
            files = np.searchsorted(ends, rows[slots], side="right")
            local = rows[slots] - np.where(files > 0, ends[files - 1], 0)
            for file in np.unique(files).tolist():
                reader, here = self._pool[self.paths[GROUPS[group]][file]], files == file
                found = reader.read(local[here].tolist())
                for slot, at, data in zip(slots[here].tolist(), local[here].tolist(), found, strict=True):
                    records[slot], places[slot] = data, (reader, at)
        return schema.decode_packed_batch(
            records, self.length, self.vocabulary, lambda i: places[i][0].where(places[i][1])
        )

    def close(self) -> None:
        if "_pool" in self.__dict__:
            self.__dict__.pop("_pool").close()


def assemble_batch(rows: PackedExample, table: np.ndarray, pad: int) -> dict[str, np.ndarray]:
    """Rows [B, L] -> batch of [B, L] arrays.

    tokens int32; targets int32, the next token of the row, `pad` in the last column; target_class uint8, class
    of the target; loss_weights float32, `table` at the target's class; segment_ids and positions int32. Where
    the target is padding or another document's, class and weight are 0.
    """
    segments = rows.segment_ids
    targets = np.full_like(rows.tokens, pad)
    targets[:, :-1] = rows.tokens[:, 1:]
    valid = np.zeros(segments.shape, bool)
    valid[:, :-1] = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
    target_class = np.zeros(segments.shape, np.uint8)
    target_class[:, :-1] = rows.token_class[:, 1:]
    target_class *= valid
    return {
        "tokens": rows.tokens,
        "targets": targets,
        "loss_weights": table[target_class] * valid,
        "target_class": target_class,
        "segment_ids": segments,
        "positions": rows.positions,
    }


@dataclasses.dataclass(frozen=True)
class _BatchReader(grain.transforms.Map):
    """Step -> this host's rows of the global batch. The last batch of a single pass is filled up with empty rows."""

    source: PackedSource
    order: MixedOrder | OnePassOrder
    global_batch: int
    rows: np.ndarray  # of this host, ascending places in the global batch
    table: np.ndarray
    segment_weight: float = 1.0

    def map(self, step: int) -> dict[str, np.ndarray]:
        places = int(step) * self.global_batch + self.rows
        places = places[places < self._end()]
        pad = self.source.vocabulary.pad
        if places.size:
            rows = self.source.read(*self.order(places))
        missing = self.rows.size - places.size
        if missing:
            empty = _empty_rows(missing, self.source.length, pad)
            rows = _concatenate(rows, empty) if places.size else empty
        batch = assemble_batch(rows, self.table, pad)
        if self.segment_weight != 1:
            ins, res = (self.source.vocabulary.marker(name) for name in ("ins", "res"))
            factors = segment_factors(rows.tokens, rows.segment_ids, ins, res, self.segment_weight)
            batch["loss_weights"][:, :-1] *= factors[:, 1:]  # of targets, which stand one place earlier
        return batch

    def _end(self) -> int:
        # All rows of a stream that exhausts every group must come; it begins anew to fill its last batch.
        return self.order.length if isinstance(self.order, OnePassOrder) else 1 << 62


def _empty_rows(count: int, length: int, pad: int) -> PackedExample:
    zeros = np.zeros((count, length), np.int32)
    return PackedExample(np.full_like(zeros, pad), zeros, zeros.copy(), zeros.astype(np.uint8))


def _concatenate(a: PackedExample, b: PackedExample) -> PackedExample:
    names = [f.name for f in dataclasses.fields(a)]
    return PackedExample(*(np.concatenate([getattr(a, n), getattr(b, n)]) for n in names))


def _close(iterators: list[grain.DatasetIterator], source: PackedSource) -> None:
    while iterators:
        iterators.pop().close()
    source.close()


class Loader:
    """Iterator of batches (dicts of [B / processes, L] arrays, see `assemble_batch`).

    `step`: batches given so far, the whole state; set `start_step` to it to continue. `steps`: batches until the
    stop rule ends the stream. Use as a context manager, or call `close`, to end read-ahead and workers.
    """

    def __init__(self, reader: _BatchReader, steps: int, start_step: int, workers: int, threads: int):
        if not 0 <= start_step <= steps:
            raise ValueError(f"start_step {start_step} is not in [0, {steps}], the batches of this data set")
        self.steps, self.step = steps, start_step
        self.sizes = dict(reader.source.sizes)
        self.vocabulary: JointVocabulary = reader.source.vocabulary
        self.length: int = reader.source.length
        self._workers = workers
        self._iterators: list[grain.DatasetIterator] = []  # one, or none when at the end or closed
        if start_step < steps:
            options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=READ_AHEAD)
            batches = grain.MapDataset.range(start_step, steps).map(reader).to_iter_dataset(options)
            if workers:
                if not flags.FLAGS.is_parsed():
                    flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags
                batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
            self._iterators.append(iter(batches))
        # At exit too: Grain's threads and shared memory must go before the interpreter does.
        self._end = weakref.finalize(self, _close, self._iterators, reader.source)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._iterators or self.step >= self.steps:
            raise StopIteration
        batch = next(self._iterators[0])
        self.step += 1
        # Worker processes hand over shared memory; a copy lets it go at once, whatever the caller keeps.
        return {k: np.array(v) for k, v in batch.items()} if self._workers else batch

    def close(self) -> None:
        """Stops threads and workers and closes the files; more calls do nothing."""
        self._end()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _order(
    source: PackedSource, data: Mapping[str, Any], seed: int, global_batch: int, one_pass: bool
) -> tuple[MixedOrder | OnePassOrder, int]:
    """The stream of rows and its number of batches; errors when there is not one batch."""
    where = str(source.directory / source.split)
    if one_pass:
        order: MixedOrder | OnePassOrder = OnePassOrder(source.sizes)
        steps = -(-order.length // global_batch)
    else:
        mixture = dict(data.get("mixture") or DEFAULT_MIXTURE)
        stop = data.get("stop") or "first_exhausted"
        order = training_order(source.sizes, mixture, seed, stop, where)
        whole = order.length // global_batch
        steps = whole + (stop == "all_exhausted" and order.length % global_batch > 0)
    if steps == 0:
        raise SchemaError(
            f"{where}: {order.length} rows ({source.sizes}) do not make one batch of {global_batch}; lower batch_size, "
            "add data, or use data.stop=repeat"
        )
    return order, steps


def _place(global_batch: int, process_index: int, process_count: int) -> np.ndarray:
    """The rows of the p-th of n hosts that share a batch in order."""
    if global_batch < 1 or global_batch % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"global batch {global_batch} cannot be divided over {process_count} hosts (this is {process_index}); "
            "make batch_size a multiple of the number of hosts"
        )
    share = global_batch // process_count
    return np.arange(share) + process_index * share


def make_loader(
    data: Mapping[str, Any],
    *,
    split: str,
    global_batch: int,
    seed: int,
    start_step: int = 0,
    vocabulary_fingerprint: str | None = None,
    process_index: int = 0,
    process_count: int = 1,
    rows: Sequence[int] | None = None,
    workers: int | None = None,
    one_pass: bool | None = None,
    threads: int = 2,
) -> Loader:
    """The loader of one split.

    Args:
      data: path, and optionally length (checked), mixture (weight by group, default 0.5 : 1 : 2), stop (of
        `mixture.STOPS`, default first_exhausted), response_text_weight (2), response_image_weight (1),
        response_only (False), segment_weight (1), workers (0).
      one_pass: every row once in a fixed order, all groups, the last batch filled with rows of weight 0. Default:
        for every split but "train". Otherwise the shuffled mixture, in whole batches.
      vocabulary_fingerprint: of the model; VocabularyError naming both when the data's is another.
      process_index, process_count: this host's place; it gets global_batch / process_count rows of every batch.
      rows: instead of that place, this host's rows of [0, global_batch), ascending: those that its devices hold
        (`parallel.rows.rows_here`). Hosts may hold the same ones.
      workers: processes that read; 0 reads in `threads` threads of this one. Neither changes the order.
    Raises SchemaError, VocabularyError or MixtureError with what to do.
    """
    mine = _place(global_batch, process_index, process_count) if rows is None else np.asarray(rows, np.int64)
    info = read_info(data["path"], "packed", vocabulary_fingerprint)
    if data.get("length") not in (None, info.length):
        raise SchemaError(
            f"{data['path']} has rows of {info.length} tokens, the config says {data['length']}; set "
            f"data.length={info.length} or run pack_shards --length={data['length']}"
        )
    source = PackedSource(data["path"], split, info)
    passes = one_pass if one_pass is not None else split != "train"
    order, steps = _order(source, data, seed, global_batch, passes)
    table = weight_table(
        data.get("response_text_weight", 2.0),
        data.get("response_only", False),
        data.get("response_image_weight", 1.0),
    )
    reader = _BatchReader(source, order, global_batch, mine, table, data.get("segment_weight", 1.0))
    return Loader(reader, steps, start_step, data.get("workers", 0) if workers is None else workers, threads)
