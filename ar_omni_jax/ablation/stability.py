"""The stability probe: training at high learning rates with and without swin-norm, q/k norm and z-loss, and a page.

  python -m ar_omni_jax.ablation.stability --run=runs/toyworld --output=runs/stability

Every arm of configs/stability.py is trained with several seeds: spikes, gradient norms, steps skipped for numbers that
are none, and held-out losses are compared. --run is a folder of launch/run_local.sh, whose packed/ rows are trained on.
Interrupt it and run it again: it goes on. The page, OUTPUT/index.html, is written anew after every run; every number
of it stands in OUTPUT/stability.json. Further words, as --config.train.steps=1200, go to every training.
"""

from __future__ import annotations

import sys

from ar_omni_jax.ablation.command import run_command
from ar_omni_jax.ablation.stability_page import write_page
from ar_omni_jax.ablation.study import STABILITY

if __name__ == "__main__":
    sys.exit(run_command(STABILITY, __doc__, write_page))
