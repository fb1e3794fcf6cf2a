"""The entry point that is used under a name, of all that the installed distributions offer.

The rule of `controlplane/registry/plugins.py`, which says it to people: ModelMora's own names stay
its own, and what two other distributions offer is neither's.
"""

from __future__ import annotations

from importlib import metadata

OURS = "modelmora"


def find(group: str, name: str) -> metadata.EntryPoint:
    """The entry point of that name; nothing is imported.

    Raises:
        LookupError: there is none, or more than one; a sentence for whoever wants it.
    """
    offered = sorted(metadata.entry_points(group=group), key=_offered_by)
    claims = [entry for entry in offered if entry.name == name]
    if not claims:
        known = ", ".join(sorted({entry.name for entry in offered})) or "none"
        raise LookupError(f"none is installed under that name; there are: {known}")
    own = [entry for entry in claims if _distribution(entry) == OURS]
    if len(claims) > 1 and not own:
        offers = " and ".join(dict.fromkeys(map(_offered_by, claims)))
        raise LookupError(f"{name!r} is offered by {offers}; uninstall all but one")
    return (own or claims)[0]


def _distribution(entry: metadata.EntryPoint) -> str:
    return str(entry.dist.name) if entry.dist is not None else "unknown"


def _offered_by(entry: metadata.EntryPoint) -> str:
    version = entry.dist.version if entry.dist is not None else ""
    return f"{_distribution(entry)} {version}".strip()
