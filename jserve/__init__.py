"""jserve: an SLO-aware LLM inference server in JAX, built around static shapes."""

__version__ = "0.1.0"
