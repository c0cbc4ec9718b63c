"""Sizes and options of the decoder-only networks of `llama.py`."""

import dataclasses
from collections.abc import Mapping

from dera_jax import checks


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scales the wavelengths of RoPE as Llama 3.1 does, for contexts longer than those of pre-training.

    Wavelengths below `context`/`high` positions stay, those above `context`/`low` are multiplied by
    `factor`, and those between are interpolated.

    Attributes:
        factor: multiplies long wavelengths.
        low: `low_freq_factor` in transformers.
        high: `high_freq_factor`, greater than `low`.
        context: positions of pre-training, `original_max_position_embeddings`.

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    factor: float
    low: float
    high: float
    context: int

    def __post_init__(self):
        positive = checks.number(above=0)
        checks.check_fields(
            self,
            factor=checks.number(least=1),
            low=positive,
            high=positive,
            context=checks.integer(1),
        )
        if self.low >= self.high:
            raise ValueError(
                f"RopeScaling.high must be greater than low, {self.low}; found {self.high}."
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes of a decoder-only network, named as in `T5Config`.

    Attributes:
        num_heads: query heads; a multiple of num_kv_heads.
        num_kv_heads: key and value heads.
        head_dim: size of a head; even, need not be emb_dim / num_heads.
        rope_base: base of RoPE's wavelengths (`rope_theta` in transformers).
        rope_scaling: of RoPE's wavelengths; None for none.
        norm_epsilon: the epsilon of RMSNorm.
        qkv_bias: whether the query, key and value projections have biases (Qwen 2).
        head_norms: whether each head's queries and keys are normalized before RoPE (Qwen 3).
        layer_windows: for each layer the number of keys that a token attends to, its own included;
            None for all keys before it. Empty if no layer has a window.
        logits_via_embedding: whether the output kernel is the embedding (tied) or a separate one.
        dtype: type of activations and of operands of matrix products, 'float32' or 'bfloat16'.
            Softmax, norms, rotations and logits are float32; parameters keep their own type.
        end_ids: the tokens that end a sequence; empty while they are not known.
        max_positions: the longest sequence that the model is meant for (`max_position_embeddings`); None if
            it is not known. Longer ones are computed, with a warning. It is no part of the architecture:
            configurations that differ in it alone are equal.

    Raises:
        ValueError: naming an invalid field and what it accepts.
    """

    vocab_size: int
    emb_dim: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    head_dim: int
    mlp_dim: int
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    qkv_bias: bool = False
    head_norms: bool = False
    layer_windows: tuple[int | None, ...] = ()
    logits_via_embedding: bool = False
    dtype: str = "float32"
    end_ids: tuple[int, ...] = ()
    max_positions: int | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        if isinstance(self.rope_scaling, Mapping):  # as JSON has it
            object.__setattr__(self, "rope_scaling", RopeScaling(**self.rope_scaling))
        size = checks.integer(1, 2**31 - 1)
        sizes = ("vocab_size", "emb_dim", "num_heads", "num_kv_heads", "num_layers", "mlp_dim")
        checks.check_fields(self, **dict.fromkeys(sizes, size))
        even = checks.Check(
            "an even integer of at least 2", lambda x: size.allows(x) and x % 2 == 0
        )
        dtype = checks.Check("'float32' or 'bfloat16'", lambda x: x in ("float32", "bfloat16"))
        checks.check_fields(
            self,
            head_dim=even,
            rope_base=checks.number(above=0),
            rope_scaling=checks.optional(checks.instance(RopeScaling)),
            qkv_bias=checks.FLAG,
            head_norms=checks.FLAG,
            layer_windows=checks.sequence(checks.optional(size), "(4096, None)", least=0),
            norm_epsilon=checks.number(above=0),
            logits_via_embedding=checks.FLAG,
            dtype=dtype,
            max_positions=checks.optional(size),
            end_ids=checks.sequence(checks.integer(0, self.vocab_size - 1), "(1,)", least=0),
        )
        if len(self.layer_windows) not in (0, self.num_layers):
            raise ValueError(
                f"LlamaConfig.layer_windows must have an entry for each of {self.num_layers} layers, "
                f"or none; found {len(self.layer_windows)}."
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"LlamaConfig.num_heads must be a multiple of num_kv_heads, {self.num_kv_heads}; "
                f"found {self.num_heads}."
            )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The different windows of the layers, each once."""
        return tuple(dict.fromkeys(self.layer_windows)) or (None,)

    def window_of(self, layer: int) -> int:
        """Returns which of `windows` is that of a layer."""
        return self.windows.index(self.layer_windows[layer]) if self.layer_windows else 0
