"""The unigram baseline: how well token frequencies alone predict held-out tokens, by modality.

A trained model's loss must fall well below it. The baseline here is told the modality of each target, which
makes it stronger (its loss lower) than a unigram over the whole vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ar_omni_jax.documents import GROUPS, split_token_class
from ar_omni_jax.vocabulary import MODALITY_NAMES
from data_pipelines import schema, shards
from data_pipelines.dataset_info import DatasetInfo, read_info
from data_pipelines.schema import PackedExample

READ_BATCH = 256


def read_packed(directory: str | os.PathLike, split: str, info: DatasetInfo) -> Iterator[tuple[str, PackedExample]]:
    """(group, up to READ_BATCH rows as arrays [n, L]) over all shards of a packed split, in order."""
    if split not in info.splits:
        raise schema.SchemaError(f"{directory}: no split {split!r}; it has {sorted(info.splits)}")
    for group in GROUPS:
        for path in shards.shard_paths(Path(directory) / split, group):
            with shards.ShardReader(path) as reader:
                for start in range(0, len(reader), READ_BATCH):
                    places = range(start, min(start + READ_BATCH, len(reader)))
                    records = reader.read(places)
                    yield (
                        group,
                        schema.decode_packed_batch(
                            records, info.length, info.vocabulary, lambda i, r=reader, s=start: r.where(s + i)
                        ),
                    )


def target_counts(directory: str | os.PathLike, split: str, info: DatasetInfo | None = None) -> np.ndarray:
    """int64 [modalities, V]: how often each id is a target, by modality. A document's first token is none."""
    info = info or read_info(directory, "packed")
    counts = np.zeros((len(MODALITY_NAMES), info.vocabulary.size), np.int64)
    for _, rows in read_packed(directory, split, info):
        target = (rows.segment_ids > 0) & (rows.positions > 0)
        modality = split_token_class(rows.token_class[target])[2].astype(np.int64)
        flat = modality * info.vocabulary.size + rows.tokens[target]
        counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape)
    return counts


def unigram_nats(train_counts: np.ndarray, heldout_counts: np.ndarray, smoothing: float = 1.0) -> dict[str, float]:
    """Cross-entropy in nats a token, by modality, of held-out targets under the training frequencies.

    p(id | modality) = (count + smoothing) / (total + smoothing * ids), over the ids that modality has in either
    part; modalities without held-out targets are left out. Args are `target_counts` arrays [modalities, V].
    """
    nats = {}
    for name, train, heldout in zip(MODALITY_NAMES, train_counts, heldout_counts, strict=True):
        if not heldout.sum():
            continue
        seen = (train > 0) | (heldout > 0)
        probability = (train + smoothing) / (train.sum() + smoothing * seen.sum())
        nats[name] = float(-(heldout[seen] * np.log(probability[seen])).sum() / heldout.sum())
    return nats


def unigram_nll(
    directory: str | os.PathLike, train_split: str = "train", heldout_split: str = "validation", smoothing: float = 1.0
) -> dict[str, float]:
    """{"text" | "image" | "speech" | "marker": nats a token} for the packed data in `directory`."""
    info = read_info(directory, "packed")
    train = target_counts(directory, train_split, info)
    return unigram_nats(train, target_counts(directory, heldout_split, info), smoothing)
