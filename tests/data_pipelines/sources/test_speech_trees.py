"""Common Voice, LibriSpeech, MLS, LJSpeech and VCTK trees: from files to shards, order, and damaged input."""

import shutil
import tracemalloc

import pytest
import soundfile
import speech_trees as trees

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.common_voice import unquoted

COUNT = 5
LAYOUTS = sorted(trees.MAKERS)
LISTED = [name for name in LAYOUTS if name != "vctk"]  # transcripts in lines of a listing


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """{layout: (root, what its maker returned)}; not to be changed."""
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    return {name: (root, trees.MAKERS[name](root, COUNT)) for name, root in roots.items()}


@pytest.fixture
def copy(corpora, tmp_path):
    """A corpus of one's own, to be damaged: copy(layout) -> (path, expected, listing, first line)."""

    def make(name):
        root, (path, expected, listing, first) = corpora[name]
        mine = tmp_path / "corpus"
        shutil.copytree(root, mine)
        moved = {id: (text, mine / sound.relative_to(root)) for id, (text, sound) in expected.items()}
        return mine / path.relative_to(root), moved, mine / listing.relative_to(root), first

    return make


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_corpus_becomes_shards_with_the_codes_of_its_sounds(corpora, tmp_path, name):
    path, expected, _, _ = corpora[name][1]
    info = trees.build(trees.SOURCE[name], path, tmp_path)
    tasks = {d.task for d in trees.check_shards(tmp_path, expected)}
    assert tasks == {"asr", "tts"} and info.splits["train"]["by_group"]["speech"]["documents"] == COUNT


@pytest.mark.parametrize("name", LAYOUTS)
def test_records_come_in_order_from_any_place(corpora, name):
    path, expected, _, _ = corpora[name][1]
    source = open_source(trees.SOURCE[name], path, SourceOptions(tasks=(("asr", 1.0),)))
    ids = list(expected)
    assert len(source) == COUNT and list(source.ids()) == ids
    for start, stop in ((0, 5), (1, 4), (3, 9), (2, 2), (7, 9)):
        records = list(source.read(start, stop))
        assert [(r.index, r.id) for r in records] == list(enumerate(ids))[start:stop]
        assert [r.document.turns[1].parts[0].value for r in records] == [expected[r.id][0] for r in records]
        assert [r.document.media()[0].value for r in records] == [str(expected[r.id][1]) for r in records]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_digest_follows_the_transcripts(copy, corpora, name):
    path, _, listing, _ = copy(name)
    before = open_source(trees.SOURCE[name], path).digest
    assert before == open_source(trees.SOURCE[name], corpora[name][1][0]).digest  # the place does not matter
    listing.write_text(listing.read_text().replace("NUMBER 0", "NUMBER 7"))
    assert open_source(trees.SOURCE[name], path).digest != before


# -- bad input -----------------------------------------------------------------------------------------------
def check_refused_and_skipped(name, path, expected, bad, output, kind, message):
    """Record `bad` stops a build and is left out of another one, which is otherwise whole."""
    with pytest.raises(BuildError, match=f"(?s){message}.*on_error=skip"):
        trees.build(name, path, output / "fail")
    with pytest.raises(BuildError, match="more than the budget of 0.00%"):
        trees.build(name, path, output / "budget", on_error="skip", error_budget=0, records_per_shard=1)
    info = trees.build(name, path, output / "skip", on_error="skip", error_budget=0.5)
    counts = info.splits["train"]
    assert counts["dropped"] == {kind: len(bad)} and counts["read"] == counts["documents"] + len(bad)
    trees.check_shards(output / "skip", {id: value for id, value in expected.items() if id not in bad})


def missing(sound):
    sound.unlink()


def no_sound(sound):
    sound.write_text("this is no sound" * 20)


def cut_short(sound):
    data = sound.read_bytes()
    sound.write_bytes(data[: len(data) * 2 // 3])


def without_samples(sound):
    sound.write_bytes(b"")


@pytest.mark.parametrize("damage", [missing, no_sound, cut_short, without_samples])
@pytest.mark.parametrize("name", LAYOUTS)
def test_sounds_that_cannot_be_heard_are_named(copy, tmp_path, name, damage):
    path, expected, _, _ = copy(name)
    bad = [list(expected)[0], list(expected)[3]]
    for id in bad:
        damage(expected[id][1])
    if name == "vctk" and damage is missing:
        kind, message = "malformed record", f"there is no .*{bad[0]}_mic1.flac"
    else:
        kind, message = "unusable speech", f"document '{bad[0]}'.*{expected[bad[0]][1].stem}"
    check_refused_and_skipped(trees.SOURCE[name], path, expected, bad, tmp_path, kind, message)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_transcript_is_named(copy, tmp_path, name):
    path, expected, listing, first = copy(name)
    listing.write_text(listing.read_text().replace(trees.words(0), " "))
    where = f"{listing.name}: line {first}: " if name in LISTED else f"{listing.name}: "
    message = f"{where}record '{next(iter(expected))}': empty or missing transcript"
    check_refused_and_skipped(
        trees.SOURCE[name], path, expected, list(expected)[:1], tmp_path, "malformed record", message
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_text_that_is_not_utf8_is_named(copy, tmp_path, name):
    path, expected, listing, first = copy(name)
    listing.write_bytes(listing.read_bytes().replace(b"UTTERANCE NUMBER 0", b"UTTERANCE \xff"))
    message = f"{listing.name}: {f'line {first}: ' if name in LISTED else ''}not UTF-8"
    check_refused_and_skipped(
        trees.SOURCE[name], path, expected, list(expected)[:1], tmp_path, "malformed record", message
    )


@pytest.mark.parametrize("name", LISTED)
def test_a_name_that_comes_twice_is_told(copy, tmp_path, name):
    path, expected, listing, _ = copy(name)
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join([*lines, lines[-1]]) + "\n")
    source = open_source(trees.SOURCE[name], path)
    assert len(source) == COUNT + 1
    with pytest.raises(BuildError, match="is already that of record"):
        trees.build(trees.SOURCE[name], path, tmp_path / "fail")
    info = trees.build(trees.SOURCE[name], path, tmp_path / "skip", on_error="skip", error_budget=0.5)
    assert info.splits["train"]["dropped"] == {"duplicate id": 1}
    trees.check_shards(tmp_path / "skip", expected)


BAD_LINES = {
    "common_voice": {
        "x\ty": "2 columns, but the first line names 5",
        "c\t../a.mp3\thello\t1\ten": "no name of a sound",
    },
    "librispeech": {"../19-198-0009 HELLO": "no name of a sound"},
    "mls": {"4800_1 HELLO": "not SPEAKER_BOOK_NUMBER", "/a_b_c HELLO": "no name of a sound"},
    "ljspeech": {"LJ001-9": "1 columns", "a|b|c|d": "4 columns", "|no name|": "no name of a sound"},
}


@pytest.mark.parametrize("name,line", [(name, line) for name in BAD_LINES for line in BAD_LINES[name]])
def test_a_malformed_line_is_a_record_with_its_place(copy, name, line):
    path, _, listing, _ = copy(name)
    with listing.open("a") as file:
        file.write(f"{line}\n")
    records = [r for r in open_source(trees.SOURCE[name], path).read(0, COUNT + 1) if r.document is None]
    number = len(listing.read_text().splitlines())
    assert len(records) == 1 and BAD_LINES[name][line] in records[0].error
    assert records[0].where == f"{listing}: line {number}" and listing.name in records[0].error


# -- what is particular to each --------------------------------------------------------------------------------
def test_common_voice_needs_its_columns_and_clips(copy):
    path, _, listing, _ = copy("common_voice")
    with pytest.raises(DocumentError, match="no such file"):
        open_source("common_voice", path / "train.tsv")
    header, rest = listing.read_text().split("\n", 1)
    (path / "other.tsv").write_text(header.replace("sentence", "text") + "\n" + rest)
    with pytest.raises(DocumentError, match="other.tsv: column sentence is missing.*text, up_votes"):
        open_source("common_voice", path / "other.tsv")
    (path / "empty.tsv").write_text("")
    with pytest.raises(DocumentError, match="column path and sentence is missing"):
        open_source("common_voice", path / "empty.tsv")
    shutil.rmtree(path / "clips")
    with pytest.raises(DocumentError, match="clips: no such directory"):
        open_source("common_voice", path)


def test_common_voice_takes_any_table_and_names_without_suffix(copy):
    path, _, listing, _ = copy("common_voice")
    lines = listing.read_text().replace("common_voice_en_1.mp3", "common_voice_en_1").splitlines()
    (path / "train.tsv").write_bytes("\r\n".join(["\ufeff" + lines[0], lines[2]]).encode())
    (record,) = open_source("common_voice", path / "train.tsv").read(0, 9)
    assert record.document.media()[0].value == str(path / "clips" / "common_voice_en_1.mp3")


def test_quotation_marks_of_a_table_are_not_words():
    assert unquoted('"""Good-bye,"" said the boy."') == '"Good-bye," said the boy.'
    assert unquoted('"Yes"') == "Yes" and unquoted('a "b') == 'a "b' and unquoted('"') == '"'


def test_parts_for_testing_are_not_read_with_others(corpora, tmp_path):
    for name, part in (("librispeech", "test-clean"), ("mls", "dev")):
        root = corpora[name][0]
        both = tmp_path / name / "corpus"
        (train,) = root.iterdir()
        shutil.copytree(train, both / train.name)
        assert len(open_source("librispeech", both)) == COUNT
        shutil.copytree(train, both / part)
        with pytest.raises(DocumentError, match=f"has the parts .*{part}.*must name one of them"):
            open_source("librispeech", both.parent)
        assert len(open_source("librispeech", both / part)) == COUNT


def test_the_same_part_may_come_from_two_training_sets(corpora, tmp_path):
    (train,) = corpora["librispeech"][0].iterdir()
    shutil.copytree(train, tmp_path / "train-a" / "1")
    shutil.copytree(train, tmp_path / "train-b" / "2")
    assert len(open_source("librispeech", tmp_path)) == 2 * COUNT


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_directory_is_told(tmp_path, name):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DocumentError, match="--input must name"):
            open_source(trees.SOURCE[name], path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_options_without_use_are_refused(corpora, name):
    for options in (SourceOptions(prompt_dropout=0.1), SourceOptions(columns=(("text", "a"),))):
        with pytest.raises(DocumentError, match=f"source {trees.SOURCE[name]} does not take --"):
            open_source(trees.SOURCE[name], corpora[name][1][0], options)


def test_vctk_texts_without_sound_and_sounds_without_text_are_records(copy):
    path, expected, first, _ = copy("vctk")
    first.unlink()
    expected["p226_002"][1].unlink()
    shutil.rmtree(path / "txt" / "p226")
    (path / "txt" / "p227").mkdir()
    (path / "txt" / "p227" / "p227_001.txt").write_text("hello")
    records = list(open_source("vctk", path).read(0, 99))
    assert [r.id for r in records] == ["p225_000", "p225_001", "p226_003", "p226_004", "p227_001"]
    errors = [r.error for r in records]
    assert "there is no " in errors[0] and "p225_000.txt" in errors[0] and not errors[1]
    assert "nobody knows what is said" in errors[2] and "p227_001_mic1.flac to hear it" in errors[4]


def test_vctk_hidden_files_are_no_records_and_a_byte_order_mark_is_no_word(copy):
    path, expected, first, _ = copy("vctk")
    for sound in [sound for _, sound in expected.values()]:
        sound.with_name(f"._{sound.name}").write_bytes(b"\0\5\x16\7")
    first.with_name(f"._{first.name}").write_bytes(b"\0\5\x16\7")
    (path / "txt" / ".cache").mkdir()
    first.write_bytes("\ufeff".encode() + first.read_bytes())
    records = list(open_source("vctk", path).read(0, 99))
    assert [r.id for r in records] == list(expected) and not any(r.error for r in records)
    words = [p.value for t in records[0].document.turns for p in t.parts if p.modality == Modality.TEXT]
    assert trees.words(0) in words


def test_the_older_vctk_has_waves(copy):
    path, expected, _, _ = copy("vctk")
    for id, (_, sound) in expected.items():
        samples, rate = soundfile.read(sound)
        trees.write_sound(path / "wav48" / id[:4] / f"{id}.wav", samples, rate)
    shutil.rmtree(path / "wav48_silence_trimmed")
    records = list(open_source("vctk", path).read(0, 99))
    assert [r.document.media()[0].value for r in records] == [
        str(path / "wav48" / i[:4] / f"{i}.wav") for i in expected
    ]


def test_memory_does_not_grow_with_the_listing(tmp_path):
    peaks = []
    for count in (2000, 20000):
        root = tmp_path / str(count)
        root.mkdir()
        (root / "transcripts.txt").write_text("".join(f"1_2_{i:06d}\t{'WORD ' * 100}\n" for i in range(count)))
        tracemalloc.start()
        source = open_source("librispeech", root)
        assert sum(record.document is not None for record in source.read(count - 200, count)) == 200
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000


def test_memory_does_not_grow_with_a_tree_of_texts(tmp_path):
    peaks = []
    for speakers in (8, 40):
        root = tmp_path / str(speakers)
        for i in range(speakers):
            for folder, end in (("txt", ".txt"), ("wav48", ".wav")):
                (root / folder / f"p{i}").mkdir(parents=True)
                for number in range(4):
                    (root / folder / f"p{i}" / f"p{i}_{number}{end}").write_text("WORD " * 4000)
        tracemalloc.start()
        source = open_source("vctk", root)
        assert sum(record.document is not None for record in source.read(4, 8)) == 4
        assert sum(1 for _ in source.ids()) == 4 * speakers == len(source)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
