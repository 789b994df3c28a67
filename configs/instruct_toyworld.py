"""Instruction tuning on the toy world (stage 2): the main job's model goes on with dialogues, only answers count.

  bash launch/run_instruct.sh     makes the dialogues, trains with this file, evaluates, writes the page

or, with data made by the first steps of that script,

  python -m ar_omni_jax.main --config=configs/instruct_toyworld.py --workdir=DIR --config.data.path=PACKED \
    --config.train.init_from=runs/toyworld/train

EXPECTED
"""

import importlib.util
from pathlib import Path


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"unknown variant {arg!r}; there is none")
    spec = importlib.util.spec_from_file_location("toyworld_config", Path(__file__).with_name("toyworld.py"))
    toyworld = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toyworld)
    config = toyworld.get_config()  # the same model: its weights are where this run starts
    config.train.init_from = "runs/toyworld/train"
    # Three rounds with pictures and speech need more room than a caption.
    config.data.update(length=768, batch_size=3, response_only=True)
    config.data.mixture.update(text=0.0, image=1.0, speech=1.0)
    config.loss.perceptual_scope = "response"  # pictures that are shown, not drawn, do not count
    # A third of the main job's rates, as in the paper.
    config.optimizer.update(peak_lr=1e-3, muon_lr=0.007)
    config.train.update(steps=1000, log_every=20, eval_every=200, eval_batches=24, checkpoint_every=200)
    config.train.update(sample_every=0)
    return config
