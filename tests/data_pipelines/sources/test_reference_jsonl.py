"""The reference's pretraining shards: sequences as they are, its loss weights, bad records, no codec."""

import dataclasses
import json

import numpy as np
import pytest
import token_corpus as corpus

from ar_omni_jax.documents import DocumentError, Role
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import IdRange, VocabularyError, chameleon_vocabulary
from data_pipelines import build_shards
from data_pipelines.dataset_info import read_info
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import SourceOptions, is_tokenized, open_source
from data_pipelines.sources.base import duplicates
from data_pipelines.weights import weight_table

TASKS = ["caption", "asr", "t2i", "tts", "chat", "speech_to_image", "text"]


def reference_weights(record):
    """Loss weight of each token as the reference's trainer has it, written down from its rules."""
    ids, task = np.array(record["discrete_code"]), record["task"]
    weights = np.ones(len(ids))
    if task in ("image_caption", "speech_to_text"):
        eligible = [i for i in range(1, len(ids)) if ids[i] != corpus.EOS]
        weights[eligible[-len(record["response"]) :]] = 2
    return weights


def test_every_task_comes_through_as_it_is(tmp_path):
    records, starts = corpus.pretraining_records()
    info = corpus.build("reference_jsonl", corpus.write_lines(tmp_path / "s.jsonl", records), tmp_path / "out")
    documents = list(read_documents(tmp_path / "out", "train", corpus.VOCABULARY))
    assert [d.task for d in documents] == TASKS
    assert [d.group for d in documents] == ["image", "speech", "image", "speech", "image", "speech", "text"]
    for document, record, start in zip(documents, records, starts, strict=True):
        assert document.tokens.tolist() == record["discrete_code"]
        assert document.id == f"s/{record['task']}:a1" and document.source == "reference_jsonl"
        roles = np.concatenate([np.full(s.end - s.start, s.role) for s in document.spans])
        assert roles.tolist() == [Role.PROMPT] * start + [Role.RESPONSE] * (len(roles) - start)
        for span in document.spans:
            kinds = corpus.VOCABULARY.modality_of(document.tokens[span.start : span.end])
            assert (kinds == span.modality).all()
        assert weight_table(2.0)[document.classes()].tolist() == reference_weights(record).tolist()
        assert weight_table(1.0, response_only=True)[document.classes()].tolist() == roles.tolist()
    assert info.splits["train"]["by_modality"]["image"] == 4 * corpus.VOCABULARY.image_length
    assert is_tokenized("reference_jsonl") and not is_tokenized("manifest")


def test_a_folder_is_its_shards_by_name(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for shard in (1, 0):
        records = [corpus.pretraining_records(10 * shard + i)[0][0] | {"id": None} for i in range(3)]
        corpus.write_lines(folder / f"shard{shard}.jsonl", records)
    (folder / "notes.txt").write_text("not a shard")
    source = open_source("reference_jsonl", folder)
    names = [f"shard{shard}/{line}" for shard in (0, 1) for line in (1, 2, 3)]
    assert list(source.ids()) == names and not duplicates(source)
    assert [r.id for r in source.read(2, 5)] == names[2:5]
    assert [r.index for r in source.read(2, 5)] == [2, 3, 4]
    first = source.digest
    corpus.write_lines(folder / "shard1.jsonl", corpus.pretraining_records(3)[0])
    assert open_source("reference_jsonl", folder).digest != first


def test_a_text_with_a_users_turn_is_a_chat(tmp_path):
    ids = [corpus.BOS, *corpus.USER, 20010, corpus.EOH, *corpus.LABEL, 20011, 20012, corpus.EOS]
    record = {"task": "text_to_text", "discrete_code": ids, "response": [1, 1]}
    path = corpus.write_lines(tmp_path / "s.jsonl", [record])
    (record,) = open_source("reference_jsonl", path).read(0, 1)
    assert record.document.task == "chat"
    assert [s.start for s in record.document.spans if s.role == Role.RESPONSE][0] == 6


CAPTION = corpus.pretraining_records()[0][0]
CODES = CAPTION["discrete_code"]
BAD = {
    "no code": ({"task": "image_caption"}, "'discrete_code' is missing"),
    "no task": ({"discrete_code": [0]}, "'task' is missing"),
    "unknown task": (CAPTION | {"task": "video"}, "unknown task 'video'; known tasks: image_caption"),
    "a list as task": (CAPTION | {"task": ["image_caption"]}, "unknown task ['image_caption']"),
    "empty": (CAPTION | {"discrete_code": []}, "non-empty list of whole numbers"),
    "no numbers": (CAPTION | {"discrete_code": ["a"]}, "non-empty list of whole numbers"),
    "fractions": (CAPTION | {"discrete_code": [1.5]}, "non-empty list of whole numbers"),
    "ragged": (CAPTION | {"discrete_code": [[1], 2]}, "non-empty list of whole numbers"),
    "outside": (CAPTION | {"discrete_code": [*CODES, 65536]}, "id 65536 at position"),
    "negative": (CAPTION | {"discrete_code": [-1, *CODES]}, "id -1 at position 0"),
    "no response": (CAPTION | {"response": []}, "response is empty"),
    "a number as response": (CAPTION | {"response": 3}, "response must be a list"),
    "cut in front of the answer": (CAPTION | {"response": [0] * 9}, "longer than what follows the prompt"),
    "codes as caption": (
        CAPTION | {"discrete_code": [*CODES[:-3], *corpus.image(np.random.default_rng(0))]},
        "are not all text",
    ),
    "no image": (CAPTION | {"task": "text_to_image"}, "no <boi> after the prompt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named(name, tmp_path):
    record, message = BAD[name]
    path = corpus.write_lines(tmp_path / "s.jsonl", [CAPTION, record])
    good, bad = open_source("reference_jsonl", path).read(0, 2)
    assert not good.error and bad.document is None
    assert message in bad.error and "s.jsonl: line 2" in bad.error


def test_media_that_are_not_whole_and_malformed_lines(tmp_path):
    """Skipped up to the budget, every one with its reason; without a budget the first one stops the build."""
    start = CODES.index(corpus.BOI)
    cut = CODES[: start + 2] + CODES[start + 3 :]  # a code less
    open_end = [*CODES[: CODES.index(corpus.EOI)], *CODES[CODES.index(corpus.EOI) + 1 :]]
    path = tmp_path / "s.jsonl"
    lines = [CAPTION, CAPTION | {"id": "b", "discrete_code": cut}, CAPTION | {"id": "c", "discrete_code": open_end}]
    text = "".join(json.dumps(line) + "\n" for line in lines) + json.dumps(CAPTION) + "\n" + '{"task": "image_cap'
    path.write_text(text)
    info = corpus.build("reference_jsonl", path, tmp_path / "out", on_error="skip", error_budget=0.8)
    split = info.splits["train"]
    assert split["dropped"] == {"media are not whole": 2, "duplicate id": 1, "malformed record": 1}
    details = [dropped["detail"] for dropped in split["dropped_list"]]
    assert f"an image of 3 codes at token {start + 1}; the grid (2, 2) has 4" in details[0]
    assert "do not stand between <boi> and <eoi>" in details[1]
    assert "line 5: malformed JSON" in details[3]
    with pytest.raises(BuildError, match=r"line 2.*an image of 3 codes"):
        corpus.build("reference_jsonl", path, tmp_path / "fail")
    with pytest.raises(BuildError, match="more than the budget"):
        corpus.build("reference_jsonl", path, tmp_path / "budget", on_error="skip", error_budget=0.3)


def test_another_vocabulary_is_refused_before_any_work(tmp_path):
    path = corpus.write_lines(tmp_path / "s.jsonl", [CAPTION])
    with pytest.raises(VocabularyError, match="layout 'chameleon' of 65536 ids.*'toyworld'.*--tokenizers=chameleon"):
        corpus.build("reference_jsonl", path, tmp_path / "out", load_tokenizers())
    assert not (tmp_path / "out").exists()


def test_fewer_codes_of_the_same_layout_will_do_and_ids_are_checked(tmp_path):
    small = dataclasses.replace(corpus.VOCABULARY, size=30000, text=IdRange(corpus.VOCABULARY.text.start, 5000))
    tokenizers = corpus.no_codecs()
    tokenizers.vocabulary = small
    fits = {"id": "a", "task": "text_to_text", "discrete_code": [0, 20000, 2], "response": [1]}
    high = fits | {"id": "b", "discrete_code": [0, 40000, 2]}
    path = corpus.write_lines(tmp_path / "s.jsonl", [fits, high])
    info = corpus.build("reference_jsonl", path, tmp_path / "out", tokenizers, on_error="skip", error_budget=0.5)
    assert info.splits["train"]["dropped"] == {"not in the vocabulary": 1}
    assert "id 40000 at position 1" in info.splits["train"]["dropped_list"][0]["detail"]


def test_options_of_pairs_are_refused(tmp_path):
    path = corpus.write_lines(tmp_path / "s.jsonl", [CAPTION])
    with pytest.raises(DocumentError, match="reference_jsonl does not take --tasks"):
        open_source("reference_jsonl", path, SourceOptions(tasks=(("caption", 1.0),)))


def published_names():
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    names += ["IMGIMG" + "".join("ABCDEFGHIJ"[int(digit)] for digit in str(code)) + "Z" for code in range(8192)]
    names += ["<eoss>", "<racm3:break>"] + [f"<reserved{n:05d}>" for n in range(8194, 16380)]
    return names + [f"text{i}" for i in range(65536 - 16384)]


@pytest.mark.parametrize("files", [False, True])
def test_the_command_needs_no_codec(files, tmp_path, capsys):
    """The layout alone will do, or the text tokenizer's file; what is made is said to follow the released templates."""
    name = "chameleon"
    if files:
        (tmp_path / "tokenizers").mkdir()
        vocab = {name: i for i, name in enumerate(published_names())}
        content = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": []}}
        (tmp_path / "tokenizers" / "text_tokenizer.json").write_text(json.dumps(content))
        name = tmp_path / "tokenizers"
    records = [corpus.pretraining_records()[0][i] for i in (1, 3, 6)]  # no image: the grid is the published one
    path = corpus.write_lines(tmp_path / "s.jsonl", records)
    options = ["--source=reference_jsonl", f"--input={path}", f"--output={tmp_path / 'out'}", f"--tokenizers={name}"]
    build_shards.main(options)
    assert "3 records read, 3 documents" in capsys.readouterr().out
    info = read_info(tmp_path / "out", "documents", chameleon_vocabulary().fingerprint)
    assert info.settings == {"template": "released"} and list(info.tokenizers) == ["text"] * files
    first = next(iter(read_documents(tmp_path / "out", "train", chameleon_vocabulary())))
    assert first.tokens.tolist() == records[0]["discrete_code"]
