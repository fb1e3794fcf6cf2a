"""ETag, If-Match and If-None-Match of a model (RFC 9110 §8.8.3, §13.1).

The tag is strong: the model's id, its `version_number`, and the sum of its versions' own. A version
that becomes ready changes what is answered without changing the model's row; the sum alone would
not do either, since removing one version and changing another can leave it as it was, but every
coming and going of versions raises the model's number.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from controlplane.errors import PreconditionFailed, ValidationFailed

if TYPE_CHECKING:
    from controlplane.registry.model import Model

_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*')


def etag(model: Model) -> str:
    """The model's entity tag, quotes included."""
    versions = sum(version.version_number for version in model.versions)
    return f'"{model.id}-{model.version}.{versions}"'


def require_match(header: str | None, model: Model) -> None:
    """Refuse a change of a model that is not as the caller last saw it.

    Raises:
        PreconditionFailed: no tag of If-Match is the model's; weak tags never are.
        ValidationFailed: the header is malformed.
    """
    if header is None or header.strip() == "*":
        return
    if etag(model) not in [f'"{tag}"' for weak, tag in _tags("If-Match", header) if not weak]:
        raise PreconditionFailed(model.model_id, header, etag(model))


def is_unchanged(header: str | None, model: Model) -> bool:
    """Whether If-None-Match names the model as it is: the answer is 304 then.

    Raises:
        ValidationFailed: the header is malformed.
    """
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return etag(model) in [f'"{tag}"' for _, tag in _tags("If-None-Match", header)]


def _tags(name: str, header: str) -> list[tuple[str, str]]:
    """(weakness, content) of each tag."""
    parts = [_TAG.fullmatch(part) for part in header.split(",")]
    found = [part.groups() for part in parts if part is not None]
    if len(found) < len(parts):
        raise ValidationFailed.field(name, 'must be "*" or entity tags in double quotes')
    return [(weak or "", tag) for weak, tag in found]
