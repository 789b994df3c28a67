"""The GigaSpeech manifest: segments of long recordings, subsets, tags, damaged manifests of any size."""

import json
import tracemalloc

import numpy as np
import pytest
import soundfile
import speech_trees as trees

from ar_omni_jax.documents import DocumentError
from data_pipelines.shard_builder import BuildError
from data_pipelines.sound import SoundSegment
from data_pipelines.sources import SourceOptions, json_stream, open_source
from data_pipelines.sources.gigaspeech import spoken


def segment(sid, begin, end, text, *subsets):
    names = [f"{{{name}}}" for name in subsets or ("XL",)]
    return {"sid": sid, "speaker": "N/A", "begin_time": begin, "end_time": end, "text_tn": text, "subsets": names}


def make_manifest():
    """Two recordings of 5 and 4 s, five segments to learn from and one of TEST."""
    first = [
        segment("POD1_S0", 0.5, 1.2, "AS <COMMA> IT WERE <PERIOD>", "XL", "M"),
        segment("POD1_S1", 1.2, 1.9, "IS IT <QUESTIONMARK>"),
        segment("POD1_S2", 4.4, 5.01, "THÉ END <EXCLAMATIONPOINT>"),
    ]
    second = [
        segment("YOU1_S0", 0, 0.6, "FROM THE START", "XL", "M"),
        segment("YOU1_S1", 1, 1.5, "NOT TO BE LEARNED", "TEST"),
        segment("YOU1_S2", 3.1, 3.8, "LAST"),
    ]
    audios = [
        {"title": "A", "path": "audio/podcast/P0000/POD1.opus", "aid": "POD1", "subsets": ["{XL}"], "segments": first},
        {"title": "B", "path": "audio/youtube/P0000/YOU1.flac", "aid": "YOU1", "subsets": ["{XL}"], "segments": second},
    ]
    return {"dataset": "GigaSpeech", "language": "EN", "version": "v1.0.0", "audios": audios}


def write(root, manifest, **options):
    (root / "GigaSpeech.json").write_text(json.dumps(manifest, **{"ensure_ascii": False} | options))
    return root / "GigaSpeech.json"


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    root = tmp_path_factory.mktemp("giga")
    trees.write_sound(root / "audio/podcast/P0000/POD1.opus", trees.wave(3, 5))
    trees.write_sound(root / "audio/youtube/P0000/YOU1.flac", trees.wave(7, 4, 44100), 44100)
    return root


@pytest.fixture
def corpus(sounds, tmp_path):
    (tmp_path / "audio").symlink_to(sounds / "audio")
    return tmp_path


def expected(root):
    """{id: (transcript, segment)} of what is learned from `make_manifest`."""
    pod, you = (str(root / "audio" / p) for p in ("podcast/P0000/POD1.opus", "youtube/P0000/YOU1.flac"))
    return {
        "POD1_S0": ("AS, IT WERE.", SoundSegment(pod, 0.5, 1.2)),
        "POD1_S1": ("IS IT?", SoundSegment(pod, 1.2, 1.9)),
        "POD1_S2": ("THÉ END!", SoundSegment(pod, 4.4, 5.01)),
        "YOU1_S0": ("FROM THE START", SoundSegment(you, 0, 0.6)),
        "YOU1_S2": ("LAST", SoundSegment(you, 3.1, 3.8)),
    }


def test_segments_become_shards_with_their_own_codes(corpus, tmp_path):
    write(corpus, make_manifest())
    trees.build("gigaspeech", corpus, tmp_path / "out")
    trees.check_shards(tmp_path / "out", expected(corpus))
    samples, rate = soundfile.read(corpus / "audio/youtube/P0000/YOU1.flac", dtype="float32")
    speech = trees.tokenizers().speech
    cut = trees.read_sound(samples[: round(0.6 * rate)], rate)
    assert len(speech.encode(trees.read_sound(expected(corpus)["YOU1_S0"][1], rate))) == len(speech.encode(cut))


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": True}])
def test_records_come_in_order_from_any_place(corpus, style):
    source = open_source("gigaspeech", write(corpus, make_manifest(), **style), SourceOptions(tasks=(("asr", 1.0),)))
    wanted = expected(corpus)
    assert list(source.ids()) == list(wanted) and len(source) == 5
    for start, stop in ((0, 5), (1, 4), (2, 3), (3, 99), (5, 6)):
        records = list(source.read(start, stop))
        assert [(r.index, r.id) for r in records] == list(enumerate(wanted))[start:stop]
        for record in records:
            text, sound = wanted[record.id]
            assert record.document.turns[1].parts[0].value == text and record.document.media()[0].value == sound


def test_subsets_are_chosen_by_name(corpus):
    path = write(corpus, make_manifest())
    assert list(open_source("gigaspeech", f"{path}#M").ids()) == ["POD1_S0", "YOU1_S0"]
    assert list(open_source("gigaspeech", f"{corpus}#TEST").ids()) == ["YOU1_S1"]
    assert len({open_source("gigaspeech", p).digest for p in (path, f"{path}#M", f"{path}#XL")}) == 3
    with pytest.raises(DocumentError, match="no segment is in subset 'XS'; its subsets are M, TEST, XL"):
        open_source("gigaspeech", f"{path}#XS")


def test_tags_become_signs_and_unspoken_ones_nothing():
    assert spoken("WELL <COMMA> YES <PERIOD>") == "WELL, YES."
    assert spoken("<NOISE> HELLO") == "HELLO"
    assert spoken("<MUSIC>") == spoken("<SIL> <PERIOD>") == spoken(" ") == ""


# -- bad input -----------------------------------------------------------------------------------------------
BAD = {
    "nothing spoken": ({"text_tn": "<MUSIC>"}, "malformed record", "nothing is spoken in it, only <MUSIC>"),
    "empty transcript": ({"text_tn": ""}, "malformed record", "empty or missing transcript"),
    "no transcript": ({"text_tn": None}, "malformed record", "'text_tn' is None"),
    "no time": ({"end_time": "1.9"}, "malformed record", "'end_time' is '1.9'"),
    "backwards": ({"end_time": 1.1}, "unusable speech", r"POD1.opus \[1.2 s, 1.1 s\): a segment must begin"),
    "beyond the end": (
        {"end_time": 7.5},
        "unusable speech",
        "the file has only 5 s; was it copied or downloaded whole",
    ),
    "before the start": ({"begin_time": -1}, "unusable speech", "a segment must begin"),
    "the same name": ({"sid": "POD1_S0"}, "duplicate id", "'POD1_S0' is already that of record 1"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_segment_is_named_or_skipped_and_counted(corpus, tmp_path, name):
    change, kind, message = BAD[name]
    manifest = make_manifest()
    manifest["audios"][0]["segments"][1] |= change
    path = write(corpus, manifest)
    with pytest.raises(BuildError, match=f"(?s)GigaSpeech.json: recording POD1: segment POD1_S.*{message}.*=skip"):
        trees.build("gigaspeech", path, tmp_path / "fail")
    with pytest.raises(BuildError, match="more than the budget"):
        trees.build("gigaspeech", path, tmp_path / "budget", on_error="skip", error_budget=0)
    counts = trees.build("gigaspeech", path, tmp_path / "out", on_error="skip", error_budget=0.2).splits["train"]
    assert counts["dropped"] == {kind: 1} and counts["read"] == 5
    trees.check_shards(tmp_path / "out", {id: v for id, v in expected(corpus).items() if id != "POD1_S1"})


def test_missing_keys_are_all_named(corpus):
    manifest = make_manifest()
    manifest["audios"][0]["segments"][0] = {"subsets": ["{XL}"]}
    manifest["audios"][0]["segments"][1] = 3
    del manifest["audios"][1]["path"], manifest["audios"][1]["segments"][2]["sid"]
    manifest["audios"] += [{"aid": "POD9"}, None]
    records = list(open_source("gigaspeech", write(corpus, manifest)).read(0, 99))
    errors = [r.error for r in records]
    assert [bool(e) for e in errors] == [True, True, False, True, True, True, True]
    assert "'sid' is missing, 'begin_time' is missing, 'end_time' is missing, 'text_tn' is missing" in errors[0]
    assert "must be an object, not 3" in errors[1] and "the recording has no 'path'" in errors[3]
    assert "recording YOU1: segment number 3: 'sid' is missing, the recording has no 'path'" in errors[4]
    assert "recording POD9: it has no list 'segments'" in errors[5] and "recording ?" in errors[6]


def test_a_time_beyond_all_measure_is_one_bad_record(corpus):
    manifest = make_manifest()
    manifest["audios"][0]["segments"][1]["end_time"] = 10**400
    errors = [record.error for record in open_source("gigaspeech", write(corpus, manifest)).read(0, 5)]
    assert [bool(error) for error in errors] == [False, True, False, False, False] and "POD1_S1: a time" in errors[1]


def test_a_missing_or_damaged_recording_is_named(corpus, tmp_path):
    manifest = make_manifest()
    manifest["audios"][0]["path"] = "audio/none.opus"
    (corpus / "bad.flac").write_bytes((corpus / "audio/youtube/P0000/YOU1.flac").read_bytes()[:20000])
    manifest["audios"][1]["path"] = "bad.flac"
    path = write(corpus, manifest)
    counts = trees.build("gigaspeech", path, tmp_path / "out", on_error="skip", error_budget=1.0).splits["train"]
    details = [skipped["detail"] for skipped in counts["dropped_list"]]
    assert all("none.opus: does not exist" in detail for detail in details[:3]) and "bad.flac" in details[-1]
    assert counts["read"] == counts["documents"] + len(details) == 5 and len(details) >= 4


DAMAGED = {
    "cut": (lambda data: data[:700], r"byte \d+: malformed JSON.*downloaded whole"),
    "cut at its end": (lambda data: data[:-1], "byte .*'}' expected, not the end|malformed JSON"),
    "hole": (lambda data: data.replace(b'"audios":', b'"audios";', 1), r"byte \d+: malformed JSON: ':' expected"),
    "two": (lambda data: data * 2, "something follows the end"),
    "other": (lambda data: data.replace(b'"audios"', b'"videos"'), "no list 'audios'"),
    "empty": (lambda data: b"", "'{' expected, not the end"),
    "a list": (lambda data: b"[" + data + b"]", r"'{' expected, not '\['"),
    "deep": (lambda data: b'{"audios": ' + b"[" * 100_000, "nested beyond all measure|malformed"),
}


@pytest.mark.parametrize("name", sorted(DAMAGED))
@pytest.mark.parametrize("chunk", [64, json_stream.CHUNK])
def test_a_damaged_manifest_is_refused_with_the_place(corpus, monkeypatch, name, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    damage, message = DAMAGED[name]
    path = write(corpus, make_manifest())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DocumentError, match=f"GigaSpeech.json: .*({message})"):
        open_source("gigaspeech", path)


def test_a_malformed_recording_is_one_bad_record(corpus):
    path = write(corpus, make_manifest())
    whole = list(open_source("gigaspeech", path).read(0, 99))
    path.write_bytes(path.read_bytes().replace(b'"segments":', b'"segments";', 1))
    first, *others = open_source("gigaspeech", path).read(0, 99)
    assert "GigaSpeech.json: recording ?" in first.error and "Expecting ':'" in first.error
    assert [r.id for r in others] == [r.id for r in whole][-len(others) :] and len(others) >= 2


def test_a_missing_manifest_is_told(tmp_path):
    with pytest.raises(DocumentError, match="GigaSpeech.json: no such file; --input must name"):
        open_source("gigaspeech", tmp_path)


def test_an_entry_that_changed_since_is_told(corpus):
    path = write(corpus, make_manifest())
    source = open_source("gigaspeech", path)
    path.write_bytes(path.read_bytes().replace("É".encode(), b"\xff\xff"))
    errors = [record.error for record in source.read(0, 5)]
    assert all("not UTF-8 or has changed" in error for error in errors[:3]) and errors[3:] == ["", ""]


def test_a_manifest_that_vanished_is_told(corpus):
    path = write(corpus, make_manifest())
    source = open_source("gigaspeech", path)
    path.unlink()
    with pytest.raises(DocumentError, match="cannot be read any more"):
        list(source.read(0, 5))


# -- size ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_items_stand_where_they_are_said_to(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    items = [{"a": 'é\\"]}', "b": [1.5e3, None]}, 12, "x", [], -3.25, {"c": {}}]
    data = {"before": {"list": [1]}, "list": items, "after": "list"}
    path = tmp_path / "a.json"
    for indent in (None, 3):
        path.write_text("\ufeff" + json.dumps(data, ensure_ascii=False, indent=indent), "utf-8")
        places = [(first, last) for first, last, _ in json_stream.array_items(path, "list")]
        assert [json.loads(path.read_bytes()[first:last]) for first, last in places] == items


def test_memory_does_not_grow_with_the_manifest(tmp_path):
    peaks = []
    for count in (300, 3000):
        audio = {"path": "a.opus", "segments": [segment("s", 0, 1, "WORD " * 50) for _ in range(20)]}
        manifest = {"audios": [audio | {"aid": f"A{i}"} for i in range(count)]}
        path = write(tmp_path, manifest)
        del manifest
        tracemalloc.start()
        source = open_source("gigaspeech", path)
        assert sum(r.id == "s" for r in source.read(20 * count - 50, 20 * count)) == 50
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def test_a_recording_is_not_decoded_for_its_segment(corpus, monkeypatch):
    decoded = []
    read = soundfile.SoundFile.read

    def counting(self, frames=-1, **options):
        samples = read(self, frames, **options)
        decoded.append(len(samples))
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for _, sound in expected(corpus).values():
        trees.read_sound(sound, 16000)
    assert np.array_equal(decoded, [1.2 * 16000, 1.2 * 16000, 1.1 * 16000, 0.6 * 44100, 1.2 * 44100])
