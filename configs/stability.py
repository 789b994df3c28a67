"""One run of the stability probe: the main job's model and data at high learning rates, with and without what is to
keep training stable.

  python -m ar_omni_jax.main --config=configs/stability.py:plain_x10 --workdir=DIR --config.data.path=PACKED

trains one; all of them, several seeds each, written up as a page:

  python -m ar_omni_jax.ablation.stability --run=runs/toyworld --output=runs/stability

The rate stays at its height after the warm-up, every step is logged, and no number of skipped steps ends a run: how
it fares is what is asked.

Expected on 2 CPU cores with nothing beside it, reckoned from the main job's speed: 2.6 minutes a run of 400 steps, so
with 9 arms and 3 seeds 70 minutes; interrupted, it goes on.
"""

from pathlib import Path

from ar_omni_jax.ablation.arms import ARMS
from ar_omni_jax.config import load_config


def get_config(arg: str = "guarded_x10"):
    if arg not in ARMS:
        raise ValueError(f"unknown arm {arg!r}; the arms are {', '.join(ARMS)}")
    config = load_config(str(Path(__file__).with_name("toyworld.py")))
    with config.unlocked():
        config.train.update(steps=400, log_every=1, eval_every=50, eval_batches=16, sample_every=0)
        config.train.update(checkpoint_every=400, keep_checkpoints=1, max_skipped=1_000_000)
        config.optimizer.schedule = "constant"
        config.optimizer.peak_lr *= ARMS[arg].rate
        config.optimizer.muon_lr *= ARMS[arg].rate
        config.update_from_flattened_dict(ARMS[arg].settings)
    return config
