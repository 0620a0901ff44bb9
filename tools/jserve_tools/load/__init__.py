"""Load: requests of traces and workloads, and the clients that send them."""

__all__ = ["clients", "config", "replay", "workload", "workload_trace"]
