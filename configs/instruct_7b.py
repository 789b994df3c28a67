"""Instruction tuning of the 7B model with the paper's settings (Table 8): only responses count.

  python -m ar_omni_jax.main --config=configs/instruct_7b.py --workdir=DIR --config.data.path=PACKED \
    --config.data.tokenizers=TOKENIZERS --config.train.init_from=PRETRAINED

PACKED holds dialogues in rows of 3456 tokens, PRETRAINED is the workdir of a run of configs/pretrain_7b.py.
Expected, by the paper: VCTK zero-shot TTS WER 6.5, first token after 146 ms on one A100.

Without TOKENIZERS leave that setting out and add --config.loss.perceptual_weight=0.

`configs/instruct_7b.py:reference_readme` takes the reference code's README instead: learning rate 1e-5, length 2048,
warm-up 0.03. It counts 5 epochs, not steps: set --config.train.steps to 5 times the rows of your data by 64.
"""

from ar_omni_jax.config import base_config


def get_config(arg: str = ""):
    if arg not in ("", "reference_readme"):
        raise ValueError(f"unknown variant {arg!r}; the variants are '' (the paper) and 'reference_readme'")
    config = base_config()
    config.model.update(num_layers=32, d_model=4096, num_heads=32, num_kv_heads=32, head_dim=128, d_ff=11008)
    config.model.update(dtype="bfloat16", max_length=4096, remat="full", attention="auto")
    config.data.update(tokenizers="chameleon", length=3456, batch_size=64, response_only=True, stop="repeat")
    config.loss.update(perceptual_weight=0.01, perceptual_scope="response", chunk=2048)
    config.optimizer.update(peak_lr=2e-5, warmup_fraction=0.05, clip_norm=1.0, b2=0.95)
    config.mesh.update(data=1, fsdp=-1)
    config.train.update(steps=18_000, log_every=10, eval_every=1000, eval_batches=16, checkpoint_every=500)
    config.train.update(keep_every=3000)
    if arg == "reference_readme":
        config.data.length = 2048
        config.optimizer.update(peak_lr=1e-5, warmup_fraction=0.03)
    return config
