"""AnyInstruct conversations: dialogues in both shapes of file, media of all codecs, loss on answers, bad records."""

import json
import tracemalloc

import dialogue_corpus as corpus
import pytest

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.base import duplicates
from data_pipelines.sources.json_stream import ArrayIndex


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers()


def says(role, message="", **media):
    return {"role": role, "message": message} | media


def conversations(root):
    """Three dialogues with media of seven codecs below `root`."""
    for name, seed in (("a.wav", 0), ("b.flac", 1), ("c.mp3", 2), ("d.ogg", 3)):
        corpus.sound(root / name, seed, subtype="OPUS" if name == "d.ogg" else None)
    for name, seed in (("x.png", 0), ("y.jpg", 1), ("z.webp", 2)):
        corpus.picture(root / name, seed)
    return [
        {
            "id": "spoken",
            "chat": [  # as in speech_conv/metadata.jsonl
                says("USER", "how are you", speech="a.wav"),
                says("AnyGPT", "I am fine.", speech="b.flac"),
                says("USER", "and now", speech="c.mp3"),
                says("AnyGPT", "Still fine."),
            ],
        },
        {
            "id": 7,
            "conversation": [
                [says("user", "draw a house", speech="d.ogg"), says("assistant", "Here it is.", image="x.png")],
                [says("user", "Another like these?", images=["y.jpg", "z.webp"]), says("assistant", "No.")],
            ],
        },
        {"conversation": [[says("user", 'Say "]}, [{\\ in words: {é'), says("assistant", "Brackets.")]]},
    ]


def write_array(path, records, indent=None):
    path.write_text(json.dumps(records, indent=indent))
    return path


def write_lines(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_dialogues_become_shards_with_the_media_s_own_tokens(tmp_path, tokenizers):
    records = conversations(tmp_path)
    info = corpus.build("any_instruct", write_lines(tmp_path / "all.jsonl", records), tmp_path / "out", tokenizers)
    documents = {d.id: d for d in read_documents(tmp_path / "out", "train", tokenizers.vocabulary)}
    assert {name: (d.task, d.group) for name, d in documents.items()} == {
        "all.jsonl/spoken": ("chat", "speech"),
        "all.jsonl/7": ("chat_image", "speech"),
        "all.jsonl/3": ("chat", "text"),
    }
    assert info.splits["train"]["documents"] == 3
    speech, image = Modality.SPEECH, Modality.IMAGE
    media = {
        "all.jsonl/spoken": [(speech, "a.wav"), (speech, "b.flac"), (speech, "c.mp3")],
        "all.jsonl/7": [(speech, "d.ogg"), (image, "x.png"), (image, "y.jpg"), (image, "z.webp")],
        "all.jsonl/3": [],
    }
    for name, expected in media.items():
        found = corpus.media_codes(documents[name], tokenizers.vocabulary)
        assert found == [(m, corpus.direct_codes(tokenizers, m, str(tmp_path / file))) for m, file in expected]
    corpus.check_only_answers_are_trained_on(tmp_path / "out", tmp_path / "packed", tokenizers)


def test_what_the_user_speaks_is_not_read(tmp_path):
    source = open_source("any_instruct", write_lines(tmp_path / "all.jsonl", conversations(tmp_path)))
    spoken, drawn, written = (r.document for r in source.read(0, 3))
    assert [p.modality for p in spoken.turns[0].parts] == [Modality.SPEECH]
    assert [p.modality for p in spoken.turns[1].parts] == [Modality.TEXT, Modality.SPEECH]
    assert spoken.meta == {"transcripts": ["how are you", "and now"]}
    assert [p.modality for p in drawn.turns[1].parts] == [Modality.TEXT, Modality.IMAGE]
    assert [p.modality for p in drawn.turns[2].parts] == [Modality.IMAGE, Modality.IMAGE, Modality.TEXT]
    assert written.turns[0].parts[0].value == 'Say "]}, [{\\ in words: {é' and not written.meta


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_the_same_as_lines(indent, tmp_path):
    records = conversations(tmp_path)
    lines = open_source("any_instruct", write_lines(tmp_path / "a.jsonl", records))
    array = open_source("any_instruct", write_array(tmp_path / "b.json", records, indent))
    assert len(array) == 3 and list(array.ids()) == ["b.json/spoken", "b.json/7", "b.json/3"]
    for one, other in zip(lines.read(0, 3), array.read(0, 3), strict=True):
        assert one.document.turns == other.document.turns
    assert [r.id for r in array.read(1, 9)] == ["b.json/7", "b.json/3"]
    assert next(array.read(1, 2)).where.endswith("b.json: record 2")


def test_a_folder_of_files(tmp_path):
    records = conversations(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    write_array(folder / "b.json", records[:2])
    write_lines(folder / "a.jsonl", [*records[1:], records[1], records[0] | {"id": None}])
    source = open_source("any_instruct", folder)
    names = ["a.jsonl/7", "a.jsonl/2", "a.jsonl/7", "a.jsonl/4", "b.json/spoken", "b.json/7"]
    assert list(source.ids()) == names and duplicates(source) == {2: 0}  # ids begin anew in each file
    assert [(r.index, r.id) for r in source.read(1, 9)] == list(enumerate(names))[1:]


def test_media_lie_beside_their_own_file(tmp_path):
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        chat = [says("user", "x", speech="s.wav"), says("assistant", "y")]
        write_lines(tmp_path / part / "a.jsonl", [{"chat": chat}])
    paths = [r.document.media()[0].value for r in open_source("any_instruct", tmp_path).read(0, 2)]
    assert paths == [str(tmp_path / part / "s.wav") for part in ("one", "two")]


GOOD = [says("user", "a"), says("assistant", "b")]
BAD = {
    "no dialogue": ({"id": 1}, "exactly one of conversation, conversations, chat"),
    "two dialogues": ({"chat": GOOD, "conversation": [GOOD]}, "exactly one of"),
    "words": ({"chat": "hello"}, "chat must be a list of messages"),
    "no role": ({"chat": [{"message": "a"}]}, "message 1: must be an object with role and message"),
    "unknown role": ({"chat": [says("system", "a"), *GOOD]}, "message 1: unknown role 'system'; known roles: user"),
    "empty": ({"chat": [GOOD[0], says("assistant", "  ")]}, "message 2: is empty: no words and no media"),
    "twice the user": ({"chat": [GOOD[0], *GOOD]}, "message 2 is the user's; user and assistant must take turns"),
    "assistant first": ({"chat": GOOD[::-1]}, "message 1 is the assistant's"),
    "no answer": ({"chat": [*GOOD, GOOD[0]]}, "the last message is the user's"),
    "music": ({"chat": [says("user", "a", music="m.mp3"), GOOD[1]]}, "message 1: has music"),
    "codes": ({"chat": [says("user", "<sosp><🗣️1><eosp> go on"), GOOD[1]]}, "holds codes of AnyGPT's tokenizers"),
    "text of numbers": ({"chat": [says("user", 3), GOOD[1]]}, "text that is no string"),
    "path of numbers": ({"chat": [says("user", "a", image=3), GOOD[1]]}, "image must be a path or a list of paths"),
    "a list": ([1], "must be a JSON object, not list"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named(name, tmp_path):
    record, message = BAD[name]
    path = write_lines(tmp_path / "c.jsonl", [{"chat": GOOD}, record])
    good, bad = open_source("any_instruct", path).read(0, 2)
    assert not good.error and bad.document is None
    assert message in bad.error and "c.jsonl: line 2" in bad.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"chat": []}, {"chat"', r"byte 22: malformed JSON .*; was it copied or downloaded whole"),
        ('[{"chat": []}, {"cha', r"byte 16: malformed JSON \(Unterminated string"),
        ('[{"chat": []}', "byte 13: malformed JSON: ',' expected, not the end"),
        ('[{"chat": []}] {"a": 1}', "byte 15: something follows the end of the JSON array"),
        ('[{"chat": []},, {"a": 1}]', "byte 14: malformed JSON"),
        ("", "is empty"),
        (" \n ", "is empty"),
    ],
)
def test_a_broken_array_is_refused_at_once(text, message, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DocumentError, match=f"c.json: .*{message}"):
        open_source("any_instruct", tmp_path / "c.json")


@pytest.mark.parametrize("damaged", ['{"chat" [1, "],"]}', '{"chat": nil}', "x", '{"chat": "a\tb"}', "9" * 5000])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n "])
def test_a_malformed_item_of_an_array_is_one_bad_record(damaged, start, tmp_path):
    good = json.dumps({"chat": GOOD})
    (tmp_path / "c.json").write_text(f"{start}[{good}, {damaged},{good}]", "utf-8")
    first, bad, last = open_source("any_instruct", tmp_path / "c.json").read(0, 3)
    assert "c.json: record 2: malformed JSON" in bad.error and not first.error and not last.error


def test_missing_files_and_options(tmp_path):
    with pytest.raises(DocumentError, match="no such file"):
        open_source("any_instruct", tmp_path / "none.json")
    with pytest.raises(DocumentError, match="has no .*.jsonl or .*.json file"):
        open_source("any_instruct", tmp_path)
    path = write_lines(tmp_path / "c.jsonl", [{"chat": GOOD}])
    with pytest.raises(DocumentError, match="any_instruct does not take --instructions"):
        open_source("any_instruct", path, SourceOptions(instructions=True))


def test_media_that_cannot_be_used(tmp_path, tokenizers):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.mp3").write_bytes(corpus.sound(None, 0, "MP3")[:40])
    bad = [{"speech": "gone.wav"}, {"image": "bad.png"}, {"speech": "bad.mp3"}]
    records = [{"id": str(i), "chat": [says("user", "a", **media), GOOD[1]]} for i, media in enumerate(bad)]
    path = write_lines(tmp_path / "c.jsonl", [{"id": "good", "chat": GOOD}, *records])
    info = corpus.build("any_instruct", path, tmp_path / "out", tokenizers, on_error="skip", error_budget=0.75)
    assert info.splits["train"]["dropped"] == {"unusable speech": 2, "unusable image": 1}
    details = " ".join(d["detail"] for d in info.splits["train"]["dropped_list"])
    assert all(name in details for name in ("gone.wav", "bad.png", "bad.mp3"))
    with pytest.raises(BuildError, match="c.jsonl: line 2.*gone.wav"):
        corpus.build("any_instruct", path, tmp_path / "fail", tokenizers)


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(count):
        path = write_array(tmp_path / f"{count}.json", [{"chat": [says("user", "y" * 5000), GOOD[1]]}] * count)
        tracemalloc.start()
        index = ArrayIndex(path)
        total = sum(len(data) for _, _, data in index.items(0, index.count))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert index.count == count and total > 5000 * count
        return highest

    assert peak(4000) < peak(800) + 4000 * 100  # both larger than what is read at once
