"""What a model refuses, in the caller's words. Rules only.

Backends name tensors and count the items of their own request; whoever calls over REST has written
fields and lists, which may have travelled in several requests.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlplane.inference.tasks.plan import Plan

_PARAMETER = re.compile(r"Parameter (?P<name>\w+) (?P<what>.+)", re.DOTALL)
_IMAGE = re.compile(r"(?P<kind>Image|Text) (?P<index>\d+) (?P<what>.+)", re.DOTALL)
_TENSOR = re.compile(r"(?P<name>\w+)(?:\[(?P<index>\d+)\])? (?P<what>.+)", re.DOTALL)
_KINDS = {"Image": "image_input", "Text": "text_input"}


def in_callers_words(message: str, plan: Plan, first: int) -> tuple[str, str]:
    """The caller's field that a backend's sentence is about, and what it says of it.

    Args:
        first: the place of the request's first item among the call's.
    """
    if match := _PARAMETER.fullmatch(message):
        place = plan.places.get(match["name"])
        return place.path if place else f"parameters.{match['name']}", match["what"]
    match = _IMAGE.fullmatch(message) or _TENSOR.fullmatch(message)
    if match is None:
        return "input_data", message
    found = match.groupdict()
    place = plan.places.get(found.get("name") or _KINDS[match["kind"]])
    if place is None:
        return "input_data", message
    # a single value beside a list goes with each item: it has no number
    number = f"[{first + int(found['index'] or 0)}]" if place.listed else ""
    return place.path + number, match["what"]
