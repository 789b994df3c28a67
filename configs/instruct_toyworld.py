"""Instruction tuning on the toy world (stage 2): the main job's model goes on with dialogues, only answers count.

  bash launch/run_instruct.sh     makes the dialogues, trains with this file, evaluates, writes the page

or, with data made by the first steps of that script,

  python -m ar_omni_jax.main --config=configs/instruct_toyworld.py --workdir=DIR --config.data.path=PACKED \
    --config.train.init_from=runs/toyworld/train

Expected, from the longer main job (10,000 steps): 1,000 steps of 2,304 tokens, 18 minutes on 2 CPU cores that other
jobs kept busy (about 6 on quiet ones, by the main job's speed). Last answers of 41 to 64 held-out dialogues a kind are
right in 71 % (written questions; chance 24), 69 % (spoken questions; chance 16) and 30 % (spoken answers; chance 34:
not learned); pictures have 76 % of attributes right (chance 21), but only 29 % of changes are made as asked. It
forgets: captions fall from 89 to 76 %, pictures from 70 to 55 %, word error of recognition rises from 0 to 6 %.
Details: docs/instruct.md
"""

from pathlib import Path

from ar_omni_jax.config import load_config


def get_config(arg: str = ""):
    if arg:
        raise ValueError(f"unknown variant {arg!r}; there is none")
    # The same model: its weights are where this run starts.
    config = load_config(str(Path(__file__).with_name("toyworld.py")))
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
