"""Task object_detection: an image in, boxes with labels and scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.images import decode_image
from backends.request_parameters import real_number
from backends.request_texts import read_one_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_THRESHOLD = 0.5
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class ObjectDetection:
    """transformers' pipeline `object-detection`."""

    pipeline = "object-detection"

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    def run(self, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Objects whose score is above `threshold` (0 to 1, default 0.5), best first.

        Returns:
            label BYTES [n], score FP32 [n], box FP32 [n, 4]: x_min, y_min, x_max, y_max in pixels
            of the upright image, whole numbers as transformers gives them.

        Raises:
            InputError: no image, or a threshold beyond its limits.
        """
        threshold = real_number(parameters, "threshold", DEFAULT_THRESHOLD, low=0.0, high=1.0)
        image = decode_image(read_one_bytes("image_input", inputs))
        found = self._pipe(image, threshold=threshold)
        found = sorted(found, key=lambda entry: -entry["score"])
        boxes = [[entry["box"][corner] for corner in _CORNERS] for entry in found]
        return {
            "label": np.array([entry["label"].encode() for entry in found], dtype=np.object_),
            "score": np.array([entry["score"] for entry in found], dtype=np.float32),
            "box": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        }
