"""Raw documents to token shards: reads a source, encodes images, speech and text, writes ArrayRecord files.

    python -m data_pipelines.build_shards --source=manifest --input=TOY/train.jsonl --output=SHARDS --split=train

The source's records are cut into ranges of --records_per_shard; each range is one shard and depends on nothing
else, so any number of commands (--worker_index of --worker_count, as an array job starts them) on any number of
machines that share a disk makes the same files, and one that was killed at any time goes on with the first
unfinished shard when it is run again. Whoever finishes the last shard writes dataset.json; the same directory may
hold several splits. Each command decodes media in --workers processes of its own, which change no byte.

A record that cannot be used stops the build (--on_error=fail), or is left out and listed (--on_error=skip) up to
--error_budget of all records: dataset.json counts and names them, .build/*.json gives every full reason.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import fcntl
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.files import NO_LOCKS
from ar_omni_jax.templates import TEMPLATE_SETS, template_set
from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import VocabularyError, chameleon_vocabulary
from data_pipelines.augment import AUGMENT_FLAGS, Augmenter, add_flags, parse_augmenter
from data_pipelines.dataset_info import FILE_NAME, MAX_LISTED, Counts, DatasetInfo, read_info, write_info
from data_pipelines.decode_pool import MAX_DEFAULT_WORKERS, WorkerDied, decode_pool, default_workers
from data_pipelines.progress import Progress
from data_pipelines.schema import SCHEMA_VERSION, SchemaError
from data_pipelines.shard_builder import (
    ACCOUNTS,
    Account,
    BuildError,
    Job,
    Skipped,
    build_shard,
    read_account,
    refuse_other_numbers,
)
from data_pipelines.sources import SOURCES, is_tokenized, open_source
from data_pipelines.sources.base import Source, duplicates
from data_pipelines.sources.options import NO_OPTIONS, SourceOptions, parse_options
from data_pipelines.stage_clock import StageClock

RECORDS_PER_SHARD = 4096
ON_ERROR = ("fail", "skip")


class ErrorBudget:
    """Counts skipped records; BuildError at the first under "fail", or beyond the share of all records allowed."""

    def __init__(self, on_error: str, budget: float, records: int):
        if on_error not in ON_ERROR or not 0 <= budget <= 1:
            raise BuildError(
                f"on_error must be one of {', '.join(ON_ERROR)} and error_budget in [0, 1]; got {on_error}, {budget}"
            )
        self.fail, self.budget, self.records = on_error == "fail", budget, records
        self.allowed = math.ceil(Fraction(str(budget)) * records)  # 0.07 * 100 is more than 7 in floating point
        self.skipped, self._last = 0, collections.deque(maxlen=5)

    def skip(self, skipped: Skipped) -> None:
        """Takes one record; raises when it is one too many."""
        self.skipped += 1
        self._last.append(skipped.reason)
        if self.fail:
            raise BuildError(f"{skipped.reason}\n(--on_error=skip leaves such records out and lists them)")
        self.check(self.skipped, self._last)

    def check(self, skipped: int, last: Iterable[str]) -> None:
        """Raises when so many are more than the budget allows. last: reasons to show."""
        if skipped > self.allowed:
            shown = "\n".join(f"  {reason}" for reason in last)
            raise BuildError(
                f"{skipped} of {self.records} records cannot be used, more than the budget of {self.budget:.2%} "
                f"({self.allowed}); mend the input or raise --error_budget. The last of them:\n{shown}"
            )


class BuildProgress(Progress):
    """Progress with media, which take most of the time."""

    def __init__(self, total: int, quiet: bool = False, stream=None):
        super().__init__(total, quiet, stream)
        self.media, self._began = 0, time.monotonic()

    def add(self, documents: int, tokens: int, media: int = 0) -> None:
        """So many more records, of so many tokens and media together."""
        self.media += media
        super().add(documents, tokens)

    def line(self) -> str:
        """The state as text."""
        rate = self.media / max(time.monotonic() - self._began, 1e-6)
        return super().line().replace(" tokens/s", f" tokens/s, {rate:.1f} media/s", 1)


def build(
    source_name: str,
    path: str | os.PathLike,
    output: str | os.PathLike,
    tokenizers: Tokenizers,
    *,
    split: str = "train",
    template: str = "paper",
    on_error: str = "fail",
    error_budget: float = 0.01,
    records_per_shard: int = RECORDS_PER_SHARD,
    worker_index: int = 0,
    worker_count: int = 1,
    workers: int = 0,
    threads: int | None = None,
    quiet: bool = False,
    options: SourceOptions = NO_OPTIONS,
    augmenter: Augmenter | None = None,
    clock: StageClock | None = None,
) -> DatasetInfo | None:
    """Makes every `worker_count`-th shard; returns the content of dataset.json, or None while others are not done.

    Args:
      worker_index, worker_count: which shards are made here.
      workers: processes that decode media for this one; 0 for threads.
      threads: decode media where there are no processes; default one a core.
      options: of the source: tasks of pairs, instructions, dropped prompts, columns.
      augmenter: alters the user's speech by noise, level and speed.
      clock: counts the seconds of each stage.
    Raises BuildError, DocumentError, SchemaError, TokenizerError, VocabularyError or WorkerDied, for people.
    """
    _check_workers(worker_index, worker_count, workers, threads)
    if records_per_shard < 1 or not split.replace("_", "").isalnum():
        raise BuildError(f"records_per_shard {records_per_shard} must be positive, split {split!r} letters and digits")
    source, named = _source(source_name, path, options, augmenter)
    job = _plan(source, named, Path(output), tokenizers, split, template, records_per_shard, augmenter)
    clock, budget = clock or StageClock(), ErrorBudget(on_error, error_budget, len(job.source))
    mine = range(worker_index, job.shards, worker_count)
    todo = _unfinished(job, mine, budget)
    total = sum(min(job.per_shard, len(job.source) - i * job.per_shard) for i in todo)
    with BuildProgress(total, quiet) as progress, decode_pool(workers, threads) as pool:
        if len(todo) < len(mine):
            progress.say(f"{len(mine) - len(todo)} of {len(mine)} shards are finished already")
        for index in todo:
            build_shard(job, index, pool, budget.skip, progress.add, clock)
    if todo and not quiet:
        print(clock.line(workers), file=sys.stderr)
    return _finish(job, budget, quiet)


def _check_workers(worker_index: int, worker_count: int, workers: int, threads: int | None) -> None:
    if not 0 <= worker_index < worker_count:
        raise BuildError(f"worker_index {worker_index} is not in [0, worker_count={worker_count})")
    if workers < 0 or (workers and threads is not None) or (threads is not None and threads < 1):
        raise BuildError(f"workers={workers}, threads={threads}: either processes decode, or threads with workers=0")


def _source(name, path, options, augmenter) -> tuple[Source, dict[str, Any]]:
    """The source, and what of it and of the changes of its speech decides the shards."""
    source = open_source(name, path, options)
    if not len(source):
        raise DocumentError(f"{path}: no records; is it the right file?")
    named: dict[str, Any] = {"source": name}
    if options != NO_OPTIONS:
        named["source_options"] = options.to_dict()
    if augmenter is not None:
        named["augment"] = augmenter.record
    return source, named


def _plan(source, named, output, tokenizers, split, template, per_shard, augmenter) -> Job:
    """`named`: what `_source` says of the source."""
    template = template_set(getattr(source, "template", template)).name  # what is tokenized already was written in one
    build = named | {
        "schema_version": SCHEMA_VERSION,
        "records": len(source),
        "input_digest": source.digest,
        "records_per_shard": per_shard,
        "template": template,
        "vocabulary": tokenizers.vocabulary.fingerprint,
        "tokenizers": tokenizers.identities,
    }
    job = Job(source, tokenizers, template, output, split, per_shard, build, duplicates(source), augmenter)
    refuse_other_numbers(job)
    if (output / FILE_NAME).is_file():
        _others(job)  # a clash with splits that are there already is told before the work
    return job


def _unfinished(job: Job, mine: range, budget: ErrorBudget) -> list[int]:
    """This worker's shards that are still to be made, cleared of the temporary files of killed writers. What finished
    shards skipped, whoever made them, counts in the budget."""
    todo = []
    for index in range(job.shards):  # one account at a time is in memory
        account = read_account(job, index)
        if account is None and index in mine:
            todo.append(index)
        for skipped in account.skipped if account is not None else ():
            budget.skip(skipped)
    for index in todo:
        for path in (job.shard(index), job.account(index)):
            for stale in path.parent.glob(f".{path.name}.*.tmp"):
                stale.unlink(missing_ok=True)
    return todo


# -- dataset.json --------------------------------------------------------------------------------------------
def _settings(job: Job) -> dict[str, Any]:
    return {"template": job.template}


def _others(job: Job) -> dict[str, dict[str, Any]]:
    """Splits in dataset.json beside this one; errors when they were made otherwise."""
    if not (job.directory / FILE_NAME).is_file():
        return {}
    info = read_info(job.directory, "documents", job.tokenizers.vocabulary.fingerprint)
    others = {split: counts for split, counts in info.splits.items() if split != job.split}
    for name, ours in (("tokenizers", job.tokenizers.identities), ("settings", _settings(job))):
        if others and getattr(info, name) != ours:
            raise BuildError(
                f"{job.directory / FILE_NAME}: its splits {sorted(others)} were made with {name} "
                f"{getattr(info, name)}, this build has {ours}; use another --output"
            )
    return others


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock. Disks that clusters share may have none: then it is left to chance,
    and a split that the other one wrote over is there again after its command is run again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as e:
            if e.errno not in NO_LOCKS:
                raise
        yield


def _finish(job: Job, budget: ErrorBudget, quiet: bool) -> DatasetInfo | None:
    """Sums all accounts into dataset.json once every shard of the split is there."""
    total = _Sum()
    for index in range(job.shards):
        total.add(read_account(job, index))
    if total.missing:
        if not quiet:
            print(f"{total.missing} shards are left to other workers; the last one writes {FILE_NAME}")
        return None
    budget.check(total.skipped, [entry["detail"] for entry in total.last])  # of all workers together
    with _locked(job.directory / ACCOUNTS / "lock"):  # two splits may end at the same time
        splits = _others(job) | {job.split: total.to_dict() | {"build": dict(job.build)}}
        vocabulary, identities = job.tokenizers.vocabulary, job.tokenizers.identities
        info = DatasetInfo("documents", vocabulary, identities, dict(sorted(splits.items())), _settings(job))
        path = write_info(job.directory, info)
    if not quiet:
        counts = info.splits[job.split]
        print(
            f"{path}: {counts['read']} records read, {counts['documents']} documents ({counts['tokens']} tokens) in "
            f"{job.shards} shards, {counts['read'] - counts['documents']} skipped {counts['dropped'] or ''}"
        )
    return info


class _Sum:
    """One split's entry of dataset.json; `dropped_list` also says where the record is and the whole reason.

    missing: shards without an account. skipped: records; last: entries of the last of them.
    """

    def __init__(self):
        self.missing = self.skipped = self._read = 0
        self.last: collections.deque[dict[str, str]] = collections.deque(maxlen=5)
        self._total, self._listed = Counts(), []

    def add(self, account: Account | None) -> None:
        """Takes one shard's account, None where it is not finished."""
        if account is None:
            self.missing += 1
            return
        self._read += account.read
        self._total = self._total.merge(account.counts)
        for skipped in account.skipped:
            self.skipped += 1
            self._total.dropped[skipped.kind] = self._total.dropped.get(skipped.kind, 0) + 1
            entry = {"id": skipped.id, "reason": skipped.kind, "where": skipped.where, "detail": skipped.reason}
            self.last.append(entry)
            if len(self._listed) < MAX_LISTED:
                self._listed.append(entry)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        self._total.dropped_list = self._listed
        return self._total.to_dict() | {"read": self._read}


def _add_worker_flags(parser: argparse.ArgumentParser) -> None:
    here = parser.add_argument_group("decoding", "who decodes media for this command")
    here.add_argument(
        "--workers", type=int, help=f"processes; 0: threads; default one a core but one, at most {MAX_DEFAULT_WORKERS}"
    )
    here.add_argument("--threads", type=int, help="threads, with --workers=0; default one a core")
    jobs = parser.add_argument_group("array jobs", "the same command several times, each making its own shards")
    jobs.add_argument("--worker_index", type=int, default=0, help="number of this command, from 0")
    jobs.add_argument("--worker_count", type=int, default=1, help="how many such commands there are")


def _add_source_flags(parser: argparse.ArgumentParser) -> None:
    flags = parser.add_argument_group("pairs and tables", "what the source makes of its records")
    flags.add_argument("--tasks", default="", help="ratio of what pairs become, as caption:1,t2i:3; default equal")
    flags.add_argument("--instructions", action="store_true", help="ask for the tasks in several ways")
    flags.add_argument("--prompt_dropout", type=float, default=0.0, help="share of dropped prompts for guidance")
    flags.add_argument("--columns", default="", help="columns of a table, as media:audio,text:sentence,id:name")
    flags.add_argument("--source_seed", type=int, default=0, help="decides tasks, instructions and dropped prompts")


def _tokenizers(name: str, source: str) -> Tokenizers:
    """By built-in name or folder; for a tokenized source without weights, "chameleon" being the layout alone."""
    if not is_tokenized(source):
        return load_tokenizers(name)
    return Tokenizers(chameleon_vocabulary(), {}, {}) if name == "chameleon" else load_tokenizers(name, need=())


class _Terminated(KeyboardInterrupt):
    """The signal SIGTERM, which queues of clusters send, as an exception: what is begun is cleared away."""


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    def stop(*_) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="manifest", choices=sorted(SOURCES), help="format of the input")
    parser.add_argument("--input", required=True, help="the source's file or directory")
    parser.add_argument("--output", required=True, help="directory of the shards")
    parser.add_argument("--split", default="train", help="name of the split that the input is")
    parser.add_argument("--tokenizers", default="toyworld", help="built-in name or directory")
    parser.add_argument("--template", default="paper", choices=sorted(TEMPLATE_SETS), help="how turns are written")
    parser.add_argument("--on_error", default="fail", choices=ON_ERROR, help="what a record that cannot be used does")
    parser.add_argument("--error_budget", type=float, default=0.01, help="largest share of skipped records")
    parser.add_argument("--records_per_shard", type=int, default=RECORDS_PER_SHARD)
    _add_worker_flags(parser)
    _add_source_flags(parser)
    add_flags(parser)
    args = vars(parser.parse_args(argv))
    source, path, output = args.pop("source"), args.pop("input"), args.pop("output")
    named = {name: args.pop(name) for name in ("tasks", "instructions", "prompt_dropout", "columns")}
    heard = {name: args.pop(name) for name in AUGMENT_FLAGS}
    if args["workers"] is None:
        args["workers"] = default_workers() if args["threads"] is None else 0
    try:
        with _termination_as_exception():
            options = parse_options(**named, seed=args.pop("source_seed"))
            augmenter = parse_augmenter(heard)
            tokenizers = _tokenizers(args.pop("tokenizers"), source)
            build(source, path, output, tokenizers, options=options, augmenter=augmenter, **args)
    except (BuildError, DocumentError, SchemaError, TokenizerError, VocabularyError, WorkerDied, OSError) as e:
        sys.exit(f"build_shards: {e}")
    except KeyboardInterrupt as e:
        print("build_shards: interrupted; finished shards are kept, run the same command to go on", file=sys.stderr)
        sys.exit(128 + (signal.SIGTERM if isinstance(e, _Terminated) else signal.SIGINT))


if __name__ == "__main__":
    main()
