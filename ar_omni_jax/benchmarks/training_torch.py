"""The rival: HF transformers' Chameleon trained by PyTorch's AdamW with the same losses, on padded batches."""

from __future__ import annotations

import numpy as np

from ar_omni_jax.benchmarks import training_work as work
from ar_omni_jax.evaluation.hf_baseline import hf_config, require_packages


class TorchStep:
    """One optimizer step over the micro-batches of a step's documents.

    Args:
      weights: {HF name: float32 array}, of `hf_baseline.hf_weights`. projection: W_h {"kernel" [D, E], "bias" [E]}.
    """

    def __init__(self, size: work.Size, weights: dict[str, np.ndarray], projection: dict[str, np.ndarray]):
        require_packages()
        import torch
        import transformers

        self._torch, self._vocabulary = torch, work.vocabulary_of(size)
        transformers.logging.set_verbosity_error()
        config = hf_config(work.model_of(size), self._vocabulary, transformers)
        config._attn_implementation = "sdpa"
        whole = transformers.ChameleonForConditionalGeneration(config)
        whole.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
        del whole.model.vqmodel  # not run
        self._backbone, self._head = whole.model, whole.lm_head
        self._projection = torch.nn.Linear(*projection["kernel"].shape)
        with torch.no_grad():
            self._projection.weight.copy_(torch.from_numpy(projection["kernel"].T.copy()))
            self._projection.bias.copy_(torch.from_numpy(projection["bias"].copy()))
        self._codebook = torch.from_numpy(work.codebook())
        self._params = [*whole.parameters(), *self._projection.parameters()]
        self._optimizer = torch.optim.AdamW(
            self._params,
            lr=work.LEARNING_RATE,
            betas=(work.ADAM["b1"], work.ADAM["b2"]),
            eps=work.ADAM["eps"],
            weight_decay=work.WEIGHT_DECAY,
            fused=True,
        )
        self.name = (
            f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads"
        )

    def __call__(self, batches: list[dict[str, np.ndarray]]) -> float:
        """Updates the weights; returns the loss of the whole step before it."""
        torch = self._torch
        image = self._vocabulary.image
        total = sum(float(b["loss_weights"].sum()) for b in batches)
        pictures = [self._pictures(b) for b in batches]
        count = max(1, sum(int(p.sum()) for p in pictures))
        loss = 0.0
        for batch, marks in zip(batches, pictures, strict=True):
            tokens = torch.from_numpy(batch["tokens"].astype(np.int64))
            mask = torch.from_numpy((batch["segment_ids"] > 0).astype(np.int64))
            hidden = self._backbone(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self._head(hidden).float()
            targets = torch.from_numpy(batch["targets"].astype(np.int64))
            weights = torch.from_numpy(batch["loss_weights"])
            log_z = torch.logsumexp(logits, -1)
            nll = log_z - logits.gather(-1, targets[..., None])[..., 0]
            share = (weights * (nll + work.Z_LOSS * log_z.square())).sum() / total
            marks = torch.from_numpy(marks)
            codes = targets[marks] - image.start
            error = self._projection(hidden[marks]) - self._codebook[codes]
            share = share + work.PERCEPTUAL_WEIGHT * error.square().sum() / count
            share.backward()
            loss += float(share.detach())
        torch.nn.utils.clip_grad_norm_([p for p in self._params if p.grad is not None], work.CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss

    def _pictures(self, batch) -> np.ndarray:
        """bool [B, L]: positions that predict an image code."""
        targets, image = batch["targets"], self._vocabulary.image
        return (targets >= image.start) & (targets < image.start + image.count) & (batch["target_class"] > 0)
