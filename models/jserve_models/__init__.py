"""Decoders over a paged KV cache, and the weights that fill them."""
