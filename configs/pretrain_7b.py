"""Pretraining of the 7B model with the paper's settings (Table 8).

  python -m ar_omni_jax.main --config=configs/pretrain_7b.py --workdir=DIR --config.data.path=PACKED \
    --config.data.tokenizers=TOKENIZERS --config.train.init_from=ANOLE

PACKED holds rows of 1300 tokens in the published vocabulary, TOKENIZERS the converted image tokenizer, whose codebook
the perceptual loss needs, and ANOLE a converted Anole 7B checkpoint (leave it out to start from nothing). Expected,
by the paper: COCO caption CIDEr 56.5 and LibriSpeech test-clean WER 9.4 after both stages. Anole is pre-norm: under
swin-norm its weights are a starting point, not the same function.

Without TOKENIZERS leave that setting out and add --config.loss.perceptual_weight=0: next-token loss alone, on data
already in the published vocabulary.

`configs/pretrain_7b.py:reference_readme` takes the settings of the reference code's README instead: learning rate
1e-5, batch 256, 150,000 steps, warm-up 0.03.
"""

from ar_omni_jax.config import base_config


def get_config(arg: str = ""):
    if arg not in ("", "reference_readme"):
        raise ValueError(f"unknown variant {arg!r}; the variants are '' (the paper) and 'reference_readme'")
    config = base_config()
    config.model.update(num_layers=32, d_model=4096, num_heads=32, num_kv_heads=32, head_dim=128, d_ff=11008)
    config.model.update(dtype="bfloat16", max_length=4096, remat="full", attention="auto")
    config.data.update(tokenizers="chameleon", length=1300, batch_size=480, stop="first_exhausted")
    # The paper calls lambda small and gives no number.
    config.loss.update(perceptual_weight=0.01, chunk=2048)
    # Adam with linear warm-up and decay; b2 of the Chameleon family.
    config.optimizer.update(peak_lr=6e-5, warmup_fraction=0.05, clip_norm=1.0, b2=0.95)
    config.mesh.update(data=1, fsdp=-1)
    config.train.update(steps=140_000, log_every=10, eval_every=2000, eval_batches=16, checkpoint_every=1000)
    config.train.update(keep_every=20_000)
    if arg == "reference_readme":
        config.data.batch_size = 256
        config.optimizer.update(peak_lr=1e-5, warmup_fraction=0.03)
        config.train.steps = 150_000
    return config
