"""Parquet with media structs: real codecs to equal codes, columns found and named, damaged files, flat memory."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import source_media
from source_media import picture, reasons, records, sound, texts

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.hf_parquet import HFParquetSource

MEDIA = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SOUNDS = (("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", "OPUS"))


def media(*values):
    """Column of media: bytes, a path, or None."""
    rows = [{"bytes": v, "path": None} if isinstance(v, bytes) else v and {"bytes": None, "path": v} for v in values]
    return pa.array(rows, MEDIA)


def write(path, columns, stated=None, group=2):
    """A file with row groups of `group` rows; `stated`: column -> "Audio" or "Image", as huggingface/datasets does."""
    table = pa.table(columns)
    if stated:
        features = {"info": {"features": {name: {"_type": kind} for name, kind in stated.items()}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=group)
    return path


def captions(path, count=6, first=0, **options):
    columns = {
        "image": media(*(picture(first + i) for i in range(count))),
        "caption": [f"picture {first + i}" for i in range(count)],
    }
    return write(path, columns, **options)


def test_shards_hold_the_codes_of_the_utterances(tmp_path):
    columns = {
        "audio": media(*(sound(i, *SOUNDS[i]) for i in range(4))),
        "transcript": [f"tone {i}" for i in range(4)],
        "speaker_id": ["a"] * 4,
    }
    path = write(tmp_path / "train-0.parquet", columns, {"audio": "Audio"}, group=3)
    source_media.build("hf_parquet", path, tmp_path / "out", records_per_shard=3)
    found = source_media.codes_in_shards(tmp_path / "out")
    assert sorted(found) == [f"train-0/{i}" for i in range(4)]
    for i in range(4):
        assert np.array_equal(found[f"train-0/{i}"][1], source_media.codes_of(Modality.SPEECH, sound(i, *SOUNDS[i])))


def test_shards_hold_the_codes_of_the_pictures(tmp_path):
    formats = ("PNG", "JPEG", "WEBP")
    columns = {"jpg": [picture(i, f) for i, f in enumerate(formats)], "TEXT": list("abc"), "key": [7, 8, 9]}
    path = write(tmp_path / "p.parquet", columns)
    options = SourceOptions(tasks=(("t2i", 1),), columns=(("media", "jpg"), ("text", "TEXT"), ("id", "key")))
    source_media.build("hf_parquet", path, tmp_path / "out", options=options)
    found = source_media.codes_in_shards(tmp_path / "out")
    for i, format in enumerate(formats):
        task, codes = found[f"p/{7 + i}"]
        assert task == "t2i" and np.array_equal(codes, source_media.codes_of(Modality.IMAGE, picture(i, format)))


def test_rows_come_in_order_from_any_place(tmp_path):
    (tmp_path / "more").mkdir()
    captions(tmp_path / "a.parquet", 7, group=3)
    captions(tmp_path / "b.parquet", 1, first=7)
    captions(tmp_path / "more" / "c.parquet", 5, first=8, group=5)
    source = HFParquetSource(tmp_path)
    names = [f"a/{i}" for i in range(7)] + ["b/0"] + [f"more/c/{i}" for i in range(5)]
    assert list(source.ids()) == names
    for start, stop in ((0, 13), (2, 4), (6, 9), (11, 99), (13, 13)):
        some = list(source.read(start, stop))
        assert [record.index for record in some] == list(range(start, min(stop, 13)))
        assert [record.id for record in some] == names[start:stop]
        for record in some:
            assert record.document.media()[0].value == picture(record.index)
            assert f"picture {record.index}" in texts(record)


@pytest.mark.parametrize(
    "value,stated,modality",
    [
        (picture(1), None, Modality.IMAGE),
        (picture(1, "WEBP"), None, Modality.IMAGE),
        (sound(1), None, Modality.SPEECH),
        (sound(1, "MP3"), None, Modality.SPEECH),
        ("a.FLAC", None, Modality.SPEECH),
        ((None, b"unknown", "x.txt", picture(1)), None, Modality.IMAGE),
        (b"unknown", "Audio", Modality.SPEECH),
        (b"unknown", "Image", Modality.IMAGE),
    ],
)
def test_the_kind_of_media_is_stated_or_seen(tmp_path, value, stated, modality):
    values = value if isinstance(value, tuple) else (value,)
    columns = {"m": media(*values), "text": ["x"] * len(values)}
    path = write(tmp_path / "x.parquet", columns, stated and {"m": stated})
    assert records(HFParquetSource(path))[-1].document.media()[0].modality == modality


def test_media_given_by_path_are_looked_for_beside_the_file(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "1.wav").write_bytes(sound(1))
    path = write(tmp_path / "x.parquet", {"audio": media("clips/1.wav", "clips/2.wav"), "sentence": ["one", "two"]})
    with pytest.raises(BuildError, match="row 1: .*clips/2.wav.*does not exist"):
        source_media.build("hf_parquet", path, tmp_path / "fail")
    source_media.build("hf_parquet", path, tmp_path / "out", on_error="skip", error_budget=0.5)
    found = source_media.codes_in_shards(tmp_path / "out")
    assert list(found) == ["x/0"]
    assert np.array_equal(found["x/0"][1], source_media.codes_of(Modality.SPEECH, sound(1)))


WRONG_COLUMNS = [
    ({"image": media(b"x")}, (), "no column that is a string and called text, .*for the text; its columns are image"),
    ({"caption": ["x"]}, (), "no column that is a struct of bytes and path for the media.*--columns=media:NAME"),
    ({"a": media(b"x"), "b": media(b"x"), "text": ["x"]}, (), "more than one column .a, b. that is a struct"),
    ({"a": media(b"x"), "text": ["x"]}, (("text", "words"),), "no column 'words' for the text; .*text .string."),
    ({"a": media(b"x"), "text": ["x"]}, (("media", "text"),), "column 'text' cannot be the media"),
    ({"a": media(b"x"), "text": ["x"]}, (("id", "name"),), "no column 'name' for the id"),
    ({"a": pa.array([{"bytes": "x"}]), "text": ["x"]}, (), "no column that is a struct of bytes.*a .struct<bytes: str"),
    ({"a": media(b"mystery"), "text": ["x"]}, (), "row 0: column 'a' begins with neither a picture nor a sound"),
]


@pytest.mark.parametrize("columns,named,message", WRONG_COLUMNS)
def test_wrong_columns_are_named_before_the_work(tmp_path, columns, named, message):
    path = write(tmp_path / "x.parquet", columns)
    with pytest.raises(DocumentError, match=f"x.parquet: {message}"):
        HFParquetSource(path, SourceOptions(columns=named))


def test_a_file_with_other_columns_gives_errors_row_by_row(tmp_path):
    captions(tmp_path / "a.parquet", 2)
    write(tmp_path / "b.parquet", {"image": media(picture(1), picture(2)), "label": [1, 2]})
    source = HFParquetSource(tmp_path)
    assert len(source) == 4 and [r.id for r in records(source)] == ["a/0", "a/1", "b/0", "b/1"]
    assert [
        f"b.parquet: row {i}: no column that is a string" in reason for i, reason in enumerate(reasons(source))
    ] == [True] * 2


BAD = {
    "no medium": ((None, "x"), "malformed record", "neither bytes nor a path"),
    "undecodable": ((picture(3)[:50], "x"), "unusable image", "image"),
    "bomb": ((source_media.bomb(), "x"), "unusable image", "900000000 pixels"),
    "empty text": ((picture(3), "  "), "malformed record", "empty or missing caption"),
    "no text": ((picture(3), None), "malformed record", "empty or missing caption None"),
    "same id": ((picture(3), "x", "0"), "duplicate id", "that of record 1"),
    "no id": ((picture(3), "x", None), "malformed record", "no id in column 'name'"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, name):
    (value, text, *given), kind, message = BAD[name]
    names = ["0", "1", *(given or ["2"])]
    columns = {"image": media(picture(1), picture(2), value), "caption": ["a", "b", text], "name": names}
    path = write(tmp_path / "x.parquet", columns)
    options = {"options": SourceOptions(columns=(("id", "name"),))}
    with pytest.raises(BuildError, match=f"(?s)x.parquet: row 2: .*{message}.*on_error=skip"):
        source_media.build("hf_parquet", path, tmp_path / "fail", **options)
    options |= {"on_error": "skip", "error_budget": 0.4}
    counts = source_media.build("hf_parquet", path, tmp_path / "skip", **options).splits["train"]
    assert counts["dropped"] == {kind: 1} and counts["documents"] == 2 and counts["read"] == 3


def test_columns_may_be_of_related_types(tmp_path):
    large = pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
    rows = [{"bytes": picture(1), "path": "1.png"}, None, {"bytes": b"", "path": "2.png"}, {"bytes": b"", "path": None}]
    caption = pa.array(["a", "b", "a", "c"]).dictionary_encode()
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": pa.array(rows, large), "caption": caption}), path)
    first, no_struct, by_path, nothing = records(HFParquetSource(path))
    assert first.document.media()[0].value == picture(1) and "a" in texts(first)
    assert by_path.document.media()[0].value == str(tmp_path / "2.png")
    assert all("neither bytes nor a path" in record.error for record in (no_struct, nothing))


def test_a_path_that_is_a_number_is_none(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.int64()})
    rows = pa.array([{"bytes": None, "path": 7}, {"bytes": picture(1), "path": 8}], kind)
    without, found = records(HFParquetSource(write(tmp_path / "x.parquet", {"image": rows, "text": ["a", "b"]})))
    assert "row 0: no medium in column 'image': neither bytes nor a path" in without.error
    assert found.document.media()[0].value == picture(1)


def test_a_cut_file_is_one_record_and_the_others_stay(tmp_path):
    for name in "abc":
        captions(tmp_path / f"{name}.parquet", 2)
    data = (tmp_path / "b.parquet").read_bytes()
    for broken in (data[: len(data) // 2], data[:-4], b"PAR1", b""):
        (tmp_path / "b.parquet").write_bytes(broken)
        source = HFParquetSource(tmp_path)
        assert list(source.ids()) == ["a/0", "a/1", None, "c/0", "c/1"]
        assert len(reasons(source)) == 1 and "b.parquet: no whole parquet file" in reasons(source)[0]
    with pytest.raises(BuildError, match="(?s)b.parquet: no whole parquet file.*on_error=skip"):
        source_media.build("hf_parquet", tmp_path, tmp_path / "out")


def test_a_file_that_changes_or_goes_away_is_an_error_of_its_rows(tmp_path):
    source = HFParquetSource(captions(tmp_path / "x.parquet", 6))
    captions(tmp_path / "x.parquet", 6, group=3)
    assert len(reasons(source)) == 6 and "x.parquet: row 0: the file has changed" in reasons(source)[0]
    (tmp_path / "x.parquet").unlink()
    assert len(reasons(source)) == 6 and "cannot be read any more" in reasons(source)[5]


def test_a_corrupt_row_group_costs_its_own_rows_only(tmp_path):
    path = captions(tmp_path / "x.parquet", 6)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    source = HFParquetSource(path)
    good = [record.id for record in records(source) if record.document is not None]
    assert good == ["x/0", "x/1", "x/4", "x/5"] and len(records(source)) == len(source) == 6
    assert [f"x.parquet: row {2 + i}: row group 1 cannot be read" in r for i, r in enumerate(reasons(source))] == [
        True
    ] * 2


def test_a_string_that_is_not_utf8_costs_its_row_only(tmp_path):
    text = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
    source = HFParquetSource(write(tmp_path / "x.parquet", {"m": media(*[picture(i) for i in range(3)]), "text": text}))
    assert [record.document is None for record in records(source)] == [False, True, False]
    assert "x.parquet: row 1: a string that is not UTF-8 (byte 0)" in reasons(source)[0]


# Many row groups, as huggingface/datasets writes media; or one of many pages: a page is the least that can be read.
@pytest.mark.parametrize("written", ({"row_group_size": 50}, {"write_batch_size": 10}))
def test_memory_does_not_grow_with_the_file(tmp_path, written):
    peaks, noise = [], np.random.default_rng(0)
    for count in (200, 800):
        rows = [{"bytes": b"\x89PNG" + noise.bytes(60_000), "path": None} for _ in range(count)]
        path = tmp_path / f"{count}.parquet"
        pq.write_table(
            pa.table({"image": pa.array(rows, MEDIA), "text": ["x"] * count}), path, compression="none", **written
        )
        source, pool, usual = HFParquetSource(path), pa.system_memory_pool(), pa.default_memory_pool()
        pa.set_memory_pool(pool)
        try:
            peaks.append(max(pool.bytes_allocated() for _ in source.read(0, count)))
        finally:
            pa.set_memory_pool(usual)
    assert 500_000 < peaks[1] < 1.2 * peaks[0] and peaks[1] < 12_000_000  # the larger file has 48 MB


def test_digest_follows_the_files(tmp_path):
    path = captions(tmp_path / "x.parquet", 2)
    first = open_source("hf_parquet", path).digest
    captions(path, 2)
    assert open_source("hf_parquet", path).digest == first
    captions(path, 2, first=1)
    assert open_source("hf_parquet", path).digest != first
