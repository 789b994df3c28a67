"""New rows: only where asked, by the stated rule, the same every time."""

import numpy as np
import pytest

from ar_omni_jax.interop.backbone import SCALED
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.extend import choose_ids, initialize_rows
from ar_omni_jax.vocabulary import Modality, chameleon_vocabulary, compact_vocabulary
from tests.interop import backbones

VOCABULARY = backbones.VOCABULARY


def test_the_words_name_ids():
    published = chameleon_vocabulary()
    chosen = choose_ids("speech,boa,eoa,12830-12831", published, 65536)
    assert np.flatnonzero(chosen).tolist() == [*range(8724, 12820), 12820, 12821, 12830, 12831]
    assert choose_ids("missing", VOCABULARY, 100).sum() == VOCABULARY.size - 100
    assert choose_ids("markers", VOCABULARY, 128).sum() == len(VOCABULARY.markers)
    for word in ("spech", "999", "5-2", "marker"):
        with pytest.raises(InteropError, match=f"{word}.* names no ids"):
            choose_ids(word, VOCABULARY, 128)


def test_new_rows_have_the_mean_and_spread_of_trained_ones():
    vocabulary = compact_vocabulary(3000, 16, 2000, (2, 2))
    base = backbones.make(vocab_size=vocabulary.size, num_layers=1).replace(vocabulary=vocabulary)
    tables = {name: base.get(name) * np.linspace(0.5, 2, 24, dtype=np.float32) + 1 for name in ("embedding", "output")}
    base = base.replace(get=lambda name, get=base.get: tables[name] if name in tables else get(name))
    made = initialize_rows(base, "speech", seed=3)
    speech = vocabulary.mask(Modality.SPEECH)
    for name, spread in (("embedding", 1.0), ("output", 0.1)):
        old, new = tables[name], made.get(name)
        np.testing.assert_array_equal(new[~speech], old[~speech])
        assert not np.isclose(new[speech], old[speech]).all(1).any()
        trained = old[vocabulary.mask(Modality.TEXT)]
        np.testing.assert_allclose(new[speech].mean(0), trained.mean(0), atol=0.05)
        np.testing.assert_allclose(new[speech].std(0), spread * trained.std(0), rtol=0.1)
        np.testing.assert_array_equal(new, initialize_rows(base, "speech", seed=3).get(name))
        assert not np.array_equal(new, initialize_rows(base, "speech", seed=4).get(name))
    assert not np.array_equal(made.get("embedding")[speech], made.get("output")[speech])
    np.testing.assert_array_equal(made.get("layers.0.wq"), base.get("layers.0.wq"))


def test_reserved_rows_teach_nothing():
    """Rows that no training ever touched may hold anything: they do not enter mean and spread."""
    base = backbones.make()
    reserved = (VOCABULARY.modality_table == Modality.MARKER) & ~np.isin(
        np.arange(VOCABULARY.size), list(VOCABULARY.markers.values())
    )
    assert reserved.any()

    def spoiled(name):
        array = base.get(name).copy()
        if name in ("embedding", "output"):
            array[reserved] = 1e6
        return array

    made = initialize_rows(base.replace(get=spoiled), "speech").get("embedding")
    assert np.abs(made[VOCABULARY.mask(Modality.SPEECH)]).max() < 10


@pytest.mark.parametrize("tie", ["separate", SCALED])
def test_a_larger_vocabulary_by_the_command(tmp_path, capsys, tie):
    """A base of 128 ids becomes a model of 256: never silently, and usable through every layout."""
    import json

    path = backbones.save(backbones.make(tie=tie), "hf", tmp_path / "hf")
    larger = compact_vocabulary(140, 16, 16, (2, 2), name="larger")
    (tmp_path / "vocabulary.json").write_text(json.dumps(larger.to_dict()))
    words = {"vocabulary": tmp_path / "vocabulary.json"}
    assert backbones.run(path, tmp_path / "no", "orbax", **words) == 1
    assert "128; choose another --vocabulary, or make new rows with --init_rows=missing" in capsys.readouterr().err
    assert backbones.run(path, tmp_path / "no", "orbax", init_rows="speech", **words) == 1
    assert "add missing to --init_rows" in capsys.readouterr().err
    assert backbones.run(path, tmp_path / "run", "orbax", init_rows="missing", init_seed=5, **words) == 0
    assert f"rows of {larger.size - 128} ids (missing) are new" in capsys.readouterr().out
    got = backbones.load("orbax", tmp_path / "run")
    assert got.config.vocab_size == larger.size and got.vocabulary == larger
    np.testing.assert_array_equal(got.get("embedding")[:128], backbones.make(tie=tie).get("embedding"))
    assert got.settings["initialized_rows"] == {"words": "missing", "seed": 5, "count": larger.size - 128}
    assert backbones.run(tmp_path / "run", tmp_path / "back", "meta") == 0
    backbones.assert_same(got, backbones.load("meta", tmp_path / "back"))


def test_ids_keep_what_they_stand_for(tmp_path, capsys):
    """More image codes in the compact layout push speech and text to other ids, whose rows would be others' rows."""
    import json

    path = backbones.save(backbones.make(), "orbax", tmp_path / "run")
    file, messages = tmp_path / "vocabulary.json", []
    for other in (compact_vocabulary(40, 32, 16, (2, 2), name="shifted"), chameleon_vocabulary()):
        file.write_text(json.dumps(other.to_dict()))
        assert backbones.run(path, tmp_path / "out", "orbax", vocabulary=file, init_rows="missing") == 1
        messages.append(capsys.readouterr().err)
        assert VOCABULARY.fingerprint in messages[-1] and other.fingerprint in messages[-1]
    assert "56 ids mean something else; the first, 32, is speech 0 in the model and image 16 there" in messages[0]
    assert "the first, 4, is the marker boi in the model and image 0 there" in messages[1]


@pytest.mark.parametrize(("name", "place"), [("IMGIMGDZ", 30), ("</s>", 9), ("IMGIMGBGZ", 70)])
def test_hfs_names_are_held_against_the_vocabulary(tmp_path, capsys, name, place):
    """Without our own file beside the weights, their config alone says where image codes and specials are."""
    import json

    path = backbones.save(backbones.make(), "hf", tmp_path / "hf")
    (path / "ar_omni_jax.json").unlink()
    (tmp_path / "v.json").write_text(json.dumps(VOCABULARY.to_dict()))
    assert backbones.run(path, tmp_path / "right", "orbax", vocabulary=tmp_path / "v.json") == 0
    config = json.loads((path / "config.json").read_text())
    config["vocabulary_map"][name] = place
    (path / "config.json").write_text(json.dumps(config))
    assert backbones.run(path, tmp_path / "wrong", "orbax", vocabulary=tmp_path / "v.json") == 1
    assert f"config.json has {name} at id {place}, vocabulary 'tiny' " in capsys.readouterr().err


def test_a_smaller_vocabulary_is_no_case_for_new_rows(tmp_path, capsys):
    import json

    path = backbones.save(backbones.make().replace(vocabulary=None), "vendored", tmp_path / "in")
    smaller = compact_vocabulary(30, 16, 16, (2, 2), multiple=1, name="smaller")
    (tmp_path / "vocabulary.json").write_text(json.dumps(smaller.to_dict()))
    assert backbones.run(path, tmp_path / "out", "orbax", vocabulary=tmp_path / "vocabulary.json") == 1
    assert "the model 128; choose another --vocabulary: rows are never dropped" in capsys.readouterr().err


def test_rows_are_never_dropped():
    with pytest.raises(InteropError, match="rows are never dropped"):
        initialize_rows(backbones.make().replace(vocabulary=compact_vocabulary(4, 4, 4, (2, 2), multiple=1)), "speech")
