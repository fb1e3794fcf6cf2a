"""Triton backend `text_embedding`: text in, one vector per text out."""
