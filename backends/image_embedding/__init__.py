"""Triton backend `image_embedding`: pictures in (of CLIP-likes texts too), one vector each out."""
