"""Memory: KV pages and slots, and the requests that hold them."""

from jserve_sched.memory.ledger import KvLedger
from jserve_sched.memory.slots import Holders

__all__ = ["Holders", "KvLedger"]
