"""The main job: a tri-modal model of the toy world, trained from nothing on one machine.

  bash launch/run_local.sh        makes the data, trains with this file, evaluates, writes the report

or, with data made by the first steps of that script,

  python -m ar_omni_jax.main --config=configs/toyworld.py --workdir=DIR --config.data.path=PACKED
"""

from ar_omni_jax.config import base_config


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"unknown variant {arg!r}; there is none")
    config = base_config()
    config.model.update(num_layers=6, d_model=256, num_heads=8, num_kv_heads=8, head_dim=32, d_ff=512)
    config.model.update(max_length=1024)
    config.model.attention = "rowwise"  # fastest on one CPU; "blocked" on several devices
    config.data.update(length=512, batch_size=8)
    config.loss.update(perceptual_weight=0.01, z_loss=1e-5)
    config.optimizer.update(peak_lr=2e-3, b2=0.98, weight_decay=0.05)
    config.train.update(steps=1500, log_every=20, eval_every=250, eval_batches=8, checkpoint_every=250)
    config.train.update(sample_every=500)
    return config
