"""Step times before the first step: arithmetic over the device's figures.

A device that `roofline.DEVICES` knows prices a model that it never ran. The timed pass
replaces what it times; buckets that it has no time for keep these prices, scaled by
what it measured.
"""

import dataclasses
import logging
import re

from jserve.config import EngineConfig
from jserve_models.config import ModelConfig
from jserve_sched.buckets.table import BucketTable
from jserve_sched.simulation.priced_table import priced_table
from jserve_sched.simulation.roofline import DEVICES, Decoder, RooflineCost
from jserve_sched.timing.table import TablePredictor

_LOG = logging.getLogger("jserve")
_TPUS = {"v5lite": "v5e", "v6lite": "v6e"}  # as JAX names them


def decoder_of(config: ModelConfig) -> Decoder:
    """Returns the sizes of a model.

    Raises:
      ValueError: If it has experts, of which nothing is known.
    """
    if config.experts is not None:
        raise ValueError(f"roofline:model={config.name} has experts: only dense models")
    names = (field.name for field in dataclasses.fields(Decoder))
    return Decoder(**{name: getattr(config, name) for name in names})


def find_device(kind: str) -> str | None:
    """Returns the key of `DEVICES` for a kind of device as JAX names it, or None."""
    words = re.findall("[a-z0-9]+", kind.lower())
    spans = ("".join(words[i:j]) for j in range(len(words) + 1) for i in range(j))
    names = (_TPUS.get(span, span) for span in spans)
    return next((name for name in names if name in DEVICES), None)


def first_table(
    config: EngineConfig,
    model: ModelConfig,
    buckets: BucketTable,
    *,
    device_kind: str,
    max_model_len: int,
) -> TablePredictor:
    """Returns the predictor of a server that has timed no step yet."""
    name = find_device(device_kind)
    if name is None or model.experts is not None:
        return TablePredictor(buckets)
    try:
        cost = RooflineCost(
            name=name,
            device=DEVICES[name],
            decoder=decoder_of(model),
            tensor_parallel=config.tensor_parallel,
            num_kv_tokens=max_model_len,
            page_size=config.page_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        table = priced_table(cost, buckets, max_model_len=max_model_len)
    except ValueError as error:  # it does not divide as the arithmetic takes it to
        _LOG.info("no step times by arithmetic: %s", error)
        return TablePredictor(buckets)
    _LOG.info("steps that are not timed yet are priced by the figures of %s", name)
    return table
