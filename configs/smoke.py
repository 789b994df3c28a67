"""A first look: makes its own toy data and trains a tiny model on it, all in about a minute on 2 CPU cores.

python -m ar_omni_jax.main --config=configs/smoke.py --workdir=runs/smoke
"""

from ar_omni_jax.config import base_config


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"unknown variant {arg!r}; there is none")
    config = base_config()
    config.model.update(num_layers=2, d_model=64, num_heads=4, num_kv_heads=4, head_dim=16, d_ff=192)
    config.model.update(max_length=512, attention="rowwise")
    config.data.update(prepare="toyworld", length=512, batch_size=4)
    config.loss.perceptual_weight = 0.01
    config.optimizer.update(peak_lr=3e-3, warmup_fraction=0.1)
    config.train.update(steps=60, log_every=10, eval_every=30, eval_batches=4, checkpoint_every=30)
    return config
