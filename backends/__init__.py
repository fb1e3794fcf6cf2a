"""Triton Python backends: what runs inside a model's stub process."""
