"""Measures on answers that are not as usual: no words, no picture, no truth, one document."""

import sys
import types

import numpy as np
import pytest
import tiny_judges
from PIL import Image

from ar_omni_jax.documents import DocumentError, document_from_json
from ar_omni_jax.evaluation.file_answer import FileAnswer, true_answer
from ar_omni_jax.evaluation.judges.picture_features import CleanFid
from ar_omni_jax.evaluation.measures.caption_cider import CaptionCider
from ar_omni_jax.evaluation.measures.clip_similarity import ClipSimilarity
from ar_omni_jax.evaluation.measures.picture_distance import PictureDistance
from ar_omni_jax.evaluation.measures.word_error_rate import WordErrorRate
from ar_omni_jax.evaluation.metrics.frechet import features_distance


def document(task, user, answer=None):
    return document_from_json({"id": "x", "task": task, "turns": [[user], [answer]] if answer else [[user]]})


def score(measure, documents, answers, truth=False):
    return measure.total(documents, answers, measure.examine(documents, answers), truth)


def test_a_reference_of_fillers_alone_adds_insertions_and_no_words():
    documents = [document("asr", {"speech": "a.wav"}, {"text": text}) for text in ("Hmm.", "Two dogs ran")]
    measure = WordErrorRate("whisper")
    result = score(measure, documents, [FileAnswer("oh well"), FileAnswer("2 dogs")])
    assert result.value == pytest.approx(100 * 3 / 3)
    assert result.notes == ["1 references have no words once normalized"]
    assert score(measure, documents[:1], [FileAnswer("")]) is None


@pytest.fixture
def pictures(tmp_path):
    """(folder, twelve documents with random pictures, answers with others; the last has none)."""
    rng = np.random.default_rng(0)
    documents, answers = [], []
    for k in range(12):
        for name in ("true", "made"):
            Image.fromarray(rng.integers(0, 255, (6, 5, 3), np.uint8)).save(tmp_path / f"{name}{k}.png")
        documents.append(document("t2i", {"text": "a red dog"}, {"image": f"true{k}.png"}))
        answers.append(FileAnswer("", (tmp_path / f"made{k}.png",)))
    return tmp_path, documents, [*answers[:-1], FileAnswer("")]


def test_no_picture_scores_0_in_clip_and_is_left_out_of_fid(pictures):
    root, documents, answers = pictures
    clip = score(ClipSimilarity(tiny_judges.Colors(), root), documents, answers)
    with_picture = score(ClipSimilarity(tiny_judges.Colors(), root), documents[:-1], answers[:-1])
    assert clip.value == pytest.approx(with_picture.value * 11 / 12)
    assert clip.notes == ["1 of 12 answers have no picture and score 0"]
    colors = tiny_judges.Colors()
    true = colors.embed_images([true_answer(d, root).images[0] for d in documents])
    made = colors.embed_images([a.images[0] for a in answers[:-1]])
    distance = PictureDistance(colors, root)
    result = score(distance, documents, answers)
    assert result.value == pytest.approx(features_distance(made, true)) and result.low is None
    assert result.notes == ["11 pictures against 12", "1 answers have no picture and are left out"]
    own = score(distance, documents, [true_answer(d, root) for d in documents], truth=True)
    assert own.value == pytest.approx(features_distance(true[1::2], true[::2]))
    assert score(distance, documents, [FileAnswer("")] * 12) is None


def test_fid_needs_true_pictures_and_clip_does_not(pictures):
    root, _, answers = pictures
    prompts = [document("t2i", {"text": "a red dog"})] * 12
    assert not score(ClipSimilarity(tiny_judges.Colors(), root), prompts, answers).details
    with pytest.raises(DocumentError, match="leave fid out of --metrics"):
        score(PictureDistance(tiny_judges.Colors(), root), prompts, answers)


def test_cider_says_nothing_where_nothing_can_be_said():
    rows = [document("caption", {"image": f"{k}.png"}, {"text": f"dog {k}"}) for k in range(2)]
    assert score(CaptionCider(), rows[:1], [FileAnswer("dog 0")]) is None
    assert score(CaptionCider(), rows, [true_answer(d, None) for d in rows], truth=True) is None  # no other reference
    assert score(CaptionCider(), rows, [FileAnswer("dog 0"), FileAnswer("")]).value > 0


def test_clean_fids_network_gets_channels_first_after_its_resizing(monkeypatch):
    """With stand-ins for the package: its weights are not at hand."""
    torch = pytest.importorskip("torch")
    resize, features = types.ModuleType("cleanfid.resize"), types.ModuleType("cleanfid.features")
    resize.build_resizer = lambda mode: lambda image: np.asarray(Image.fromarray(image).resize((4, 3)), np.float32)
    features.build_feature_extractor = lambda mode, device, use_dataparallel: lambda x: x.mean((2, 3))
    for module in (types.ModuleType("cleanfid"), resize, features):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    image = np.zeros((9, 7, 3), np.uint8)
    image[..., 1] = 200
    judge = CleanFid("legacy_pytorch")
    np.testing.assert_allclose(judge.features([image, image[:5]]), [[0, 200, 0]] * 2)
    assert judge.name == "cleanfid:legacy_pytorch" and torch is not None
    assert PictureDistance(judge, None).title == "FID by cleanfid:legacy_pytorch"
