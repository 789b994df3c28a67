"""Tars of pictures and texts: real codecs to equal codes, places of records, cut and corrupt tars, bad records."""

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import source_media
from source_media import picture, reasons, records, sound, texts, toy

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.vocabulary import Modality
from data_pipelines import build_shards
from data_pipelines.dataset_info import read_info
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.base import duplicates
from data_pipelines.sources.webdataset import WebDatasetSource

FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """members: (name, bytes), in order."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard_members(shard, count):
    """What img2dataset writes of `count` pictures: the medium, the caption, and the facts."""
    for i in range(count):
        key, (suffix, format) = f"{shard:05d}{i:04d}", FORMATS[i % 3]
        facts = {"caption": f"a picture {i}", "key": key, "status": "success", "width": 20, "height": 16}
        yield f"{key}.{suffix}", picture(100 * shard + i, format)
        yield f"{key}.txt", f"a picture {i}".encode()
        yield f"{key}.json", json.dumps(facts).encode()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "laion"
    root.mkdir()
    for shard in range(2):
        write_tar(root / f"{shard:05d}.tar", shard_members(shard, 3))
        (root / f"{shard:05d}.parquet").write_bytes(b"not read")
        (root / f"{shard:05d}_stats.json").write_text("{}")
    return root


def test_shards_hold_the_codes_of_the_pictures(folder, tmp_path):
    options = SourceOptions(tasks=(("caption", 1), ("t2i", 1)), instructions=True, seed=1)
    info = source_media.build("webdataset", folder, tmp_path / "out", options=options)
    assert info.splits["train"]["build"]["source_options"]["tasks"] == {"caption": 1, "t2i": 1}
    found = source_media.codes_in_shards(tmp_path / "out")
    assert len(found) == 6 and {task for task, _ in found.values()} == {"caption", "t2i"}
    for shard in range(2):
        for i in range(3):
            codes = source_media.codes_of(Modality.IMAGE, picture(100 * shard + i, FORMATS[i][1]))
            assert np.array_equal(found[f"{shard:05d}/{shard:05d}{i:04d}"][1], codes)
    with pytest.raises(BuildError, match="source_options"):
        source_media.build("webdataset", folder, tmp_path / "out", options=SourceOptions(seed=2))


def test_the_command_takes_the_flags(folder, tmp_path):
    command = ["--source=webdataset", f"--input={folder}", f"--output={tmp_path / 'out'}", "--records_per_shard=4"]
    build_shards.main([*command, "--tasks=t2i:2", "--instructions", "--prompt_dropout=0.5", "--source_seed=3"])
    entry = read_info(tmp_path / "out").splits["train"]
    assert entry["by_task"].keys() == {"t2i"} and entry["documents"] == 6
    settings = {"tasks": {"t2i": 2.0}, "instructions": True, "prompt_dropout": 0.5, "seed": 3, "columns": {}}
    assert entry["build"]["source_options"] == settings
    lengths = sorted(len(doc.tokens) for doc in read_documents(tmp_path / "out", "train"))
    assert lengths[0] == toy().vocabulary.image_length + 4 < lengths[-1]  # <bos> picture <eos>: a dropped prompt


def test_speech_may_stand_in_tars_too(tmp_path):
    members = [("a.flac", sound(1, "FLAC")), ("a.txt", b"one"), ("b.opus", sound(2, "OGG", "OPUS")), ("b.txt", b"two")]
    path = write_tar(tmp_path / "s.tar", members)
    source_media.build("webdataset", path, tmp_path / "out")
    found = source_media.codes_in_shards(tmp_path / "out")
    for name, data in (("s/a", sound(1, "FLAC")), ("s/b", sound(2, "OGG", "OPUS"))):
        assert found[name][0] in ("asr", "tts")
        assert np.array_equal(found[name][1], source_media.codes_of(Modality.SPEECH, data))


@pytest.mark.parametrize("format", (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
def test_records_come_in_order_from_any_place(tmp_path, format):
    long = "a folder with a long name " * 5  # beyond 100 bytes: headers of several blocks
    members = []
    for i in range(30):
        name = (
            f"{long.strip()}/übung {i:03d}" if i % 3 == 0 and format != tarfile.USTAR_FORMAT else f"./sub.dir/{i:03d}"
        )
        members += [
            (f"{name}.seg.png", b"other"),
            (f"{name}.PNG", bytes([i]) * (i * 100)),
            (f"{name}.txt", b"text %d" % i),
        ]
    source = WebDatasetSource(write_tar(tmp_path / "t.tar", members, format))
    assert len(source) == 30 and len(set(source.ids())) == 30
    for start, stop in ((0, 30), (7, 9), (29, 40), (5, 5)):
        some = list(source.read(start, stop))
        assert [record.index for record in some] == list(range(start, min(stop, 30)))
        for record in some:
            assert record.id == record.document.id == list(source.ids())[record.index]
            assert record.document.media()[0].value == bytes([record.index]) * (record.index * 100)
            assert f"text {record.index}" in texts(record)


def test_folders_and_other_links_are_passed_over_and_subfolders_read(tmp_path):
    (tmp_path / "sub").mkdir()
    with tarfile.open(tmp_path / "sub" / "x.tar", "w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "d"), (tarfile.SYMTYPE, "d/0.link")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            tar.addfile(info)
        for name, data in (("d/0.png", picture(0)), ("d/0.txt", b"zero")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (tmp_path / ".hidden.tar").write_bytes(b"x")
    assert [r.id for r in records(WebDatasetSource(tmp_path))] == ["sub/x/d/0"]


def test_the_caption_of_the_json_stands_in_where_there_is_no_txt(tmp_path):
    members = [
        ("a.jpg", b"x"),
        ("a.json", b'{"caption": "from json"}'),
        ("b.jpg", b"x"),
        ("b.json", b'{"caption": null}'),
    ]
    source = WebDatasetSource(write_tar(tmp_path / "t.tar", members))
    assert "from json" in texts(records(source)[0])
    assert "b: record 't/b': empty or missing caption None" in reasons(source)[0]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    members = [("a.png", picture(0)), ("a.txt", "\ufeffa red ball".encode())]
    members += [("b.png", picture(1)), ("b.json", '\ufeff{"caption": "a blue ball"}'.encode())]
    options = SourceOptions(tasks=(("caption", 1),))
    found = records(WebDatasetSource(write_tar(tmp_path / "t.tar", members), options))
    assert [texts(record) for record in found] == [["a red ball"], ["a blue ball"]]


def test_hidden_files_of_macos_part_no_record(tmp_path):
    members = []
    for name, data in shard_members(0, 3):
        members += [(f"./._{name}", b"\0\5\x16\7"), (f"./{name}", data)]
    members += [("sub/.DS_Store", b"x"), ("sub/a.png", picture(9)), ("sub/._a.txt", b"x"), ("sub/a.txt", b"nine")]
    source = WebDatasetSource(write_tar(tmp_path / "t.tar", members))
    assert [r.id for r in records(source)] == [*(f"t/{i:09d}" for i in range(3)), "t/sub/a"] and not reasons(source)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_medium_that_is_only_a_link_is_told(tmp_path, kind):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("a.png", picture(0)), ("a.txt", b"zero"), ("b.png", None), ("b.txt", None)):
            info = tarfile.TarInfo(name)
            info.size = len(data or b"")
            info.type, info.linkname = (tarfile.REGTYPE, "") if data else (kind, name.replace("b", "a"))
            tar.addfile(info, io.BytesIO(data or b""))
    source = WebDatasetSource(tmp_path / "t.tar")
    assert list(source.ids()) == ["t/a", "t/b"]
    assert len(reasons(source)) == 1 and "b.txt is but a link to a.txt; pack the file itself" in reasons(source)[0]


# -- damaged tars --------------------------------------------------------------------------------------------
def test_a_tar_cut_anywhere_says_so_and_keeps_what_stands_before(tmp_path):
    whole = write_tar(tmp_path / "whole.tar", shard_members(0, 5), tarfile.USTAR_FORMAT).read_bytes()
    source = WebDatasetSource(tmp_path / "whole.tar")
    assert reasons(source) == [] and len(source) == 5
    ends = [int(block) * 512 for block in source._tars[0].blocks]
    for cut in range(0, ends[-1] + 1, 768):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:cut])
        source = WebDatasetSource(path)
        complete = sum(end <= cut for end in ends[1:])
        good = [record for record in records(source) if record.document is not None]
        assert len(good) >= complete and len(good) <= complete + 1  # facts may be lost behind picture and text
        assert [record.id for record in good] == [f"cut/{i:09d}" for i in range(len(good))]
        why = reasons(source)  # between two members, the record without its text is one more
        assert len(why) in (1, 2) and all(f"{path}: " in e and f"ends at byte {cut}" in e for e in why)
        assert len(list(source.ids())) == len(source)


def test_a_cut_tar_stops_the_build_or_costs_one_record(folder, tmp_path):
    path = folder / "00000.tar"
    cut = int(WebDatasetSource(path)._tars[0].blocks[1]) * 512 + 600  # within the second picture
    path.write_bytes(path.read_bytes()[:cut])
    message = f"(?s)00000.tar: 000000001: the tar ends at byte {cut} within .*000000001.png.*on_error=skip"
    with pytest.raises(BuildError, match=message):
        source_media.build("webdataset", folder, tmp_path / "fail")
    counts = source_media.build("webdataset", folder, tmp_path / "skip", on_error="skip", error_budget=0.2).splits[
        "train"
    ]
    assert counts["dropped"] == {"malformed record": 1} and counts["documents"] + 1 == counts["read"] == len(
        open_source("webdataset", folder)
    )
    with pytest.raises(BuildError, match="more than the budget"):
        source_media.build("webdataset", folder, tmp_path / "strict", on_error="skip", error_budget=0.0)


@pytest.mark.parametrize("how", ("flipped", "wiped"))
def test_a_damaged_header_loses_nothing_quietly(tmp_path, how):
    path = write_tar(tmp_path / "t.tar", shard_members(0, 5), tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    offset = int(WebDatasetSource(path)._tars[0].blocks[2]) * 512
    data[offset : offset + 512] = (
        bytes(512) if how == "wiped" else bytes([data[offset] ^ 1]) + data[offset + 1 : offset + 512]
    )
    path.write_bytes(data)
    source = WebDatasetSource(path)
    assert len(source) == 3 and len(reasons(source)) == 1
    assert ("more behind the mark" if how == "wiped" else "cut or corrupt at byte") in reasons(source)[0]


@pytest.mark.parametrize("size", [b"-0000001000", b"-0000003000", b"-0000000001"])
def test_a_size_below_zero_does_not_lead_back(tmp_path, size):
    """-512 and -1536 bytes: the next header would be the same one, or the first of the tar, again and again."""
    members = [("0.png", b"x"), ("1.png", b"x")]
    path = write_tar(tmp_path / "t.tar", members, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136], header[148:156] = size.ljust(12, b"\0"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)
    source = WebDatasetSource(path)
    assert len(source) == 2 and "cut or corrupt at byte 1024: a member of less than no bytes" in reasons(source)[1]


def test_what_is_no_tar_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b\x08" + bytes(range(256)) * 10)
    assert "a.tar: after its last record: the tar is cut or corrupt at byte 0" in reasons(WebDatasetSource(tmp_path))[0]
    (tmp_path / "a.tar").write_bytes(b"")
    assert "ends at byte 0" in reasons(WebDatasetSource(tmp_path))[0]
    for wrong, message in ((tmp_path / "none", "no such file"), (tmp_path.parent / "empty", "no such")):
        with pytest.raises(DocumentError, match=message):
            WebDatasetSource(wrong)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DocumentError, match=r"no \*.tar file"):
        WebDatasetSource(tmp_path / "empty")


def test_a_tar_that_changes_or_goes_away_is_an_error_of_its_records(tmp_path):
    path = write_tar(tmp_path / "t.tar", shard_members(0, 2))
    source = WebDatasetSource(path)
    write_tar(path, shard_members(7, 2))
    assert all("has changed" in reason for reason in reasons(source)) and len(reasons(source)) == 2
    path.unlink()
    assert len(reasons(source)) == 2 and "cannot be read" in reasons(source)[0]


# -- bad records ---------------------------------------------------------------------------------------------
BAD = {
    "no text": ([("bad.png", picture(1))], "malformed record", "no text: neither"),
    "no picture": ([("bad.txt", b"x")], "malformed record", "0 media"),
    "two pictures": ([("bad.png", b"x"), ("bad.jpg", b"x"), ("bad.txt", b"x")], "malformed record", "2 media"),
    "one name twice": ([("bad.png", picture(1)), ("bad.txt", b"x")] * 2, "malformed record", "bad.png stands .* twice"),
    "empty text": ([("bad.png", picture(1)), ("bad.txt", b" \n")], "malformed record", "empty or missing caption"),
    "not UTF-8": ([("bad.png", picture(1)), ("bad.txt", b"\xff")], "malformed record", "not UTF-8 .byte 0"),
    "not JSON": ([("bad.png", picture(1)), ("bad.json", b"{")], "malformed record", "json is malformed"),
    "nested JSON": ([("bad.png", picture(1)), ("bad.json", b"[" * 99999)], "malformed record", "json is malformed"),
    "no picture's bytes": ([("bad.png", b""), ("bad.txt", b"x")], "unusable image", "image"),
    "undecodable": ([("bad.png", picture(1)[:60]), ("bad.txt", b"x")], "unusable image", "image"),
    "bomb": ([("bad.png", source_media.bomb()), ("bad.txt", b"x")], "unusable image", "900000000 pixels"),
    "not a sound": ([("bad.mp3", b"this is text"), ("bad.txt", b"x")], "unusable speech", "cannot be decoded"),
    "same name": ([("000000000.png", picture(1)), ("000000000.txt", b"x")], "duplicate id", "that of record 1"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_record_is_named_or_skipped_and_counted(tmp_path, name):
    members, kind, message = BAD[name]
    path = write_tar(tmp_path / "t.tar", [*shard_members(0, 2), *members])
    with pytest.raises(BuildError, match=f"(?s)t.tar: .*{message}.*on_error=skip"):
        source_media.build("webdataset", path, tmp_path / "fail")
    counts = source_media.build("webdataset", path, tmp_path / "skip", on_error="skip", error_budget=0.4).splits[
        "train"
    ]
    assert counts["dropped"] == {kind: 1} and counts["documents"] == 2 and counts["read"] == 3


def test_options_for_tables_are_refused(folder):
    with pytest.raises(DocumentError, match="does not take --columns"):
        WebDatasetSource(folder, SourceOptions(columns=(("text", "x"),)))


# -- size ----------------------------------------------------------------------------------------------------
def test_listing_holds_few_bytes_a_record_and_reading_one_record(tmp_path):
    count = 4000

    def members():
        for i in range(count):
            yield f"{i:09d}.jpg", b"y" * 2000
            yield f"{i:09d}.txt", b"x"

    path = write_tar(tmp_path / "t.tar", members(), tarfile.USTAR_FORMAT)
    source = WebDatasetSource(path)
    assert len(source) == count and duplicates(source) == {}
    tar = source._tars[0]
    assert tar.blocks.nbytes + len(tar.names) < 8 * count
    tracemalloc.start()
    assert sum(len(record.document.media()[0].value) for record in source.read(0, count)) == 2000 * count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # the keys of one tar and a record


def test_digest_follows_what_is_listed(folder):
    first = WebDatasetSource(folder).digest
    assert WebDatasetSource(folder).digest == first
    write_tar(folder / "00001.tar", shard_members(1, 2))
    assert WebDatasetSource(folder).digest != first
