"""What a path of Triton's HTTP protocol speaks of. Model names come in every spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from controlplane.gateway.errors import UnknownRoute

if TYPE_CHECKING:
    from controlplane.registry.model import Servable

READS = frozenset({"", "ready", "config", "stats"})
RUNS = frozenset({"infer", "generate", "generate_stream"})
_BARE_CALLS = (["infer"], ["generate"], ["generate_stream"])
_ACTIONS = READS | RUNS | {"trace"}


class Target(NamedTuple):
    """What a path below /v2/models/ speaks of; `action` is empty for metadata."""

    name: str
    version: str | None
    action: str


def parse_target(path: str) -> Target:
    """Read a still percent-encoded path below /v2/models/.

    A model id may come as one segment (encoded, or as Triton name) or as two; a version string
    with slashes as one segment or several.

    Raises:
        UnknownRoute: it names no model, or something below a model that Triton does not have.
    """
    parts = [unquote(part) for part in path.strip("/").split("/")]
    # Twice: a client that encodes an id which its user had encoded already means the same model.
    name, rest = unquote(parts[0]), parts[1:]
    # A bare name followed by nothing but "infer" reads better as a name without organization.
    is_bare = "/" not in name and "--" not in name
    if is_bare and rest and rest[0] != "versions" and rest not in _BARE_CALLS:
        name, rest = f"{name}/{rest[0]}", rest[1:]
    version = None
    if rest[:1] == ["versions"]:
        ends_in_action = len(rest) > 2 and rest[-1] in _ACTIONS
        version = "/".join(rest[1:-1] if ends_in_action else rest[1:])
        rest = rest[-1:] if ends_in_action else []
    action = rest[0] if rest else ""
    if not name or version == "" or action not in _ACTIONS or len(rest) > 1 + (action == "trace"):
        raise UnknownRoute(f"There is no /v2/models/{unquote(path)}.")
    return Target(name, version, action)


class Control(NamedTuple):
    """What a path below /v2/repository/ asks for: `index`, `load` or `unload`."""

    action: str
    name: str = ""


def parse_control(path: str) -> Control:
    """Read a still percent-encoded path below /v2/repository/.

    Raises:
        UnknownRoute: it is none of the three.
    """
    parts = path.strip("/").split("/")
    if parts == ["index"]:
        return Control("index")
    if parts[0] == "models" and len(parts) > 2 and parts[-1] in ("load", "unload"):
        return Control(parts[-1], unquote(unquote("/".join(parts[1:-1]))))
    raise UnknownRoute(
        f"There is no /v2/repository/{unquote(path)}: there is one repository, with index, "
        "models/{name}/load and models/{name}/unload."
    )


def is_shared_memory_call(method: str, path: str) -> bool:
    """True for what Triton offers below /v2/systemsharedmemory/, with that method."""
    parts = path.strip("/").split("/")
    if parts[0] == "region" and len(parts) == 3 and parts[1]:
        parts = parts[2:]
        if parts == ["register"]:
            return method == "POST"
    if parts == ["unregister"]:
        return method == "POST"
    return parts == ["status"] and method == "GET"


def upstream_path(servable: Servable) -> str:
    """The model's path at the private server."""
    return f"/v2/models/{quote(servable.triton_name)}/versions/{servable.triton_version}"
