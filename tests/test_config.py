"""Settings: every mistake is an error that names the key; the shipped files say what the paper says."""

from pathlib import Path

import jax
import pytest

from ar_omni_jax.config import (
    KEYS,
    base_config,
    changes_on_resume,
    derived,
    describe_derived,
    describe_keys,
    load_config,
    model_config,
)
from ar_omni_jax.model.config import ConfigError
from ar_omni_jax.model.transformer import abstract_transformer
from ar_omni_jax.training.losses import LossConfig
from ar_omni_jax.training.optimizer import OptimizerConfig

CONFIGS = Path(__file__).parents[1] / "configs"
SMOKE = str(CONFIGS / "smoke.py")
FILES = ("smoke", "toyworld", "pretrain_7b", "instruct_7b", "pretrain_7b.py:reference_readme")
FILES += ("instruct_7b.py:reference_readme", "instruct_toyworld")


def shipped(name):
    return load_config(str(CONFIGS / (name if ":" in name else f"{name}.py")))


def write_config(tmp_path, line):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ar_omni_jax.config import base_config\n"
        "def get_config(arg=''):\n    config = base_config()\n    " + line + "\n    return config\n"
    )
    return str(path)


@pytest.mark.parametrize("name", FILES)
def test_shipped_files_are_valid_for_every_part(name):
    config = shipped(name)
    model_config(config.model, 65536)
    LossConfig.of(config.loss.to_dict())
    OptimizerConfig.of(config.optimizer.to_dict())


def test_a_config_stays_small_enough_to_read():
    assert len(KEYS) <= 69, "the limit is about 60"
    assert all(f"--config.{name}=" in describe_keys() for name in KEYS)


def test_overrides_take_the_type_of_their_key():
    overrides = {"train.steps": "7", "optimizer.peak_lr": "1e-3", "data.response_only": "true", "data.path": "a b"}
    config = load_config(SMOKE, overrides.items())
    assert (config.train.steps, config.optimizer.peak_lr) == (7, 1e-3)
    assert config.data.response_only is True
    assert config.data.path == "a b"
    assert config.data.batch_size == load_config(SMOKE).data.batch_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (("train.stesp", "7"), r"no key config\.train\.stesp; did you mean config\.train\.steps\?"),
        (("modle.d_model", "7"), r"did you mean config\.model\.d_model\?"),
        (("peak_lr", "7"), r"did you mean config\.optimizer\.peak_lr\?"),
        (("entirely.else", "7"), r"--help lists all keys"),
        (("train", "7"), r"no key config\.train;"),
        (("train.steps", "many"), r"--config\.train\.steps=many: expected int"),
        (("train.steps", "1.5"), r"expected int"),
        (("model.qk_norm", "yes"), r"expected true or false"),
        (("train.steps", "0"), r"config\.train\.steps = 0 is outside \[1, inf\]"),
        (("optimizer.warmup_fraction", "1.5"), r"outside \[0\.0, 1\.0\]"),
        (("optimizer.peak_lr", "nan"), r"config\.optimizer\.peak_lr = nan is outside"),
        (("optimizer.peak_lr", "inf"), r"config\.optimizer\.peak_lr = inf is outside"),
        (("optimizer.schedule", "linaer"), r"did you mean 'linear'\?"),
        (("data.length", "100000"), r"config\.data\.length = 100000 is longer than config\.model\.max_length"),
        (("optimizer.accumulate", "3"), r"not a multiple of config\.optimizer\.accumulate = 3"),
    ],
)
def test_wrong_overrides_are_named(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(SMOKE, [override])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "config.train.stesp = 7",
            r"mine\.py: there is no key config\.train\.stesp; did you mean config\.train\.steps",
        ),
        ("config.trian = 3", r"mine\.py: there is no key config\.trian"),
        ("config.train.steps = 'x'", r"mine\.py: .*steps.*str"),
        ("config.train.steps = 2.5", r"mine\.py: .*steps.*float"),
        ("del config.train.steps", r"config\.train\.steps is missing"),
        ("config.modle.d_model = 7", r"mine\.py: .*modle"),
        ("config = {}", r"returned dict"),
        ("config.mesh.update(data=-1, fsdp=-1)", r"only one axis can be -1"),
        ("config.mesh.tensor = 0", r"unused axes are 1"),
        ("config.data.mixture.update(text=0.0, image=0.0, speech=0.0)", r"mixture"),
    ],
)
def test_wrong_files_are_named(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write_config(tmp_path, line))


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    folder = tmp_path / "at 5:30"
    folder.mkdir()
    path = write_config(folder, "config.seed = 7 if arg else 3")
    assert load_config(str(path)).seed == 3
    assert load_config(f"{path}:late").seed == 7


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(ConfigError, match=r"smok\.py does not exist; there are .*smoke\.py"):
        load_config(str(CONFIGS / "smok.py"))


def test_integers_serve_as_floats(tmp_path):
    config = load_config(write_config(tmp_path, "config.optimizer.peak_lr = 1"))
    assert config.optimizer.peak_lr == 1.0
    assert type(config.optimizer.peak_lr) is float


def test_pretraining_is_table_8():
    config = shipped("pretrain_7b")
    assert (config.data.batch_size, config.data.length) == (480, 1300)
    assert (config.optimizer.peak_lr, config.optimizer.schedule) == (6e-5, "linear")
    assert (config.optimizer.warmup_fraction, config.optimizer.clip_norm) == (0.05, 1.0)
    assert config.train.steps == 140_000
    assert config.data.mixture.to_dict() == {"text": 0.5, "image": 1.0, "speech": 2.0}
    assert config.data.stop == "first_exhausted"
    assert (config.model.norm_placement, config.model.dtype) == ("swin", "bfloat16")


def test_instruction_tuning_is_table_8():
    config = shipped("instruct_7b")
    assert (config.data.batch_size, config.data.length) == (64, 3456)
    assert (config.optimizer.peak_lr, config.train.steps) == (2e-5, 18_000)
    assert config.data.response_only


def test_the_reference_readme_is_there_by_name():
    config = shipped("pretrain_7b.py:reference_readme")
    assert (config.data.batch_size, config.train.steps) == (256, 150_000)
    assert (config.optimizer.peak_lr, config.optimizer.warmup_fraction) == (1e-5, 0.03)
    assert shipped("instruct_7b.py:reference_readme").data.length == 2048
    with pytest.raises(ConfigError, match="unknown variant 'paper'"):
        shipped("pretrain_7b.py:paper")


def test_the_7b_shape_has_its_parameters():
    config = model_config(shipped("pretrain_7b").model, 65536)
    abstract = jax.tree.leaves(abstract_transformer(config))
    counted = sum(leaf.size for leaf in abstract)
    assert counted == config.parameter_count()
    assert round(counted / 1e9, 2) == 7.01


def test_derived_values():
    config = shipped("pretrain_7b")
    values = derived(config, model_config(config.model, 65536))
    assert values["tokens_per_step"] == 480 * 1300
    assert values["total_tokens"] == 480 * 1300 * 140_000
    assert values["warmup_steps"] == 7000
    assert 41.4e9 < values["flops_per_token"] < 41.6e9  # 6 * 6.745e9 + 6 * 32 * 1300 * 4096
    told = describe_derived(values)
    assert "7,013,158,912 parameters, 41.5 GFLOP a token" in told
    assert "140,000 steps (7,000 warm-up) of 624,000 tokens = 87.4 Gtokens" in told


def test_changes_on_resume_are_sorted_by_gravity():
    old, new = base_config().to_dict(), base_config().to_dict()
    assert changes_on_resume(old, new) == ([], [])
    new["train"]["log_every"] = new["train"]["keep_checkpoints"] = 1
    new["mesh"]["data"], new["data"]["path"] = 2, "moved"
    assert changes_on_resume(old, new) == ([], [])
    new["optimizer"]["peak_lr"], new["model"]["remat"] = 0.5, "full"
    refused, warned = changes_on_resume(old, new)
    assert refused == []
    assert "config.optimizer.peak_lr: 0.001 in the checkpoint, 0.5 now" in warned
    new["model"]["d_ff"] = 7
    refused, _ = changes_on_resume(old, new)
    assert refused == ["config.model.d_ff: 384 in the checkpoint, 7 now"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("optimizer.moment_dtype", "bfloat16"), ("optimizer.muon_lr", 0.1), ("optimizer.weight_decay", 0.1)]
    + [("optimizer.clip_norm", 0.0), ("loss.perceptual_weight", 0.1)],
)
def test_keys_that_give_the_state_other_arrays_are_refused_by_name(name, value):
    old, new = base_config().to_dict(), base_config().to_dict()
    section, key = name.split(".")
    new[section][key] = value
    refused, warned = changes_on_resume(old, new)
    assert warned == [] and len(refused) == 1 and refused[0].startswith(f"config.{name}: ")


def test_values_that_only_change_how_much_are_told():
    old, new = base_config().to_dict(), base_config().to_dict()
    old["optimizer"]["weight_decay"], new["optimizer"]["weight_decay"] = 0.1, 0.2
    new["train"]["skip_spikes"] = 8.0
    refused, warned = changes_on_resume(old, new)
    assert refused == [] and len(warned) == 2


def test_a_run_keeps_the_parent_it_began_with(tmp_path, monkeypatch):
    def refused(before, now):
        old, new = base_config().to_dict(), base_config().to_dict()
        old["train"]["init_from"], new["train"]["init_from"] = str(before), str(now)
        found, warned = changes_on_resume(old, new)
        assert warned == []
        return found

    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    assert refused("a", "b") == ["config.train.init_from: 'a' in the checkpoint, 'b' now"]
    assert refused("", "a") == ["config.train.init_from: '' in the checkpoint, 'a' now"]
    for same in ("a", "./a/", tmp_path / "a", "link"):  # or the parent is not named any more
        assert refused("a", same) == refused(same, "a") == refused(same, "") == []
    assert refused("/gone/a", "/gone/a") == []  # on another machine


def test_a_checkpoint_from_before_a_key_existed_had_its_default():
    old, new = base_config().to_dict(), base_config().to_dict()
    del old["train"]["skip_spikes"], old["optimizer"]["muon_lr"]
    assert changes_on_resume(old, new) == ([], [])
