"""Weights through every ordered pair of layouts, by the command: equal to the bit, with their configuration."""

import itertools

import pytest

from ar_omni_jax.interop.backbone import SCALED, SEPARATE, SHARED
from tests.interop import backbones

pytest.importorskip("torch")

ALL = ("orbax", "hf", "vendored", "meta")
WITHOUT_VENDORED = ("orbax", "hf", "meta")
# Two norm groups have no place in the vendored layout; one group fits one shard and two.
CASES = {
    "MHA, swin, separate tables": (dict(), ALL, {}),
    "GQA, pre, scaled table, bfloat16": (
        dict(num_kv_heads=2, norm_placement="pre", tie=SCALED, dtype="bfloat16"),
        ALL,
        {},
    ),
    "GQA, shared table, two groups": (
        dict(num_kv_heads=2, tie=SHARED, qk_norm_groups=2, rope_theta=5000.0, norm_eps=1e-6),
        WITHOUT_VENDORED,
        {},
    ),
    "MHA, pre, two shards of one group": (dict(norm_placement="pre"), ("hf", "meta"), {"model_parallel_size": 2}),
    "MHA, swin, four shards of two groups, float16": (
        dict(qk_norm_groups=2, dtype="float16", tie=SCALED),
        ("hf", "meta"),
        {"model_parallel_size": 4},
    ),
}


def every_pair(layouts) -> list[str]:
    """A walk that takes every ordered pair of layouts once, from a layout to itself included."""
    pairs = set(itertools.product(layouts, layouts))

    def walk(path):
        if not pairs:
            return path
        for pair in sorted(p for p in pairs if p[0] == path[-1]):
            pairs.remove(pair)
            if done := walk([*path, pair[1]]):
                return done
            pairs.add(pair)
        return None

    return walk([layouts[0]])


@pytest.mark.parametrize("case", CASES)
def test_every_pair_of_layouts_is_bit_equal(tmp_path, case):
    changes, layouts, options = CASES[case]
    original = backbones.make(**({"tie": SEPARATE} | changes))
    steps = every_pair(layouts)
    assert len(steps) == len(layouts) ** 2 + 1
    path = backbones.save(original, steps[0], tmp_path / "0")
    for number, layout in enumerate(steps[1:], 1):
        target = tmp_path / str(number)
        assert backbones.run(path, target, layout, **(options if layout == "meta" else {})) == 0
        got = backbones.load(layout, target)
        backbones.assert_same(original, got)
        assert got.vocabulary == original.vocabulary
        assert {k: got.settings[k] for k in ("tokenizers", "template", "step")} == original.settings
        path = target


def test_shards_without_our_file_are_one_group_each(tmp_path):
    """Nothing but the reference's own files: two shards mean two groups, here with equal rows."""
    original = backbones.make(qk_norm_groups=1)
    path = backbones.save(original, "meta", tmp_path / "meta", model_parallel_size=2)
    (path / "ar_omni_jax.json").unlink()
    got = backbones.load("meta", path)
    assert got.config.qk_norm_groups == 2
    for name in original.shapes:
        expected = original.get(name)
        if "k_norm" in name or "q_norm" in name:
            expected = expected.repeat(2, axis=0)
        assert got.get(name).tobytes() == expected.tobytes(), name


def test_a_type_is_chosen_for_all_tensors(tmp_path):
    original = backbones.make()
    path = backbones.save(original, "hf", tmp_path / "hf")
    for number, (layout, dtype) in enumerate([("orbax", "bfloat16"), ("meta", "float16"), ("hf", "bfloat16")]):
        target = tmp_path / str(number)
        assert backbones.run(path, target, layout, dtype=dtype) == 0
        got = backbones.load(layout, target)
        assert set(got.dtypes.values()) == {dtype} and got.config.param_dtype == dtype
        for name in original.shapes:
            expected = original.get(name).astype(backbones.DTYPES[dtype])
            assert got.get(name).tobytes() == expected.tobytes(), name


def test_small_shards_and_their_index(tmp_path):
    import json

    from safetensors.torch import load_file

    original = backbones.make()
    path = backbones.save(original, "hf", tmp_path / "hf", max_shard_size="12KB")
    index = json.loads((path / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in path.glob("*.safetensors"))
    assert len(files) > 3 and set(index["weight_map"].values()) == set(files)
    sizes = {file: sum(t.nbytes for t in load_file(path / file).values()) for file in files}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert all(size <= 12_000 or len(load_file(path / file)) == 1 for file, size in sizes.items())
    backbones.assert_same(original, backbones.load("hf", path))
