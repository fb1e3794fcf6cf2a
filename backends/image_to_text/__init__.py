"""Triton backend `image_to_text`: an image and, for some models, a question in; text out."""
