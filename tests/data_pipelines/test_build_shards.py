"""From raw files to token shards: content, accounting, bad input, resuming after a kill, workers."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from ar_omni_jax import templates
from ar_omni_jax.tokenizers.bundle import BUILT_IN, Tokenizers
from ar_omni_jax.tokenizers.text import TextTokenizer
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines import build_shards
from data_pipelines.build_shards import ErrorBudget
from data_pipelines.dataset_info import read_info
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents

SPEECH_RATE, HOP = 8000, 400


class FakeImageCodec:
    """16 codes by brightness, one a quadrant of an 8x8 picture."""

    image_size, grid, codebook_size = 8, (2, 2), 16

    def __init__(self):
        self.calls = []

    def encode(self, pixels):
        assert pixels.dtype == np.float32 and pixels.shape[1:] == (8, 8, 3)
        self.calls.append(len(pixels))
        quadrants = pixels.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4, 5)).reshape(-1, 4)
        return np.clip((quadrants + 1) * 8, 0, 15).astype(np.int32)


class FakeSpeechCodec:
    """32 codes by loudness of each frame."""

    sample_rate, hop_length, codebook_size = SPEECH_RATE, HOP, 32

    def __init__(self):
        self.calls = []

    def encode_batch(self, waves):
        self.calls.append(len(waves))
        padded = [np.pad(w, (0, -len(w) % HOP)).reshape(-1, HOP) for w in waves]
        return [np.clip(np.abs(w).mean(1) * 32, 0, 31).astype(np.int32) for w in padded]


def make_tokenizers():
    text = TextTokenizer.load(BUILT_IN["toyworld"] / "text.model")
    vocabulary = compact_vocabulary(text.size, 16, 32, (2, 2), name="fake")
    make = {"text": lambda: text, "image": FakeImageCodec, "speech": FakeSpeechCodec}
    return Tokenizers(vocabulary, {"text": text.identity, "image": "i", "speech": "s"}, make)


def make_corpus(root: Path, count: int) -> Path:
    """`count` records of five tasks over count // 5 pictures and utterances; returns the manifest."""
    lines = []
    for i in range(count):
        scene = i // 5
        image, speech = root / f"{scene}.png", root / f"{scene}.wav"
        if i % 5 == 0:
            rng = np.random.default_rng(scene)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(image)
            soundfile.write(speech, rng.uniform(-1, 1, 1000 + 100 * (scene % 9)).astype(np.float32), SPEECH_RATE)
        text = {"text": f"picture number {scene}"}
        task, turns = [
            ("caption", [[{"image": image.name}], [text]]),
            ("t2i", [[text], [{"image": image.name}]]),
            ("asr", [[{"speech": speech.name}], [text]]),
            ("text", [[text]]),
            ("chat_image", [[{"speech": speech.name}], [text, {"image": image.name}]]),
        ][i % 5]
        lines.append(json.dumps({"id": f"d{i}", "task": task, "turns": turns}))
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root / "train.jsonl"


def build(manifest, output, tokenizers=None, **options):
    options = {"records_per_shard": 7, "quiet": True} | options
    return build_shards.build("manifest", manifest, output, tokenizers or make_tokenizers(), **options)


def files(directory: Path) -> dict[str, bytes]:
    """Everything a build leaves behind, but its lock."""
    paths = [p for p in directory.rglob("*") if p.is_file() and p.name != "lock"]
    return {str(p.relative_to(directory)): p.read_bytes() for p in paths}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), 40)


def test_every_document_is_written_with_its_own_codes(manifest, tmp_path):
    tokenizers = make_tokenizers()
    info = build(manifest, tmp_path, tokenizers)
    vocabulary = tokenizers.vocabulary
    documents = {d.id: d for d in read_documents(tmp_path, "train", vocabulary)}
    assert list(documents) == [f"d{i}" for i in range(40)]
    for i in range(40):
        doc, codec = documents[f"d{i}"], FakeImageCodec()
        pixels = np.asarray(Image.open(manifest.parent / f"{i // 5}.png"), np.float32) / 127.5 - 1
        wave = soundfile.read(manifest.parent / f"{i // 5}.wav", dtype="float32")[0]
        for span in doc.spans:
            ids = doc.tokens[span.start : span.end]
            if span.modality == Modality.IMAGE:
                assert np.array_equal(vocabulary.to_codes(Modality.IMAGE, ids), codec.encode(pixels[None])[0])
            if span.modality == Modality.SPEECH:
                codes = FakeSpeechCodec().encode_batch([wave])[0]
                assert np.array_equal(vocabulary.to_codes(Modality.SPEECH, ids), codes)
        text = [s for s in doc.spans if s.role == 1 and s.modality == Modality.TEXT]
        if doc.task != "t2i":
            pieces = vocabulary.to_codes(Modality.TEXT, doc.tokens[text[0].start : text[0].end])
            assert templates.response_text(pieces, tokenizers.text.decode) == f"picture number {i // 5}"
    counts = info.splits["train"]
    assert counts["read"] == counts["documents"] == 40 and counts["dropped"] == {}
    assert counts["tokens"] == sum(len(d.tokens) for d in documents.values()) == sum(counts["by_modality"].values())
    assert counts["by_task"]["asr"]["documents"] == 8 and counts["by_group"]["text"]["documents"] == 8
    stored = read_info(tmp_path, "documents", vocabulary.fingerprint)
    assert stored.tokenizers == tokenizers.identities and stored.settings == {"template": "paper"}


def test_each_file_is_encoded_once_a_shard_and_in_batches(manifest, tmp_path):
    tokenizers = make_tokenizers()
    build(manifest, tmp_path, tokenizers, records_per_shard=1000)
    assert tokenizers.image.calls == [8] and tokenizers.speech.calls == [8]


def test_windows_change_no_byte(manifest, tmp_path, monkeypatch):
    build(manifest, tmp_path / "a")
    monkeypatch.setattr("data_pipelines.media.WINDOW_DOCUMENTS", 3)
    build(manifest, tmp_path / "b", threads=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_workers_make_the_same_files_as_one_process(manifest, tmp_path):
    build(manifest, tmp_path / "one")
    for worker in (2, 0):
        assert build(manifest, tmp_path / "many", worker_index=worker, worker_count=3) is None
    assert not (tmp_path / "many" / "dataset.json").exists()
    assert build(manifest, tmp_path / "many", worker_index=1, worker_count=3) is not None
    assert files(tmp_path / "one") == files(tmp_path / "many")


@pytest.mark.parametrize("calls", [0, 1])
def test_a_stopped_command_of_an_array_job_is_run_again_alone(manifest, tmp_path, calls):
    """Stopped in its first or second shard, while the others end; these then have nothing to do."""
    build(manifest, tmp_path / "one")
    stopped = make_tokenizers()
    encode = stopped.speech.encode_batch

    def fail(waves):
        if len(stopped.speech.calls) == calls:
            raise KeyboardInterrupt
        return encode(waves)

    stopped.speech.encode_batch = fail
    with pytest.raises(KeyboardInterrupt):
        build(manifest, tmp_path / "many", stopped, worker_index=1, worker_count=3)
    for worker in (0, 2):
        assert build(manifest, tmp_path / "many", worker_index=worker, worker_count=3) is None
    again = make_tokenizers()
    assert build(manifest, tmp_path / "many", again, worker_index=1, worker_count=3) is not None
    assert len(again.speech.calls) == 2 - calls, "a finished shard was made again"
    assert files(tmp_path / "one") == files(tmp_path / "many")


def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(manifest, tmp_path):
    build(manifest, tmp_path)
    before = files(tmp_path)
    tokenizers = make_tokenizers()
    build(manifest, tmp_path, tokenizers)
    assert files(tmp_path) == before and tokenizers.image.calls == []
    (tmp_path / "train-00002-of-00006.arrayrecord").unlink()
    (tmp_path / ".train-00002-of-00006.arrayrecord.99.tmp").write_bytes(b"left by a killed writer")
    build(manifest, tmp_path, tokenizers)
    assert files(tmp_path) == before and len(tokenizers.image.calls) == 1


SLOW_BUILD = """
import sys, time
sys.path[:0] = sys.argv[4:]
import test_build_shards as t
encode = t.FakeSpeechCodec.encode_batch
def slow(self, waves):
    time.sleep(0.1)
    return encode(self, waves)
t.FakeSpeechCodec.encode_batch = slow
t.build(sys.argv[1], sys.argv[2], records_per_shard=int(sys.argv[3]))
"""


def test_killed_at_any_time_and_run_again_gives_the_same_bytes(tmp_path):
    manifest = make_corpus(tmp_path, 60)
    build(manifest, tmp_path / "whole", records_per_shard=5)
    root = Path(build_shards.__file__).parents[1]
    output = tmp_path / "killed"
    command = [sys.executable, "-c", SLOW_BUILD, str(manifest), str(output), "5", str(Path(__file__).parent), str(root)]
    finished = 0
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            now = len(list(output.glob("*.arrayrecord")))
            if now >= finished + 2:
                break
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = len(list(output.glob("*.arrayrecord")))
        assert now > finished
        finished = now
    assert finished < 12, "the build was never interrupted"
    build(manifest, output, records_per_shard=5)
    assert files(output) == files(tmp_path / "whole")


# -- bad input -----------------------------------------------------------------------------------------------
def bomb() -> bytes:
    """A small PNG file that says it has 30000 x 30000 pixels."""
    out = io.BytesIO()
    Image.new("1", (30000, 30000)).save(out, "PNG")
    return out.getvalue()


def bomb_jpeg() -> bytes:
    """A small JPEG file whose frame header says 60000 x 60000 pixels."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    at = data.index(b"\xff\xc0") + 5  # marker, length of the header, bits a sample; then height and width
    data[at : at + 4] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


def caption(image):
    return {"id": "bad", "task": "caption", "turns": [[{"image": image}], [{"text": "x"}]]}


def asr(speech, text="x"):
    return {"id": "bad", "task": "asr", "turns": [[{"speech": speech}], [{"text": text}]]}


BAD = {
    "missing image": (caption("none.png"), "unusable image", "none.png"),
    "not an image": (caption("text.png"), "unusable image", "text.png"),
    "cut image": (caption("cut.png"), "unusable image", "cut.png"),
    "image bomb": (caption("bomb.png"), "unusable image", "bomb.png.*900000000 pixels"),
    "cut JPEG": (caption("cut.jpg"), "unusable image", "cut.jpg"),
    "cut WebP": (caption("cut.webp"), "unusable image", "cut.webp"),
    "JPEG bomb": (caption("bomb.jpg"), "unusable image", "bomb.jpg.*3600000000 pixels"),
    "missing speech": (asr("none.wav"), "unusable speech", "none.wav"),
    "not speech": (asr("text.wav"), "unusable speech", "text.wav"),
    "speech without samples": (asr("empty.wav"), "unusable speech", "empty.wav.*no samples"),
    "empty transcript": (asr("0.wav", "  "), "malformed record", "empty or non-string text"),
    "unknown task": (asr("0.wav") | {"task": "sing"}, "malformed record", "unknown task 'sing'"),
    "malformed JSON": ("{", "malformed record", "malformed JSON"),
    "duplicate id": (asr("0.wav") | {"id": "d3"}, "duplicate id", "'d3' is already that of record 4"),
    "id without a UTF-8 form": (asr("0.wav") | {"id": "\udc00"}, "malformed record", "lone surrogate"),
    "wrong turns": (caption("0.png") | {"task": "asr"}, "turns do not fit the task", "speech part"),
    "lone surrogate": (asr("0.wav", "\ud800"), "not in the vocabulary", "surrogate"),
}


def make_bad_media(root: Path) -> None:
    """The media of BAD, beside those of a corpus, but for the PNG bomb, which takes long to make."""
    for name in ("text.png", "text.wav"):
        (root / name).write_text("this is text")
    (root / "cut.png").write_bytes((root / "0.png").read_bytes()[:60])
    (root / "bomb.jpg").write_bytes(bomb_jpeg())
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for name in ("cut.jpg", "cut.webp"):
        noise.save(root / name)
        (root / name).write_bytes((root / name).read_bytes()[:1500])
    soundfile.write(root / "empty.wav", np.zeros(0, np.float32), SPEECH_RATE)


@pytest.fixture(scope="module")
def bad_corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    lines = make_corpus(root, 20).read_text().splitlines()
    make_bad_media(root)
    (root / "bomb.png").write_bytes(bomb())
    return root, lines


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_record_is_named_or_skipped_and_counted(bad_corpus, tmp_path, name):
    root, lines = bad_corpus
    record, kind, message = BAD[name]
    bad = record if isinstance(record, str) else json.dumps(record)
    manifest = root / f"{name.replace(' ', '_')}.jsonl"
    manifest.write_text("\n".join([*lines[:10], bad, *lines[10:]]) + "\n")
    with pytest.raises(BuildError, match=f"(?s){manifest.name}: line 11: .*{message}.*on_error=skip"):
        build(manifest, tmp_path / "fail")
    assert not (tmp_path / "fail" / "dataset.json").exists()
    counts = build(manifest, tmp_path / "skip", on_error="skip", error_budget=0.05).splits["train"]
    assert counts["read"] == 21 and counts["documents"] == 20 and counts["dropped"] == {kind: 1}
    listed = counts["dropped_list"][0]
    assert listed["reason"] == kind and listed["where"].endswith("line 11") and len(counts["dropped_list"]) == 1
    assert [d.id for d in read_documents(tmp_path / "skip", "train")] == [f"d{i}" for i in range(20)]


def test_skipping_stops_past_the_budget_of_all_records(bad_corpus, tmp_path):
    root, lines = bad_corpus
    manifest = root / "many_bad.jsonl"
    manifest.write_text("\n".join([*lines, *["{"] * 5]) + "\n")
    with pytest.raises(BuildError, match=r"(?s)4 of 25 records.*budget of 10.00% \(3\).*line 24: malformed"):
        build(manifest, tmp_path, on_error="skip", error_budget=0.1)
    counts = build(manifest, tmp_path, on_error="skip", error_budget=0.2).splits["train"]
    assert counts["read"] == 25 == counts["documents"] + counts["dropped"]["malformed record"]
    accounts = [json.loads(p.read_text()) for p in (tmp_path / ".build").glob("*.json")]
    assert sum(len(a["skipped"]) for a in accounts) == 5 and sum(a["read"] for a in accounts) == 25


def test_the_budget_is_one_percent_unless_told(tmp_path):
    lines = make_corpus(tmp_path, 100).read_text().splitlines()
    for bad, well in ((1, True), (2, True), (3, False)):  # 1.01 and 1.02 are two, of 103 records, too
        manifest = tmp_path / f"{bad}.jsonl"
        manifest.write_text("\n".join([*lines, *["{"] * bad]) + "\n")
        with contextlib.nullcontext() if well else pytest.raises(BuildError, match=r"3 of 103 .*budget of 1.00% \(2\)"):
            counts = build(manifest, tmp_path / str(bad), on_error="skip", records_per_shard=200).splits["train"]
            assert counts["documents"] == 100 and counts["dropped"] == {"malformed record": bad}


def test_the_budget_is_that_share_whatever_floating_point_makes_of_it(bad_corpus, tmp_path):
    """0.07 * 100 is 7.000000000000001 there, which rounded up would allow an eighth."""
    for share, records, allowed in ((0.07, 100, 7), (0.07, 101, 8), (0.28, 25, 7), (0.0, 9, 0), (1.0, 9, 9)):
        assert ErrorBudget("skip", share, records).allowed == allowed
    root, lines = bad_corpus
    manifest = root / "edge.jsonl"
    manifest.write_text("\n".join([*lines[:18], *["{"] * 7]) + "\n")
    counts = build(manifest, tmp_path / "at", on_error="skip", error_budget=0.28).splits["train"]
    assert counts["documents"] == 18 and counts["dropped"] == {"malformed record": 7}
    manifest.write_text("\n".join([*lines[:17], *["{"] * 8]) + "\n")
    with pytest.raises(BuildError, match=r"8 of 25 records.*budget of 28.00% \(7\)"):
        build(manifest, tmp_path / "past", on_error="skip", error_budget=0.28)


def test_the_budget_holds_for_all_workers_together(bad_corpus, tmp_path):
    root, lines = bad_corpus
    manifest = root / "spread.jsonl"
    manifest.write_text("\n".join([*lines[:3], "{", *lines[3:10], "{", *lines[10:]]) + "\n")
    options = {"on_error": "skip", "error_budget": 0.01, "worker_count": 2}
    assert build(manifest, tmp_path, worker_index=0, **options) is None
    with pytest.raises(BuildError, match="2 of 22 records"):
        build(manifest, tmp_path, worker_index=1, **options)
    assert not (tmp_path / "dataset.json").exists()


def test_a_shard_of_skipped_records_only_is_whole(bad_corpus, tmp_path):
    root, lines = bad_corpus
    manifest = root / "gap.jsonl"
    manifest.write_text("\n".join([*lines[:7], *["{"] * 7, *lines[7:]]) + "\n")
    counts = build(manifest, tmp_path, on_error="skip", error_budget=0.5).splits["train"]
    assert counts["documents"] == 20 and len(list(read_documents(tmp_path, "train"))) == 20
