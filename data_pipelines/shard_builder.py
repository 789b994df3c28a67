"""One token shard: a range of a source's records, tokenized and written as one file, with its account beside it.

The account, DIR/.build/STEM.json, is written after the shard; both there means that the shard is finished. It
holds what `dataset.json` is summed from, and every skipped record with its reason.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax import templates
from ar_omni_jax.documents import Document, DocumentError, TokenDocument
from ar_omni_jax.files import replace_file
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import VocabularyError
from data_pipelines.augment import Augmenter
from data_pipelines.dataset_info import Counts
from data_pipelines.media import MediaEncoder, MediaError, codecs_of
from data_pipelines.schema import encode_document
from data_pipelines.shards import ShardWriter, found_shards, shard_name
from data_pipelines.sources.base import Record, Source
from data_pipelines.stage_clock import StageClock
from data_pipelines.token_documents import check_tokens, require_layout

ACCOUNTS = ".build"


class BuildError(ValueError):
    """A build that cannot go on; the message names the record, or what differs, and what to do."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A record that was left out. kind: short, for counting; reason: the whole message."""

    index: int
    where: str
    id: str
    kind: str
    reason: str


@dataclasses.dataclass
class Account:
    """What became of one shard's records: read = counts.documents + len(skipped)."""

    read: int = 0
    counts: Counts = dataclasses.field(default_factory=Counts)
    skipped: list[Skipped] = dataclasses.field(default_factory=list)

    def to_json(self, build: Mapping[str, Any]) -> bytes:
        data = {"build": build, "read": self.read, "counts": self.counts.to_dict()}
        data["skipped"] = [dataclasses.asdict(s) for s in self.skipped]
        return (json.dumps(data, indent=1, sort_keys=True) + "\n").encode()


@dataclasses.dataclass(frozen=True)
class Job:
    """All that decides a shard's bytes, and where it goes.

    build: the plain description of that, compared with what finished shards were made from. duplicates: index ->
    index of the first record with that id. augmenter: alters the user's speech; its record is in `build`.
    Raises VocabularyError when the source is tokenized in another layout.
    """

    source: Source
    tokenizers: Tokenizers
    template: str
    directory: Path
    split: str
    per_shard: int
    build: Mapping[str, Any]
    duplicates: Mapping[int, int]
    augmenter: Augmenter | None = None

    def __post_init__(self):
        require_layout(self.source, self.tokenizers.vocabulary)

    @property
    def shards(self) -> int:
        return -(-len(self.source) // self.per_shard)

    def shard(self, index: int) -> Path:
        return self.directory / shard_name(self.split, index, self.shards)

    def account(self, index: int) -> Path:
        return self.directory / ACCOUNTS / f"{self.shard(index).stem}.json"


def read_account(job: Job, index: int) -> Account | None:
    """The account of a finished shard, None when it is not finished.

    Raises BuildError, naming what differs, when the shard was made from something else.
    """
    path = job.account(index)
    if not path.is_file() or not job.shard(index).is_file():
        return None
    build, account = _read(path)
    if differing := _differing(build, job.build):
        raise _other_build(job, differing)
    return account


def refuse_other_numbers(job: Job) -> None:
    """BuildError when there are shards of this split in another number, which this build would leave.

    More or fewer records, or records cut otherwise, make another number: those shards would stay beside the new ones.
    """
    for (_, count), path in found_shards(job.directory, job.split).items():
        if count != job.shards:
            account = job.directory / ACCOUNTS / f"{path.stem}.json"
            differing = _differing(_read(account)[0], job.build) if account.is_file() else ""
            numbers = f"there were {count} and are {job.shards}"
            raise _other_build(job, ", ".join(filter(None, (numbers, differing))))


def _read(path: Path) -> tuple[dict[str, Any], Account]:
    """What a shard was made from, and its account."""
    try:
        data = json.loads(path.read_text())
        build, skipped = data["build"], [Skipped(**s) for s in data["skipped"]]
        return dict(build), Account(data["read"], Counts.from_dict(data["counts"]), skipped)
    except (ValueError, KeyError, TypeError) as e:
        raise BuildError(f"{path} is damaged ({e!r}); delete it, its shard is then made again") from e


def _differing(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = sorted(key for key in {*was, *now} if was.get(key) != now.get(key))
    return ", ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in keys)


def _other_build(job: Job, differing: str) -> BuildError:
    return BuildError(
        f"{job.directory} has {job.split} shards of another build: {differing}; use another --output, or delete "
        f"the {job.split} shards and {job.directory / ACCOUNTS}/{job.split}-*"
    )


def build_shard(
    job: Job,
    index: int,
    pool: concurrent.futures.Executor,
    on_skip: Callable[[Skipped], None],
    on_window: Callable[[int, int, int], None],
    clock: StageClock,
) -> Account:
    """Makes shard `index` and its account.

    on_skip: called for each record to be left out; raises to stop the build. on_window: called now and then with
    the records, tokens and media since the last call. clock: counts the seconds of each stage.
    """
    start = index * job.per_shard
    stop = min(start + job.per_shard, len(job.source))
    account = Account()
    with ShardWriter(job.shard(index)) as writer:
        for window, media in _windows(job, start, stop, pool, clock):
            before = account.counts.tokens
            for result in window:
                if isinstance(result, Skipped):
                    on_skip(result)
                    account.skipped.append(result)
                else:
                    with clock.stage("write"):
                        writer.write(encode_document(result, job.tokenizers.vocabulary))
                    account.counts.add(result)
            account.read += len(window)
            on_window(len(window), account.counts.tokens - before, media)
    if account.read != stop - start:
        raise BuildError(
            f"{job.shard(index).name}: the source gave {account.read} records of [{start}, {stop}); "
            "did the input change during the build? run it again"
        )
    replace_file(job.account(index), account.to_json(job.build))
    return account


def _windows(
    job: Job, start: int, stop: int, pool: concurrent.futures.Executor, clock: StageClock
) -> Iterator[tuple[list[TokenDocument | Skipped], int]]:
    """The records of [start, stop), each as tokens or the reason why it has none, and their media, window by window."""
    waiting: list[Record] = []

    def documents():
        for record in clock.each("read", job.source.read(start, stop)):
            waiting.append(record)
            usable = isinstance(record.document, Document) and record.index not in job.duplicates
            yield record.document if usable else None

    for window in MediaEncoder(codecs_of(job.tokenizers), pool, job.augmenter, clock).windows(documents()):
        records, waiting[: len(window)] = waiting[: len(window)], []
        with clock.stage("tokens"):
            results = [_tokens(job, record, codes) for record, codes in zip(records, window, strict=True)]
        yield results, sum(map(len, window))


def _tokens(job: Job, record: Record, codes: list[np.ndarray | MediaError]) -> TokenDocument | Skipped:
    def skipped(kind: str, reason: str) -> Skipped:
        return Skipped(record.index, record.where, record.id, kind, reason)

    if record.document is None:
        return skipped("malformed record", record.error)
    if record.index in job.duplicates:
        first = job.duplicates[record.index] + 1
        return skipped("duplicate id", f"{record.where}: id {record.id!r} is already that of record {first}")
    if record.id.encode(errors="replace").decode() != record.id:
        return skipped("malformed record", f"{record.where}: id {record.id!r} has a lone surrogate; rename it")
    for code in codes:
        if isinstance(code, MediaError):
            return skipped(code.kind, f"{record.where}: document {record.id!r}: {code.message}")
    tokenizers = job.tokenizers
    try:
        if isinstance(record.document, TokenDocument):
            check_tokens(record.document, tokenizers.vocabulary)
            return record.document
        return templates.tokenize(record.document, job.template, tokenizers.vocabulary, tokenizers.text.encode, codes)
    except DocumentError as e:
        tokenized = isinstance(record.document, TokenDocument)
        kind = "media are not whole" if tokenized else "turns do not fit the task"
        return skipped(kind, f"{record.where}: {e}")
    except (TokenizerError, VocabularyError) as e:
        return skipped("not in the vocabulary", f"{record.where}: document {record.id!r}: {e}")
