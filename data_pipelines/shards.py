"""ArrayRecord files of records: names, atomic writing, reading with errors that name file and record."""

from __future__ import annotations

import collections
import os
import re
import resource
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from array_record.python import array_record_module

from ar_omni_jax.documents import TokenDocument
from ar_omni_jax.vocabulary import JointVocabulary
from data_pipelines.schema import SchemaError, decode_document

# One record a chunk, so that random access decompresses nothing else; one thread, so that equal records
# give byte-identical files.
WRITER_OPTIONS = "group_size:1,zstd:3,max_parallelism:1"
MOST_OPEN = 1024  # files of one pool
_RANDOM_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_NAME = re.compile(r"(?P<stem>.+)-(?P<index>\d{5,})-of-(?P<count>\d{5,})\.arrayrecord")


def shard_name(stem: str, index: int, count: int) -> str:
    """Name of one shard, such as train-00000-of-00004.arrayrecord.

    `stem` is the split, or inside a packed split's directory the group.
    """
    if not 0 <= index < count:
        raise ValueError(f"shard index {index} is not in [0, {count})")
    return f"{stem}-{index:05d}-of-{count:05d}.arrayrecord"


def found_shards(directory: str | os.PathLike, stem: str) -> dict[tuple[int, int], Path]:
    """{(index, count): path} of all shards of `stem` in `directory`, be they of one run or of several."""
    found = {}
    for path in sorted(Path(directory).glob(f"{stem}-*.arrayrecord")):
        match = _NAME.fullmatch(path.name)
        if match and match["stem"] == stem:
            found[int(match["index"]), int(match["count"])] = path
    return found


def shard_paths(directory: str | os.PathLike, stem: str) -> list[Path]:
    """All shards of `stem` in `directory`, in order; [] when none; SchemaError when the set is incomplete."""
    found = found_shards(directory, stem)
    counts = {count for _, count in found}
    if len(counts) > 1:
        raise SchemaError(f"{directory}: {stem} shards of several runs (of {sorted(counts)}); delete the old ones")
    missing = [i for count in counts for i in range(count) if (i, count) not in found]
    if missing:
        raise SchemaError(
            f"{directory}: {stem} lacks shards {missing[:8]} of {counts.pop()}; was the job stopped? run it again"
        )
    return [found[key] for key in sorted(found)]


class ShardWriter:
    """Writes one shard under a temporary name and renames it when closed without error.

    Use as a context manager; `write(record)` appends bytes. Nothing is left behind when the block raises. A
    killed process leaves only a hidden ".tmp" file, which `remove_stale` deletes. OSError when the disk is full, and
    when somebody deleted that file meanwhile: a second command that makes this shard takes it for a killed one's.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.records = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Equal process ids are usual where commands run in containers.
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._writer = array_record_module.ArrayRecordWriter(str(self._temporary), WRITER_OPTIONS)

    def write(self, record: bytes) -> None:
        try:
            self._writer.write(record)
        except RuntimeError as e:
            raise self._unwritable(e) from e
        self.records += 1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind, value, trace) -> None:
        try:
            self._writer.close()
            if kind is None:
                with open(self._temporary, "rb") as f:
                    os.fsync(f.fileno())
                os.replace(self._temporary, self.path)
        except FileNotFoundError as e:
            raise OSError(
                f"{self.path}: its unfinished file is gone; was a second command started for the same shards? Let one "
                "of them end, then run it again"
            ) from e
        except RuntimeError as e:
            if kind is None:
                raise self._unwritable(e) from e
        finally:
            self._temporary.unlink(missing_ok=True)

    def _unwritable(self, error: Exception) -> OSError:
        return OSError(f"{self.path}: cannot be written ({error}); is the disk full? make room and run it again")


def remove_stale(directory: str | os.PathLike, stem: str) -> None:
    """Deletes temporary files that killed writers of `stem` left behind; only with no writer alive."""
    for path in Path(directory).glob(f".{stem}-*.tmp"):
        path.unlink(missing_ok=True)


class ShardReader:
    """Random access to the records of one shard. SchemaError names the file, and the bad record if any."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_file():
            raise SchemaError(f"{path}: no such shard")
        try:
            self._reader = array_record_module.ArrayRecordReader(
                str(self.path), options=_RANDOM_OPTIONS, file_reader_buffer_size=32768
            )
        except RuntimeError as e:
            raise SchemaError(f"{path}: not a readable ArrayRecord file ({e}); copy or build it again") from e
        if not self._reader.ok():
            raise SchemaError(f"{path}: the shard is truncated or corrupt; copy or build it again")

    def __len__(self) -> int:
        return self._reader.num_records()

    def where(self, index: int) -> str:
        return f"{self.path}: record {index}"

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records at `indices`, in that order."""
        outside = [i for i in indices if not 0 <= i < len(self)]
        if outside:
            raise SchemaError(f"{self.path}: no record {outside[0]}, the shard has {len(self)}; build the data again")
        if not len(indices):
            return []
        try:
            return self._reader.read([int(i) for i in indices])
        except RuntimeError as e:
            if len(indices) == 1:
                raise SchemaError(
                    f"{self.where(indices[0])}: corrupt or truncated ({e}); copy or build the shard again"
                ) from e
        for i in indices:  # find the bad one and name it
            self.read([i])
        raise SchemaError(f"{self.path}: records {list(indices)[:8]} cannot be read; copy or build the shard again")

    def close(self) -> None:
        self._reader.close()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class ReaderPool:
    """Readers of shards by path, opened when asked for; beyond `limit` the one that was used longest ago is let go.

    Systems often allow a process a thousand open files, and a corpus may have a hundred thousand shards: a quarter of
    what is allowed is used. Several threads may use it: a reader is closed when the last of them has let it go.
    """

    def __init__(self, limit: int | None = None):
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        usual = MOST_OPEN if allowed == resource.RLIM_INFINITY else min(MOST_OPEN, max(8, allowed // 4))
        self._limit, self._lock = limit or usual, threading.Lock()
        self._readers: collections.OrderedDict[Path, ShardReader] = collections.OrderedDict()

    def __getitem__(self, path: Path) -> ShardReader:
        with self._lock:
            reader = self._readers.pop(path, None)
            self._readers[path] = reader = ShardReader(path) if reader is None else reader
            if len(self._readers) > self._limit:
                self._readers.popitem(last=False)
            return reader

    def close(self) -> None:
        """Closes all; nobody may be reading."""
        with self._lock:
            while self._readers:
                self._readers.popitem()[1].close()


def count_records(path: str | os.PathLike) -> int:
    """Records of one shard."""
    with ShardReader(path) as reader:
        return len(reader)


def read_records(path: str | os.PathLike, batch: int = 256) -> Iterator[tuple[int, bytes]]:
    """(index, record) of one shard in order; memory stays at `batch` records."""
    with ShardReader(path) as reader:
        for start in range(0, len(reader), batch):
            stop = min(start + batch, len(reader))
            yield from zip(range(start, stop), reader.read(range(start, stop)), strict=True)


def read_documents(
    directory: str | os.PathLike, split: str, vocabulary: JointVocabulary | None = None
) -> Iterator[TokenDocument]:
    """All documents of a split in shard order, checked. SchemaError when there are no shards of it."""
    paths = shard_paths(directory, split)
    if not paths:
        raise SchemaError(f"{directory}: no {split} shards; run build_shards with --split={split} first")
    for path in paths:
        for index, data in read_records(path):
            yield decode_document(data, vocabulary, f"{path}: record {index}")
