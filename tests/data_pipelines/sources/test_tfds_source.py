"""TFDS: real small data sets, built here in ArrayRecord, to shards with the media's own tokens; bad input.

Needs the extra [tfds]; what has an Audio feature needs its TensorFlow. The last test runs without either.
"""

import importlib.util
import io
import subprocess
import sys

import dialogue_corpus as corpus
import numpy as np
import pytest
import soundfile

from ar_omni_jax.documents import DocumentError
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.vocabulary import Modality
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents
from data_pipelines.sources import SourceOptions, open_source
from data_pipelines.sources.base import duplicates

HAS_TFDS = importlib.util.find_spec("tensorflow_datasets") is not None
HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tfds = pytest.mark.skipif(not HAS_TFDS, reason="TensorFlow Datasets is not installed: the extra [tfds]")
needs_tensorflow = pytest.mark.skipif(
    not (HAS_TFDS and HAS_TENSORFLOW), reason="TFDS with TensorFlow is not installed: the extra [tfds]"
)
MAKE = "mnist_of_words"  # no data set of TFDS's own


@pytest.fixture(scope="module")
def tokenizers():
    return load_tokenizers()


def store(folder, features, records, format="array_record", name=MAKE):
    """A prepared data set of one split, train; returns the folder of its version."""
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        "1.0.0",
        tfds.features.FeaturesDict(features(tfds.features)),
        {"train": list(enumerate(records))},
        data_dir=folder,
        file_format=format,
        disable_shuffling=True,
    )
    return folder / name / "1.0.0"


def pictures(folder):
    """Bytes of a PNG, a JPEG and a larger PNG."""
    return [corpus.picture(folder / name, i).read_bytes() for i, name in enumerate(("a.png", "b.jpg", "c.png"))]


def captioned(folder, **changes):
    records = [{"image": image, "caption": f"picture {i}"} for i, image in enumerate(pictures(folder))]
    return store(
        folder,
        lambda f: {"image": f.Image(), "caption": f.Text(), "label": f.Scalar(np.int64)},
        [record | {"label": i} | changes for i, record in enumerate(records)],
    )


@needs_tfds
def test_images_and_captions_become_shards_with_the_images_own_tokens(tmp_path, tokenizers):
    folder = captioned(tmp_path)
    options = SourceOptions(tasks=(("caption", 1.0), ("t2i", 1.0)), seed=3)
    corpus.build("tfds", f"{folder}:train", tmp_path / "out", tokenizers, options=options)
    documents = list(read_documents(tmp_path / "out", "train", tokenizers.vocabulary))
    assert [d.id for d in documents] == [f"{MAKE}-train:{i}" for i in range(3)]
    assert {d.task for d in documents} <= {"caption", "t2i"}
    for document, image in zip(documents, pictures(tmp_path), strict=True):
        codes = corpus.direct_codes(tokenizers, Modality.IMAGE, image)
        assert corpus.media_codes(document, tokenizers.vocabulary) == [(Modality.IMAGE, codes)]


@needs_tfds
def test_parts_of_splits_and_random_access(tmp_path):
    folder = captioned(tmp_path)
    source = open_source("tfds", f"{folder}:train")
    assert len(source) == 3 and not duplicates(source)
    assert list(source.ids()) == [r.id for r in source.read(0, 3)]
    assert [r.index for r in source.read(1, 9)] == [1, 2]
    for record in source.read(0, 3):
        assert next(source.read(record.index, record.index + 1)) == record
    part = open_source("tfds", f"{folder}:train[1:]")
    assert len(part) == 2 and part.digest != source.digest
    assert open_source("tfds", f"{folder}:train").digest == source.digest
    options = SourceOptions(columns=(("id", "caption"),))
    assert list(open_source("tfds", f"{folder}:train", options).ids()) == ["picture 0", "picture 1", "picture 2"]


@needs_tfds
def test_texts_inside_a_sequence_and_text_alone(tmp_path):
    image = pictures(tmp_path)[0]
    folder = store(
        tmp_path,
        lambda f: {"image": f.Image(), "captions": f.Sequence({"id": f.Scalar(np.int64), "text": f.Text()})},
        [{"image": image, "captions": [{"id": 1, "text": "one"}, {"id": 2, "text": "two"}]}],
    )
    options = SourceOptions(tasks=(("caption", 1.0),))
    (record,) = open_source("tfds", f"{folder}:train", options).read(0, 1)
    assert record.document.turns[1].parts[0].value == "one"
    folder = store(tmp_path / "t", lambda f: {"text": f.Text()}, [{"text": "a story"}, {"text": " "}])
    good, bad = open_source("tfds", f"{folder}:train").read(0, 2)
    assert (good.document.task, good.document.turns[0].parts[0].value) == ("text", "a story")
    assert "record 1: empty or missing text ' '" in bad.error


SAMPLES = (0.5 * np.sin(np.arange(9000) / 9) * 32767).astype(np.int64)


def wav(samples, rate, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **({"format": "WAV"} | options))
    return buffer.getvalue()


@needs_tensorflow
def test_audio_as_samples_and_as_files(tmp_path, tokenizers):
    """Kept as samples (of 16 or more bits, floats, two channels) or as the file itself: the same tokens."""
    flac = wav(SAMPLES.astype(np.int16), 16000, format="FLAC")
    made = {
        "plain": (lambda f: f.Audio(sample_rate=16000), SAMPLES, wav(SAMPLES.astype(np.int16), 16000)),
        "wide": (
            lambda f: f.Audio(sample_rate=16000),
            SAMPLES << 16,
            wav((SAMPLES << 16).astype(np.int32), 16000, subtype="PCM_32"),
        ),
        "float": (
            lambda f: f.Audio(sample_rate=16000, dtype=np.float32),
            (SAMPLES / 32768).astype(np.float32),
            wav((SAMPLES / 32768).astype(np.float32), 16000, subtype="FLOAT"),
        ),
        "stereo": (
            lambda f: f.Audio(sample_rate=16000, shape=(None, 2)),
            np.stack([SAMPLES, SAMPLES // 2], 1),
            wav(np.stack([SAMPLES, SAMPLES // 2], 1).astype(np.int16), 16000),
        ),
        "file": (lambda f: f.Audio(file_format="wav", lazy_decode=True), io.BytesIO(flac), flac),
    }
    for name, (feature, value, file) in made.items():
        folder = store(
            tmp_path / name,
            lambda f, feature=feature: {"audio": feature(f), "text": f.Text()},
            [{"audio": value, "text": "a tone"}],
        )
        corpus.build("tfds", f"{folder}:train", tmp_path / name / "out", tokenizers)
        (document,) = read_documents(tmp_path / name / "out", "train", tokenizers.vocabulary)
        assert document.task in ("asr", "tts"), name
        codes = corpus.direct_codes(tokenizers, Modality.SPEECH, file)
        assert corpus.media_codes(document, tokenizers.vocabulary) == [(Modality.SPEECH, codes)], name


@needs_tensorflow
def test_samples_without_a_rate_mean_nothing(tmp_path):
    folder = store(tmp_path, lambda f: {"audio": f.Audio(), "text": f.Text()}, [{"audio": SAMPLES, "text": "a tone"}])
    (record,) = open_source("tfds", f"{folder}:train").read(0, 1)
    assert "feature audio has no sample_rate" in record.error


@needs_tfds
def test_media_and_texts_that_cannot_be_used(tmp_path, tokenizers):
    images = pictures(tmp_path)
    folder = store(
        tmp_path,
        lambda f: {"image": f.Image(), "text": f.Text()},
        [
            {"image": images[0], "text": "good"},
            {"image": images[1][:60], "text": "cut short"},
            {"image": images[2], "text": ""},
        ],
    )
    info = corpus.build("tfds", f"{folder}:train", tmp_path / "out", tokenizers, on_error="skip", error_budget=0.7)
    assert info.splits["train"]["dropped"] == {"unusable image": 1, "malformed record": 1}
    details = [d["detail"] for d in info.splits["train"]["dropped_list"]]
    assert f"{MAKE}-train, record 1" in details[0] and "empty or missing caption" in details[1]
    with pytest.raises(BuildError, match="record 1"):
        corpus.build("tfds", f"{folder}:train", tmp_path / "fail", tokenizers)


@needs_tfds
def test_what_cannot_be_opened(tmp_path):
    def refused(path, message, **options):
        with pytest.raises(DocumentError, match=message):
            open_source("tfds", path, SourceOptions(**options))

    folder = captioned(tmp_path)
    refused(str(folder), "NAME:SPLIT or FOLDER:SPLIT")
    refused(f"{folder}:valid", "split valid cannot be opened.*it has train")
    refused(f"{folder.parent}:train", f"no features.json in it.*did you mean {folder}")
    refused("no_such_data_set:train", "no_such_data_set: TFDS cannot open it")
    refused(f"{folder}:train", "no media feature 'label'; it has image", columns=(("media", "label"),))
    refused(f"{folder}:train", "no text feature 'words'; it has caption", columns=(("text", "words"),))
    refused(f"{folder}:train", "no feature 'name'; it has", columns=(("id", "name"),))
    two = store(tmp_path / "two", lambda f: {"x": f.Text(), "y": f.Text()}, [{"x": "a", "y": "b"}])
    refused(f"{two}:train", "several text features; say which: --columns=text:x")
    assert next(open_source("tfds", f"{two}:train", SourceOptions(columns=(("text", "y"),))).read(0, 1)).document
    refused(f"{two}:train", "does not take --tasks", tasks=(("caption", 1.0),), columns=(("text", "x"),))
    none = store(tmp_path / "none", lambda f: {"image": f.Image()}, [{"image": pictures(tmp_path)[0]}])
    refused(f"{none}:train", "no Text among its features image")


@needs_tensorflow
def test_a_format_without_random_access_is_refused_with_the_way_out(tmp_path):
    folder = store(tmp_path, lambda f: {"text": f.Text()}, [{"text": "a"}], format="tfrecord")
    with pytest.raises(DocumentError, match="format without random access; run tfds build .*array_record"):
        open_source("tfds", f"{folder}:train")


@needs_tfds
def test_a_shard_that_is_gone_or_damaged(tmp_path):
    folder = captioned(tmp_path)
    (shard,) = folder.glob("*array_record*")
    content = bytearray(shard.read_bytes())
    content[2000:4000] = bytes(2000)  # in the chunk of the first record; the format has checksums
    shard.write_bytes(content)
    first, *others = open_source("tfds", f"{folder}:train").read(0, 3)
    assert "record 0: cannot be read (" in first.error and "copy or prepare the data again" in first.error
    assert len(others) == 2 and not any(record.error for record in others)
    shard.unlink()
    with pytest.raises(DocumentError, match="cannot be opened|cannot be read"):
        broken = open_source("tfds", f"{folder}:train")
        raise DocumentError(next(broken.read(0, 1)).error)


@needs_tfds
def test_images_and_text_need_no_tensorflow(tmp_path):
    folder = captioned(tmp_path)
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "hidden = lambda _, name, *rest: None if name.split('.')[0] == 'tensorflow' else find(name, *rest)\n"
        "PathFinder.find_spec = classmethod(hidden)\n"
        "from data_pipelines.sources import open_source\n"
        f"records = list(open_source('tfds', {f'{folder}:train'!r}).read(0, 3))\n"
        "assert [len(r.document.media()) for r in records] == [1, 1, 1], records\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_without_the_extra_the_way_to_it_is_told():
    """And nothing else of the project needs it: the sources and the command are imported without."""
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = sys.modules['tensorflow'] = None\n"
        "import data_pipelines.build_shards\n"
        "from data_pipelines.sources import open_source\n"
        "try:\n    open_source('tfds', 'mnist:train')\n"
        "except ValueError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "pip install 'ar_omni_jax[tfds]'" in done.stdout, done.stderr
