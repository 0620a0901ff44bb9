"""Memory: KV pages and slots, the requests that hold them, and those that wait."""

from jserve_sched.memory.ledger import KvLedger
from jserve_sched.memory.slots import Holders
from jserve_sched.memory.waiting import WaitingQueue

__all__ = ["Holders", "KvLedger", "WaitingQueue"]
