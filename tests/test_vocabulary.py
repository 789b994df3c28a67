"""The joint vocabulary: published ids, ranges that never meet, exact conversions, fingerprints."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ar_omni_jax.vocabulary import (
    MARKERS,
    IdRange,
    JointVocabulary,
    Modality,
    VocabularyError,
    chameleon_vocabulary,
    compact_vocabulary,
)

TINY = compact_vocabulary(100, 16, 32, (2, 2))


def test_published_layout():
    vocabulary = chameleon_vocabulary()
    assert vocabulary.size == 65536 and vocabulary.image_length == 1024
    assert vocabulary.to_ids(Modality.IMAGE, [0, 8191]).tolist() == [4, 8195]
    assert vocabulary.to_ids(Modality.SPEECH, [0, 4095]).tolist() == [8724, 12819]
    assert vocabulary.to_ids(Modality.TEXT, [0]).tolist() == [16384] and vocabulary.text.stop == 65536
    published = {"bos": 0, "pad": 1, "eos": 2, "unk": 3, "eoi": 8196, "boi": 8197, "eoa": 12820, "boa": 12821}
    published |= {"eoh": 12830, "eom": 12831, "ins": 12840, "res": 12841}
    assert vocabulary.markers == published and vocabulary.pad == 1
    assert vocabulary.marker("boi") > vocabulary.marker("eoi")  # the published order


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_compact_layout_gives_every_code_its_own_id(text, image, speech):
    vocabulary = compact_vocabulary(text, image, speech, (1, 1))
    assert vocabulary.size % 128 == 0
    sizes = {Modality.TEXT: text, Modality.IMAGE: image, Modality.SPEECH: speech}
    ids = [vocabulary.to_ids(m, np.arange(n)) for m, n in sizes.items()]
    joined = np.concatenate([*ids, list(vocabulary.markers.values())])
    assert len(np.unique(joined)) == text + image + speech + len(MARKERS)
    for (modality, n), row in zip(sizes.items(), ids, strict=True):
        assert np.array_equal(vocabulary.to_codes(modality, row), np.arange(n))
        assert (vocabulary.modality_of(row) == modality).all()
        assert vocabulary.mask(modality).sum() == n


def test_reserved_ids_are_markers_to_the_weights():
    last = TINY.size - 1
    assert TINY.modality_of([last]).tolist() == [Modality.MARKER]
    assert TINY.mask(Modality.MARKER).sum() == TINY.size - 148


def test_foreign_codes_and_ids_are_named():
    with pytest.raises(VocabularyError, match=r"image code 16 is outside \[0, 16\)"):
        TINY.to_ids(Modality.IMAGE, [3, 16])
    with pytest.raises(VocabularyError, match="id 0 is not a speech id"):
        TINY.to_codes(Modality.SPEECH, [0])
    with pytest.raises(VocabularyError, match=r"shard 3: id 999 at position 1 .*of 256 ids"):
        TINY.check_ids([0, 999], "shard 3")
    with pytest.raises(VocabularyError, match="no marker 'boo'"):
        TINY.marker("boo")


BROKEN = [
    ({"image": IdRange(20, 40)}, "overlap"),
    ({"text": IdRange(200, 100)}, "leave"),
    ({"markers": TINY.markers | {"bos": 16}}, "outside or in a range"),
    ({"markers": TINY.markers | {"bos": 1}}, "same id"),
    ({"markers": {"bos": 0}}, "lacks the markers"),
]


@pytest.mark.parametrize("change,message", BROKEN)
def test_layouts_that_clash_are_refused(change, message):
    with pytest.raises(VocabularyError, match=message):
        dataclasses.replace(TINY, **change)


def test_fingerprint_is_of_the_layout_not_of_the_name():
    again = JointVocabulary.from_dict(TINY.to_dict())
    assert again == TINY and again.fingerprint == TINY.fingerprint and hash(again) == hash(TINY)
    assert dataclasses.replace(TINY, name="other").fingerprint == TINY.fingerprint
    other = compact_vocabulary(100, 16, 32, (1, 4))
    assert other.fingerprint != TINY.fingerprint
    TINY.require_same(again.fingerprint, "here")
    with pytest.raises(VocabularyError) as error:
        TINY.require_same(other.fingerprint, "DIR/dataset.json")
    for word in ("DIR/dataset.json", TINY.fingerprint, other.fingerprint):
        assert word in str(error.value)
