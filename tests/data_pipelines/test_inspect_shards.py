"""inspect_shards: numbers equal the documents', samples come back as text, PNG and WAV, wrong tokenizers refused."""

import dataclasses
import types

import numpy as np
import pytest
import soundfile
from corpus import VOCABULARY, make_documents, write_documents
from PIL import Image

from ar_omni_jax.documents import Role, Span, TokenDocument, task_index, token_class
from ar_omni_jax.vocabulary import Modality, VocabularyError
from data_pipelines import inspect_shards
from data_pipelines.dataset_info import read_info
from data_pipelines.decode_samples import decode_document, runs
from data_pipelines.pack_shards import PackOptions, pack


def tokenizers(identity="test"):
    """Decoders that show which codes they were given."""
    return types.SimpleNamespace(
        vocabulary=VOCABULARY,
        identities={"text": identity},
        text=types.SimpleNamespace(decode=lambda p: " ".join(map(str, p.tolist()))),
        image=types.SimpleNamespace(decode=lambda c: np.repeat(c.reshape(1, 2, 2, 1), 3, -1).astype(np.uint8)),
        speech=types.SimpleNamespace(sample_rate=8000, decode=lambda c: np.repeat(c / 100, 200).astype(np.float32)),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("inspect")
    docs = make_documents(80)
    write_documents(root / "in", {"train": docs})
    pack(root / "in", root / "out", PackOptions(512))
    return root, docs


@pytest.mark.parametrize("kind", ["in", "out"])
def test_numbers_are_those_of_the_documents(data, kind, capsys):
    root, docs = data
    found = inspect_shards.inspect(root / kind)["train"]
    for group, s in found.items():
        mine = [d for d in docs if d.group == group]
        assert (s.documents, s.tokens) == (len(mine), sum(len(d.tokens) for d in mine))
        assert s.quantile(0) == min(len(d.tokens) for d in mine)
        assert s.quantile(1) == max(len(d.tokens) for d in mine)
        assert s.quantile(0.5) == sorted(len(d.tokens) for d in mine)[(len(mine) + 1) // 2 - 1]
        for task, (documents, tokens) in s.by_task().items():
            assert (documents, tokens) == (
                sum(d.task == task for d in mine),
                sum(len(d.tokens) for d in mine if d.task == task),
            )
        spans = [(span.modality, span.end - span.start) for d in mine for span in d.spans]
        assert s.by_modality()["text"] == sum(n for m, n in spans if m == Modality.TEXT)
    text = capsys.readouterr().out
    assert VOCABULARY.fingerprint in text and ("fill 9" in text) == (kind == "out")
    if kind == "out":
        fill = read_info(root / kind).splits["train"]["fill"]
        for group, s in found.items():
            assert s.tokens / (s.rows * 512) == pytest.approx(fill[group], abs=1e-6)


def test_one_document_becomes_text_png_and_wav(tmp_path):
    v, text, image, speech = VOCABULARY, [5, 6], [1, 2, 3, 250 % 100], [10, 20, 30]
    tokens = [v.marker("bos"), *v.to_ids(Modality.TEXT, text), v.marker("boi"), *v.to_ids(Modality.IMAGE, image)]
    tokens += [v.marker("eoi"), v.marker("boa"), *v.to_ids(Modality.SPEECH, speech), v.marker("eoa")]
    modalities = [3, 0, 0, 3, 2 - 1, 1, 1, 1, 3, 3, 2, 2, 2, 3]
    classes = token_class(task_index("chat"), np.array([0] * 9 + [1] * 5), np.array(modalities))
    shown, files = decode_document(np.array(tokens, np.int32), classes, tokenizers(), tmp_path / "x")
    assert shown == ("[prompt] <bos>5 6<boi>[x-0.png]<eoi>\n[response] <boa>[x-1.wav: 0.07 s, 3 codes]<eoa>\n")
    assert [f.name for f in files] == ["x.txt", "x-0.png", "x-1.wav"]
    np.testing.assert_array_equal(np.asarray(Image.open(files[1]))[..., 0], [[1, 2], [3, 50]])
    wav, rate = soundfile.read(files[2])
    assert rate == 8000 and len(wav) == 600
    np.testing.assert_allclose(wav[::200], [0.1, 0.2, 0.3], atol=1e-4)
    assert files[0].read_text() == shown


def test_an_image_cut_short_is_said_so(tmp_path):
    ids = VOCABULARY.to_ids(Modality.IMAGE, np.arange(6))
    doc = TokenDocument("d", "t2i", "image", ids, (Span(Modality.IMAGE, Role.RESPONSE, 0, 6),))
    shown, files = decode_document(doc.tokens, doc.classes(), tokenizers(), tmp_path / "y")
    assert "[y-0.png][image cut short: 2 of 4 codes]" in shown and len(files) == 2


def test_runs():
    assert runs(np.array([3, 3, 0, 255, 255], np.uint8)) == [(3, 0, 2), (0, 2, 3), (255, 3, 5)]


def test_output_has_a_plot_and_samples_of_every_task(data, tmp_path):
    root, docs = data
    inspect_shards.inspect(root / "out", tmp_path, samples=1, tokenizers=tokenizers())
    names = {p.name for p in tmp_path.iterdir()}
    assert {f"train-{task}-0.txt" for task in {d.task for d in docs}} <= names
    assert any(n.startswith("train-asr-0") and n.endswith(".wav") for n in names)
    assert Image.open(tmp_path / "statistics.png").size[0] > 500


def test_other_tokenizers_are_refused(data, tmp_path):
    with pytest.raises(VocabularyError, match="made with the text tokenizer test, but these are other"):
        inspect_shards.inspect(data[0] / "out", tmp_path, tokenizers=tokenizers("other"))
    foreign = tokenizers()
    foreign.vocabulary = dataclasses.replace(VOCABULARY, image_grid=(4, 4))
    with pytest.raises(VocabularyError, match=VOCABULARY.fingerprint):
        inspect_shards.inspect(data[0] / "out", tmp_path, tokenizers=foreign)


def test_command_line(data, tmp_path, capsys):
    inspect_shards.main([f"--input={data[0] / 'in'}"])
    assert "split train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="inspect_shards: .*dataset.json is missing"):
        inspect_shards.main([f"--input={tmp_path}"])
