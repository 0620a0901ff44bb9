"""The configuration of a decoder, and the model sizes that have a name.

A `ModelConfig` says everything the forward pass needs to know; weights come from
a seed or from a folder (`registry.py`).
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Stretches only the slow rotary frequencies, with a ramp between.

    Attributes:
      factor: Divisor of the slow frequencies.
      low_freq_factor: Waves longer than the original length over this are slow.
      high_freq_factor: Waves shorter than the original length over this are kept.
      original_max_len: Context that the model was trained on, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairScaling:
    """Divides each rotary frequency by a factor of its own.

    Attributes:
      factors: Divisor for each pair of a head that turns.
      magnitude: Factor of rotated queries and keys.
    """

    factors: tuple[float, ...]
    magnitude: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A feed-forward part of which each token takes a few of many.

    Attributes:
      count: Number of experts; each is `intermediate_size` wide.
      per_token: Number of experts that a token takes, the likeliest ones.
      renormalises: Whether the weights of the experts taken sum to 1.
    """

    count: int
    per_token: int
    renormalises: bool = True

    def __post_init__(self) -> None:
        if self.per_token > self.count:
            raise ValueError(
                f"a token takes {self.per_token} experts, of {self.count} that there "
                "are"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of a decoder; what is left out is as in Llama.

    Attributes:
      name: Name of the model in answers and logs.
      vocab_size: Number of token ids, 0 to `vocab_size - 1`.
      hidden_size: Width of the residual stream.
      num_layers: Number of decoder layers.
      num_heads: Number of query heads in a layer.
      num_kv_heads: Number of key and value heads in a layer; divides `num_heads`.
      head_dim: Width of a head; even.
      intermediate_size: Width of the feed-forward part.
      rope_theta: Base of the rotary frequencies.
      rope_scaling: Stretching of the rotary frequencies; None leaves them.
      rotary_dim: First numbers of each head that turn; None for all.
      local_rope_theta: Base of the rotary frequencies, which nothing stretches, in the
        layers that have a window; None if they are as in the others.
      unrotated_layers: Indices of the layers without rotary embedding.
      windows: For each layer the keys that a query sees, its own included; None for
        all. () if all layers see all.
      rms_norm_eps: Term added to the mean square before its root.
      norm_offset: Whether 1 is added to the weights of norms (Gemma).
      pre_norms: Whether attention and feed-forward take what is normalised.
      post_norms: Whether what they return is normalised.
      tie_embeddings: Whether the head is the embedding, transposed.
      qkv_bias: Whether q, k and v projections add a bias (Qwen2).
      o_bias: Whether the projection behind attention adds a bias.
      mlp_bias: Whether the projections of the feed-forward part add a bias.
      qk_norm: Whether each q and k head is normalised (Qwen3).
      wide_qk_norm: Whether q and k are normalised over all heads at once (OLMo 2).
      activation: Key of `layers.ACTIVATIONS`.
      experts: Experts of the feed-forward part; None if it is one.
      attention_scale: Factor of the attention scores; None is `head_dim ** -0.5`.
      attention_soft_cap: Bound `c` of the scores, which become `c tanh(score / c)`.
      sinks: Whether each head has a score that takes part in the softmax only.
      embedding_scale: Factor of the embeddings.
      residual_scale: Factor of what a layer's parts add (Granite).
      logit_scale: Factor of the logits.
      logit_soft_cap: Bound of the logits, as of the scores.
      max_model_len: Most tokens of prompt and output together.
    """

    name: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rope_theta: float = 10000.0
    rope_scaling: Llama3Scaling | PairScaling | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    unrotated_layers: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    rms_norm_eps: float = 1e-5
    norm_offset: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    tie_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    wide_qk_norm: bool = False
    activation: str = "silu"
    experts: Experts | None = None
    attention_scale: float | None = None
    attention_soft_cap: float | None = None
    sinks: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None
    max_model_len: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise ValueError(f"{name}={value} is below 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        for name in ("head_dim", "rotary_dim"):
            if (size := getattr(self, name) or 0) % 2 or size > self.head_dim:
                raise ValueError(
                    f"{name}={size} is odd, or above head_dim={self.head_dim}: rotary "
                    "needs pairs"
                )
        if self.windows and len(self.windows) != self.num_layers:
            raise ValueError(
                f"{len(self.windows)} windows are given for num_layers="
                f"{self.num_layers}"
            )

    def window(self, layer: int) -> int | None:
        """Returns how many keys a query of a layer sees; None for all."""
        return self.windows[layer] if self.windows else None


# Untied: with random weights and a tied head the likeliest next token is the last
# one again, and a model that repeats itself hides a wrong page or position.
_TINY = ModelConfig(
    name="tiny",
    vocab_size=320,  # 256 bytes, then specials, padded
    hidden_size=256,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=688,
    max_model_len=16384,
)

_LLAMA_3_SCALING = Llama3Scaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=8192
)
_LLAMA_8B = ModelConfig(
    name="llama-8b",
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    rope_theta=500000.0,
    rope_scaling=_LLAMA_3_SCALING,
    max_model_len=131072,
)

NAMED: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        # `toy.py` computes its next token by arithmetic. The head holds a token
        # and its position as digits that bfloat16 represents exactly.
        ModelConfig(
            name="toy",
            vocab_size=317,  # a prime above 256 bytes and the specials
            hidden_size=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=4,
            intermediate_size=1,
            max_model_len=16384,
        ),
        _TINY,
        # The 19.3 M parameters on which other servers were measured.
        dataclasses.replace(_TINY, name="peer-19m", vocab_size=32000),
        dataclasses.replace(
            _LLAMA_8B,
            name="llama-1b",
            hidden_size=2048,
            num_layers=16,
            head_dim=64,
            intermediate_size=8192,
            rope_scaling=dataclasses.replace(_LLAMA_3_SCALING, factor=32.0),
            tie_embeddings=True,
        ),
        _LLAMA_8B,
    )
}
