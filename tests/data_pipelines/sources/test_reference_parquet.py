"""The reference's instruction data: its labels are the loader's weights, bit for bit; bad rows; corrupt files."""

import numpy as np
import pytest
import token_corpus as corpus

from ar_omni_jax.documents import DocumentError
from data_pipelines.loader import make_loader
from data_pipelines.pack_shards import PackOptions, pack
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import open_source

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

UNTRAINED = -100


def dialogue(rng, kinds):
    """Rounds of speech asked and `kinds` answered -> (ids, labels): trained on what follows GPT: in each round."""
    ids, labels = [corpus.BOS], [UNTRAINED]
    for kind in kinds:
        prompt = [*corpus.USER, *corpus.speech(rng), corpus.EOH, *corpus.LABEL]
        answer = corpus.draw(rng, "text", 6)
        answer += {"image": corpus.image, "speech": corpus.speech, "text": lambda rng: []}[kind](rng) + [corpus.EOM]
        ids += prompt + answer
        labels += [UNTRAINED] * len(prompt) + answer
    return ids, labels


def rows(count, seed=0):
    """Dialogues of all kinds; every third has holes in its labels, within images and utterances too."""
    rng, out = np.random.default_rng(seed), []
    for i in range(count):
        ids, labels = dialogue(rng, rng.choice(["text", "image", "speech"], 1 + i % 3))
        if i % 3 == 2:
            labels = np.where(rng.random(len(ids)) < 0.3, UNTRAINED, labels).tolist()
        out.append((ids, labels))
    return out


def write(path, data, kind=None, **options):
    kind = kind or pa.list_(pa.int32())
    columns = {name: pa.array([row[i] for row in data], kind) for i, name in enumerate(("input_ids", "labels"))}
    pq.write_table(pa.table(columns), path, **({"row_group_size": 7} | options))
    return path


def test_rows_come_through_with_their_labels(tmp_path):
    data = rows(23)
    corpus.build("reference_parquet", write(tmp_path / "i.parquet", data), tmp_path / "out", records_per_shard=9)
    documents = list(read_documents(tmp_path / "out", "train", corpus.VOCABULARY))
    assert [d.id for d in documents] == [f"i/{n}" for n in range(23)]
    for document, (ids, labels) in zip(documents, data, strict=True):
        assert document.tokens.tolist() == ids and document.group == "speech"
        roles = np.concatenate([np.full(s.end - s.start, s.role) for s in document.spans])
        assert (roles == (np.array(labels) != UNTRAINED)).all()


@pytest.mark.parametrize(
    ("kinds", "task"),
    [(["text"], "chat_speech"), (["text", "image"], "chat_image"), (["text", "speech"], "chat")],
)
def test_the_task_is_what_is_answered(kinds, task, tmp_path):
    path = write(tmp_path / "i.parquet", [dialogue(np.random.default_rng(0), kinds)])
    (record,) = open_source("reference_parquet", path).read(0, 1)
    assert record.document.task == task


def test_the_loaders_weights_are_the_references_labels(tmp_path):
    """From parquet through shards and packing to batches: token for token what shifted labels train on."""
    data = rows(30, seed=1)
    corpus.build("reference_parquet", write(tmp_path / "i.parquet", data), tmp_path / "shards")
    pack(tmp_path / "shards", tmp_path / "packed", PackOptions(max(len(ids) for ids, _ in data)))
    found = {}
    settings = {"path": tmp_path / "packed", "response_only": True}
    with make_loader(settings, split="train", global_batch=2, seed=0, one_pass=True) as loader:
        for batch in loader:
            for row in range(2):
                for segment in range(1, batch["segment_ids"][row].max() + 1):
                    place = batch["segment_ids"][row] == segment
                    key = tuple(batch["tokens"][row][place].tolist())
                    assert key not in found
                    found[key] = (batch["targets"][row][place], batch["loss_weights"][row][place])
    assert len(found) == len(data)
    for ids, labels in data:
        targets, weights = found[tuple(ids)]
        shifted = np.array([*labels[1:], UNTRAINED])
        assert set(np.unique(weights)) <= {0.0, 1.0}
        assert (weights == (shifted != UNTRAINED)).all()
        assert (targets[weights > 0] == shifted[weights > 0]).all()


def test_reading_from_any_place_and_file(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    data = rows(40)
    write(folder / "b.parquet", data[25:], pa.large_list(pa.int64()))
    write(folder / "a.parquet", data[:25])
    for path, prefix in ((folder, ""), (tmp_path, "data/")):  # the folder, or the one above it as on the hub
        source = open_source("reference_parquet", path)
        names = [f"{prefix}a/{i}" for i in range(25)] + [f"{prefix}b/{i}" for i in range(15)]
        assert len(source) == 40 and list(source.ids()) == names
        for start, stop in ((0, 2), (5, 9), (23, 27), (39, 60), (6, 7), (7, 14)):
            found = list(source.read(start, stop))
            assert [r.index for r in found] == list(range(start, min(stop, 40)))
            assert [r.id for r in found] == names[start:stop]
            assert all(r.document.tokens.tolist() == data[r.index][0] for r in found)
    before = source.digest
    write(folder / "b.parquet", data[26:] + data[25:26])
    assert open_source("reference_parquet", folder).digest != before


IDS, LABELS = dialogue(np.random.default_rng(2), ["text"])
SHIFTED = [*LABELS[1:], UNTRAINED]
BAD = {
    "shifted labels": ((IDS, SHIFTED), "must not be shifted"),
    "another token": ((IDS, [*LABELS[:-1], 9]), f"label 9 at token {len(IDS) - 1} is neither -100"),
    "another length": ((IDS, LABELS[:-1]), f"{len(IDS)} input_ids, but {len(IDS) - 1} labels"),
    "nothing trained": ((IDS, [UNTRAINED] * len(IDS)), "nothing to train on"),
    "only the first token": ((IDS, [IDS[0], *[UNTRAINED] * (len(IDS) - 1)]), "nothing to train on"),
    "no ids": (([], []), "input_ids must be a non-empty list"),
    "no row": ((None, None), "input_ids must be a non-empty list"),
    "a hole": (([None, *IDS[1:]], LABELS), "input_ids must be a non-empty list of whole numbers"),
    "outside": (([*IDS, 70000], [*LABELS, 70000]), "input_ids: id 70000 at position"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named(name, tmp_path):
    row, message = BAD[name]
    path = write(tmp_path / "i.parquet", [(IDS, LABELS), row])
    good, bad = open_source("reference_parquet", path).read(0, 2)
    assert not good.error and bad.document is None
    assert message in bad.error and "i.parquet: row 1" in bad.error


def test_files_that_cannot_be_read(tmp_path):
    def refused(path, message):
        with pytest.raises(DocumentError, match=message):
            open_source("reference_parquet", path)

    whole = write(tmp_path / "i.parquet", rows(30)).read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.parquet").write_bytes(whole[:-100])
    (tmp_path / "cut" / "b.parquet").write_bytes(whole)
    source = open_source("reference_parquet", tmp_path / "cut")
    assert len(source) == 31 and list(source.ids())[:2] == [None, "b/0"]
    first, second = source.read(0, 2)
    assert "a.parquet: no whole parquet file" in first.error and "copy or make it again" in first.error
    assert not second.error
    refused(tmp_path / "none.parquet", "none.parquet: no such file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no .*.parquet file")
    pq.write_table(pa.table({"input_ids": [[1]], "text": ["x"]}), tmp_path / "other.parquet")
    refused(tmp_path / "other.parquet", "other.parquet: no column 'labels'; it has input_ids, text")


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    data = rows(21)
    path = write(tmp_path / "i.parquet", data, write_page_checksum=True, compression="none", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle] ^= 0xFF
    path.write_bytes(content)
    records = list(open_source("reference_parquet", path).read(0, 21))
    assert [r.index for r in records if r.error] == list(range(7, 14))
    assert "i.parquet: row 7: row group 1 cannot be read" in records[7].error
    assert records[14].document.tokens.tolist() == data[14][0]
    info = corpus.build("reference_parquet", path, tmp_path / "out", on_error="skip", error_budget=0.4)
    assert info.splits["train"]["documents"] == 14 and info.splits["train"]["dropped"] == {"malformed record": 7}
    with pytest.raises(BuildError, match="row group 1"):
        corpus.build("reference_parquet", path, tmp_path / "fail")
