"""A T5 that is born able to copy: two attention heads set to be an induction circuit.

A small decoder learns to copy from its input only after very many tokens, because two things must be
learnt at once: an encoder head that tells each token its predecessor, and a cross-attention head that
finds the token whose predecessor was just written (the circuit of Olsson et al. 2022,
arXiv 2209.11895, across encoder and decoder). Both are linear maps that can be written down, and
training then refines them.

Axes: E emb_dim, D head_dim.
"""

import jax
import numpy as np

from dera_jax.models.language_model import PyTree
from dera_jax.models.t5 import T5Config

# Found by the accuracy of continuing random text, among the values 3..6, 1..4 and 3..10.
PREDECESSOR_SCALE = 4.0  # of the predecessor in a token's encoding, against the token itself
SHARPNESS = 2.0  # of the match between the token written and the predecessors
STRENGTH = 10.0  # of the copied token in the decoder's output, against the token written
LOCALITY = 10.0  # logit in favour of the predecessor


def with_copying_heads(params: PyTree, config: T5Config, key: jax.Array) -> PyTree:
    """Sets one encoder head and two cross-attention heads of random parameters to copy.

    In random orthogonal directions of the embedding, D of each kind: encoder head 0 of the first
    layer writes V·x_(j-1) to O; heads 0 and 1 of the last layer's cross-attention look for O = V·y_t
    and write what U finds there, 2·D directions of the token x_j, back to where they were read.

    Args:
        params: T5X's tree, as `T5.init` gives it.
        config: of the model, with logits via the embedding.
        key: of the directions.

    Returns:
        The tree with these heads replaced.

    Raises:
        ValueError: logits of their own, fewer than two heads, or emb_dim below 4·head_dim.
    """
    E, D = config.emb_dim, config.head_dim
    if not config.logits_via_embedding or config.num_heads < 2 or E < 4 * D:
        raise ValueError(
            "copying heads need logits_via_embedding, at least 2 heads and emb_dim >= 4 * head_dim; "
            f"found {config.logits_via_embedding}, {config.num_heads}, {E} and {D}."
        )
    params = jax.tree.map(np.array, params)
    directions, _ = np.linalg.qr(jax.random.normal(key, (E, E)))
    O, V, U = directions[:, :D].T, directions[:, D : 2 * D], directions[:, 2 * D : 4 * D]

    bias = params["encoder"]["relpos_bias"]["rel_embedding"]
    bias[0] = np.where(np.arange(bias.shape[1]) == 1, LOCALITY, 0)  # bucket 1: one token before
    head = params["encoder"]["layers_0"]["attention"]
    head["query"]["kernel"][:, :D] *= 0.1  # look at the place, not at the token
    head["value"]["kernel"][:, :D] = V
    head["out"]["kernel"][:D] = PREDECESSOR_SCALE * O

    cross = params["decoder"][f"layers_{config.num_decoder_layers - 1}"][
        "encoder_decoder_attention"
    ]
    for h in (0, 1):
        columns = slice(h * D, (h + 1) * D)
        cross["query"]["kernel"][:, columns] = SHARPNESS * V
        cross["key"]["kernel"][:, columns] = O.T
        cross["value"]["kernel"][:, columns] = U[:, columns]
        cross["out"]["kernel"][columns] = STRENGTH * U[:, columns].T
    return params
