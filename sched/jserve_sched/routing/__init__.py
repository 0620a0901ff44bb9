"""Which of several replicas gets a request, from what each of them tells."""

from jserve_sched.routing.dispatcher import Dispatcher
from jserve_sched.routing.load import Newcomer, ReplicaLoad, load_of
from jserve_sched.routing.routers import ROUTERS, Router

__all__ = ["ROUTERS", "Dispatcher", "Newcomer", "ReplicaLoad", "Router", "load_of"]
