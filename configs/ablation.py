"""One variant of the ablation: the main job's model and data, one part of the method left out or changed.

  python -m ar_omni_jax.main --config=configs/ablation.py:no_swin --workdir=DIR --config.data.path=PACKED

trains one; all of them, several seeds each, evaluated and written up as a page:

  python -m ar_omni_jax.ablation --run=runs/toyworld --output=runs/ablation

Expected on 2 CPU cores: 6 minutes a run of 1,200 steps, so with 12 variants and 3 seeds about 4 hours with the
evaluations; interrupted, it goes on, and with --jobs=2 two runs go side by side. What 600 steps gave: docs/ablation.md.
"""

from pathlib import Path

from ar_omni_jax.ablation.variants import VARIANTS
from ar_omni_jax.config import load_config


def get_config(arg: str = "full"):
    if arg not in VARIANTS:
        raise ValueError(f"unknown variant {arg!r}; the variants are {', '.join(VARIANTS)}")
    config = load_config(str(Path(__file__).with_name("toyworld.py")))
    with config.unlocked():
        config.train.update(steps=1200, eval_every=300, checkpoint_every=600, sample_every=0)
        config.update_from_flattened_dict(VARIANTS[arg].settings)
    return config
