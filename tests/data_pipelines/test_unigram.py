"""Unigram baseline: equal to a count by hand, and to the entropy of the source for plenty of data."""

import math

import numpy as np
import pytest
from corpus import VOCABULARY, make_documents, write_documents

from ar_omni_jax.vocabulary import MODALITY_NAMES
from data_pipelines.dataset_info import read_info
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.unigram import target_counts, unigram_nats, unigram_nll


def test_by_hand():
    train, heldout = np.zeros((2, 4, 5), np.int64)
    train[0, :3] = [3, 1, 0]
    heldout[0, :3] = [1, 0, 1]
    got = unigram_nats(train, heldout, smoothing=1.0)
    assert got == {"text": pytest.approx(-(math.log(4 / 7) + math.log(1 / 7)) / 2)}


def test_counts_are_all_targets_and_uniform_codes_cost_log_of_their_number(tmp_path):
    splits = {"train": make_documents(400), "validation": make_documents(60, seed=1)}
    write_documents(tmp_path / "in", splits)
    pack(tmp_path / "in", tmp_path / "out", PackOptions(512))
    counts = target_counts(tmp_path / "out", "train", read_info(tmp_path / "out"))
    assert counts.sum() == sum(len(d.tokens) - 1 for d in splits["train"])
    assert counts[MODALITY_NAMES.index("marker")].nonzero()[0].tolist() == [VOCABULARY.marker("eos")]
    nats = unigram_nll(tmp_path / "out")
    assert set(nats) == set(MODALITY_NAMES)
    assert nats["marker"] == pytest.approx(0, abs=1e-6)
    for name, number in (("text", 300), ("image", 100), ("speech", 80)):
        assert nats[name] == pytest.approx(math.log(number), abs=0.03), name
