"""Triton backend `text_generation`: a prompt or a conversation in, text out, as it comes."""
