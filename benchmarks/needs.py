"""What a step has to read and to compute, from the model's shapes."""

from collections.abc import Iterable
from typing import NamedTuple

from jserve_sched.simulation.roofline import Decoder


class Span(NamedTuple):
    """Positions `start` to `stop` of one request, computed by a step.

    `draws_token` says whether its next token is drawn.
    """

    start: int
    stop: int
    draws_token: bool


def needs(
    decoder: Decoder, spans: Iterable[Span], *, item_bytes: float, token_bytes: float
) -> tuple[float, float]:
    """Returns the bytes to read and the operations of a step, without any padding.

    Args:
      item_bytes: Bytes of a weight.
      token_bytes: Bytes of a token's KV in all layers.
    """
    # Weights: the embedding is looked up, one row a token.
    layers, head = decoder.num_layers * decoder.layer_size, decoder.head_size
    read_bytes, operations = item_bytes * (layers + head), 0.0
    # A query reads the keys and values up to its position.
    pair = 4 * decoder.num_layers * decoder.num_heads * decoder.head_dim
    for start, stop, draws_token in spans:
        read_bytes += token_bytes * stop
        operations += 2.0 * layers * (stop - start) + 2 * head * draws_token
        operations += pair * sum(range(start + 1, stop + 1))
    return read_bytes, operations
