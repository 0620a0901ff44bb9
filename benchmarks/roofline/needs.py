"""What steps have to read and to compute, from the model's shapes."""

from collections.abc import Sequence

from jserve.engine.engine import Engine, kv_page_bytes
from jserve_models.config import ModelConfig
from jserve_sched.steps.plan import StepPlan
from jserve_tools.gpu_profiles.machines import decoder_of


def needs(engine: Engine, plans: Sequence[StepPlan]) -> tuple[float, float]:
    """Returns the bytes to read and the operations of steps, without any padding."""
    config: ModelConfig = engine.model.config
    # Weights: the embedding is looked up, one row a token.
    decoder = decoder_of(config)
    layer, head = decoder.layer_size, decoder.head_size
    weights = config.num_layers * layer + head
    # KV and attention: a query reads the keys and values up to its position.
    token_bytes = kv_page_bytes(engine.model, 1, engine.kv_dtype)
    read_bytes = operations = 0.0
    for plan in plans:
        rows = (*plan.decodes, *plan.chunks)
        read_bytes += weights * engine.dtype.itemsize
        read_bytes += sum(row.stop for row in rows) * token_bytes
        tokens = sum(row.num_tokens for row in rows)
        pairs = sum(sum(range(row.start + 1, row.stop + 1)) for row in rows)
        operations += 2 * config.num_layers * layer * tokens
        operations += 2 * head * sum(row.draws_token for row in rows)
        operations += 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    return read_bytes, operations
