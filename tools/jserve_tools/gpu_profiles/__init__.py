"""GPU profiles: kernel times, and the machines that are simulated from them."""

__all__ = ["machines"]
