"""What counts in instruction tuning: answers alone, and what <-Ins-> ... <-Res-> set off, by its factor."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from ar_omni_jax.config import load_config
from ar_omni_jax.documents import document_from_json
from ar_omni_jax.templates import tokenize, without_answer
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines import shards
from data_pipelines.dataset_info import Counts, DatasetInfo, write_info
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.schema import encode_document
from data_pipelines.toyworld.instruct import make_dialogue_plan
from data_pipelines.weights import segment_factors

LENGTH = 1024


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """(vocabulary, folder of packed dialogues, their documents by id): codes by lot, no codec."""
    folder, rng = tmp_path_factory.mktemp("dialogues"), np.random.default_rng(0)
    tokenizers = load_tokenizers("toyworld", need=("text",))
    vocabulary = tokenizers.vocabulary
    plan, counts, documents = make_dialogue_plan(60, seed=0), Counts(), []
    with shards.ShardWriter(folder / "shards" / shards.shard_name("train", 0, 1)) as writer:
        for record in plan.records["train"]:
            document = document_from_json(record)
            codes = [
                rng.integers(0, vocabulary.range_of(part.modality).count, vocabulary.image_length)
                if part.modality == Modality.IMAGE
                else rng.integers(0, vocabulary.range_of(part.modality).count, 20)
                for part in document.media()
            ]
            row = tokenize(document, "paper", vocabulary, tokenizers.text.encode, codes)
            prompts = [_round_start(document, k, codes, tokenizers) for k in range(1, len(document.turns), 2)]
            documents.append((row, prompts))
            writer.write(encode_document(row, vocabulary))
            counts.add(row)
    info = DatasetInfo("documents", vocabulary, {}, {"train": counts.to_dict()}, {"template": "paper"})
    write_info(folder / "shards", info)
    pack(folder / "shards", folder / "packed", PackOptions(LENGTH))
    return vocabulary, folder / "packed", documents


def _round_start(document, turn, codes, tokenizers):
    """(first, last + 1) places of the answer that is turn `turn`, by tokenizing what comes before and with it."""

    def tokens(turns):
        part = dataclasses.replace(document, turns=turns)
        known = codes[: len(part.media())]
        return tokenize(part, "paper", tokenizers.vocabulary, tokenizers.text.encode, known).tokens

    whole = dataclasses.replace(document, turns=document.turns[: turn + 1])
    asked = without_answer(whole)
    before = tokenize(asked, "paper", tokenizers.vocabulary, tokenizers.text.encode, codes[: len(asked.media())]).tokens
    return len(before), len(tokens(whole.turns))


def batches(folder, **settings):
    data = {"path": folder, "mixture": {"image": 1.0, "speech": 1.0, "text": 0.0}} | settings
    with make_loader(data, split="train", global_batch=2, seed=0, one_pass=True) as loader:
        return list(loader)


def test_only_answers_have_a_weight(packed):
    vocabulary, folder, documents = packed
    wanted = {}
    for row, answers in documents:
        inside = np.zeros(len(row.tokens), bool)
        for start, stop in answers:
            inside[start:stop] = True
        wanted[row.tokens.tobytes()] = inside
    seen = several = 0
    for batch in batches(folder, response_only=True, response_text_weight=1.0):
        for tokens, weights, segments in zip(batch["tokens"], batch["loss_weights"], batch["segment_ids"], strict=True):
            for segment in range(1, segments.max(initial=0) + 1):
                places = np.flatnonzero(segments == segment)
                inside = wanted[tokens[places].tobytes()]
                # The weight of a token stands at the place that predicts it.
                np.testing.assert_array_equal(weights[places[:-1]] > 0, inside[1:])
                assert weights[places[-1]] == 0
                seen, several = seen + 1, several + (np.diff(inside.astype(int)) == 1).sum()
            assert not weights[segments == 0].any()
    assert seen == len(documents) and several > seen, "every round's answer counts, not the last alone"


def test_without_the_setting_prompts_count_too(packed):
    some = batches(packed[1])[0]
    valid = (some["segment_ids"][:, :-1] == some["segment_ids"][:, 1:]) & (some["segment_ids"][:, 1:] > 0)
    assert (some["loss_weights"][:, :-1] > 0)[valid].all()


def test_a_segment_runs_from_its_opener_to_its_closer_or_the_documents_end():
    ins, res = 8, 9
    # a segment; one that the document's end closes; the next document is not in it
    first = ([1, 8, 2, 3, 9, 4, 8, 5, 1, 2, 9, 3], [1] * 8 + [2] * 4, [0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    # a document that begins with a segment, an opener within one, padding
    second = ([8, 8, 2, 9, 9, 8, 2, 9, 0, 0, 0, 0], [1] * 5 + [2] * 3 + [0] * 4, [0, 1, 1, 1, 0, 0, 1, 1] + [0] * 4)
    rows = [first, second]
    tokens, segments, inside = (np.array(x, np.int32) for x in zip(*rows, strict=True))
    np.testing.assert_array_equal(segment_factors(tokens, segments, ins, res, 3.0), np.where(inside, 3.0, 1.0))


def test_the_loader_weighs_segments_of_answers_only(packed, tmp_path):
    """Markers put into real rows by hand: the factor reaches answers' tokens, and prompts stay at 0."""
    vocabulary, _, documents = packed
    ins, res = vocabulary.marker("ins"), vocabulary.marker("res")
    row, ((start, stop), *_) = next(d for d in documents if d[1][0][1] - d[1][0][0] > 8)
    tokens = row.tokens.copy()
    tokens[[2, 5, start + 1, start + 4]] = ins, res, ins, res
    counts = Counts()
    with shards.ShardWriter(tmp_path / "shards" / shards.shard_name("train", 0, 1)) as writer:
        changed = dataclasses.replace(row, tokens=tokens)
        writer.write(encode_document(changed, vocabulary))
        counts.add(changed)
    write_info(
        tmp_path / "shards",
        DatasetInfo("documents", vocabulary, {}, {"train": counts.to_dict()}, {"template": "paper"}),
    )
    pack(tmp_path / "shards", tmp_path / "packed", PackOptions(LENGTH))
    plain = batches(tmp_path / "packed", response_only=True)[0]["loss_weights"][0]
    weighed = batches(tmp_path / "packed", response_only=True, segment_weight=2.5)[0]["loss_weights"][0]
    factors = np.divide(weighed, plain, out=np.zeros_like(plain), where=plain > 0)
    np.testing.assert_allclose(factors[start + 1 : start + 4], 2.5)  # places that predict the segment and its closer
    np.testing.assert_allclose(factors[[start - 1, start, start + 4]], 1.0)
    assert not weighed[: start - 1].any(), "the prompt's segment stays without weight"


def test_the_config_asks_for_answers_alone():
    config = load_config(str(Path(__file__).parents[2] / "configs" / "instruct_toyworld.py"))
    assert config.data.response_only and config.loss.perceptual_scope == "response"
    assert config.loss.perceptual_weight > 0 and config.train.init_from
    assert json.dumps(config.model.to_dict()) == json.dumps(
        load_config(str(Path(__file__).parents[2] / "configs" / "toyworld.py")).model.to_dict()
    )
