"""Initial T5 parameters with an induction circuit, so that an untrained model copies its input.

A small T5 learns to copy only after very many tokens, because two attention heads must be learnt
together: an encoder head that writes the previous token into each token's encoding, and a
cross-attention head that attends to the token whose predecessor the decoder has just produced (the
induction heads of Olsson et al. 2022, arXiv 2209.11895, across encoder and decoder). Both are
linear maps with a closed form, which this module sets and which training then refines.

Axes: E emb_dim, D head_dim.
"""

import jax
import numpy as np

from dera_jax.models.language_model import PyTree
from dera_jax.models.t5 import T5Config

# The first three were selected, from the ranges 3 to 6, 1 to 4 and 3 to 10, for the accuracy of
# continuing random sequences.
PREDECESSOR_SCALE = 4.0  # weight of the previous token in an encoding, relative to the token itself
SHARPNESS = 2.0  # scale of the queries that compare the decoder's last token with predecessors
STRENGTH = 10.0  # weight of the copied token in the decoder's output, relative to its last token
LOCALITY = 10.0  # attention logit of the previous token


def with_copying_heads(params: PyTree, config: T5Config, key: jax.Array) -> PyTree:
    """Sets one encoder head and two cross-attention heads so that the model copies its input.

    O, V (D directions each) and U (2·D) are random orthogonal directions of the embedding space.
    Encoder head 0 of the first layer writes the projection on V of the previous token x_(j-1) to O.
    Heads 0 and 1 of the last layer's cross-attention attend to the tokens x_j where O holds the
    projection on V of the decoder's last token y_t, and add the projection of x_j on U to the
    output. Encoder layers share the relative position biases, so head 0 of each gets the new ones.

    Args:
        params: parameter tree of T5X, as `T5.init` returns it.
        config: configuration of the model, with logits via the embedding.
        key: PRNG key of the random directions.

    Returns:
        A copy of the tree, as NumPy arrays, with these heads replaced.

    Raises:
        ValueError: the logits are not tied to the embedding, there are fewer than two heads, or
            emb_dim is below 4·head_dim.
    """
    E, D = config.emb_dim, config.head_dim
    if not config.logits_via_embedding or config.num_heads < 2 or E < 4 * D:
        raise ValueError(
            "copying heads need a T5Config with logits_via_embedding = True, num_heads >= 2 and "
            f"emb_dim >= 4 * head_dim; found logits_via_embedding = {config.logits_via_embedding}, "
            f"num_heads = {config.num_heads}, emb_dim = {E} and head_dim = {D}."
        )
    params = jax.tree.map(np.array, params)
    directions, _ = np.linalg.qr(jax.random.normal(key, (E, E)))
    O, V, U = directions[:, :D].T, directions[:, D : 2 * D], directions[:, 2 * D : 4 * D]

    bias = params["encoder"]["relpos_bias"]["rel_embedding"]
    bias[0] = np.where(np.arange(bias.shape[1]) == 1, LOCALITY, 0)  # bucket 1: one token before
    head = params["encoder"]["layers_0"]["attention"]
    head["query"]["kernel"][:, :D] *= 0.1  # attend by relative position, hardly by token
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
