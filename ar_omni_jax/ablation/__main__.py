"""The ablation: every variant of configs/ablation.py trained with several seeds, judged, and a page about it.

  python -m ar_omni_jax.ablation --run=runs/toyworld --output=runs/ablation

--run is a folder of launch/run_local.sh: its packed/ rows are trained on, its held-out toy/test.jsonl is judged.
Interrupt it and run it again: it goes on. The page, OUTPUT/index.html, is written anew after every run; every number
of it stands in OUTPUT/ablation.json. Further words, as --config.train.steps=3600, go to every training.
"""

from __future__ import annotations

import sys

from ar_omni_jax.ablation.command import run_command
from ar_omni_jax.ablation.page import write_page
from ar_omni_jax.ablation.study import ABLATION

if __name__ == "__main__":
    sys.exit(run_command(ABLATION, __doc__, write_page))
