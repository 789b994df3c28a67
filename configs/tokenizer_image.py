"""The small default image tokenizer: VQGAN, 64x64 pixels to 8x8 codes of 512, 0.79 M parameters.

    python -m ar_omni_jax.tokenizers.train --config=configs/tokenizer_image.py --workdir=DIR --config.data_dir=TOY

On a toy world of 3000 scenes: about half an hour of two busy CPU cores. Test split: PSNR 37.9 dB, 91 % of the codes
used; 99.6 % of the attributes of scenes read back (shapes 98.8 %, colours, sizes and positions 99.8 %).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.kind = "image"
    config.data_dir = ""  # holds train.jsonl, test.jsonl and the pictures they name
    config.seed = 0
    config.steps = 11000
    config.batch_size = 8
    config.learning_rate = 6e-3
    config.warmup_steps = 50
    config.clip_norm = 1.0
    config.log_every = 50
    config.eval_every = 500
    config.eval_images = 500
    config.checkpoint_every = 500

    config.model = ConfigDict(
        {
            "ddconfig": {
                "ch": 16,
                "ch_mult": (1, 1, 2, 4),
                "num_res_blocks": 1,
                "attn_resolutions": (),
                "z_channels": 64,
                "resolution": 64,
                "in_channels": 3,
                "out_ch": 3,
                "double_z": False,
                "dropout": 0.0,
                "num_groups": 2,
            },
            "n_embed": 512,
            "embed_dim": 32,
        }
    )

    config.crop_until = 5500  # steps on crops: less work each, and more objects than background
    config.crop_size = 32
    config.crop_batch_size = 16
    config.edge_weight = 0.5
    config.commitment_weight = 0.1
    config.context_weight = 1.0  # a patch should have the same code whatever surrounds it
    config.codebook_decay = 0.99
    config.codebook_start = 2500  # steps as a plain autoencoder before k-means places the codes
    config.kmeans_images = 1024
    config.kmeans_iterations = 10
    config.revive_every = 50
    config.revive_until = 0.6  # share of the steps after which no code is moved any more
    config.dead_below = 0.03  # a code that wins fewer latents a batch (moving average) is dead
    return config
