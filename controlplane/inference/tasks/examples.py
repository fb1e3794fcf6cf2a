"""Files small enough for the documents' examples, as base64."""

from __future__ import annotations

# A red PNG of 8 x 8 pixels, the smallest that img2img takes.
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEU"
    "lEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAASUVORK5CYII="
)
# A WAV file of 8 samples of silence at 16 kHz.
RECORDING = "UklGRjQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YRAAAAAAAAAAAAAAAAAAAAAAAAAA"
