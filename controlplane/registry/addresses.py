"""Which network addresses a source may have.

A server that fetches what its users name must not be a way into the network it stands in: names are
resolved here, every address is looked at, and the connection is made to one of these addresses, so
that a name which changes its mind in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from controlplane.errors import SourceRefused
from controlplane.registry.patience import Transient

Address = tuple[Any, ...]
Resolve = Callable[[str, int], list[Address]]
_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address

# Clouds' metadata services outside of the link-local ranges: Azure, Alibaba, AWS over IPv6.
_METADATA = {"168.63.129.16", "100.100.100.200", "fd00:ec2::254"}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[Address]:
    """The system's answer: socket addresses.

    Raises:
        Transient: the name cannot be resolved now, or at all.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Transient(f"the name {host} cannot be resolved ({error})") from error
    return [item[4] for item in found]


def check_addresses(host: str, addresses: list[Address], *, allow_private: bool) -> None:
    """All of a host's addresses must be allowed.

    Raises:
        SourceRefused: naming the first one that is not.
    """
    for address in addresses:
        ip = plain_ip(str(address[0]))
        if is_metadata(ip):
            raise SourceRefused(
                f"{host} is the link-local or metadata address {ip}, which no source may have."
            )
        if not allow_private and not is_public(ip):
            raise SourceRefused(
                f"{host} is the address {ip} of a private network or of this machine. To allow "
                "such sources: MODELMORA_ALLOW_PRIVATE_SOURCES=true."
            )


def plain_ip(text: str) -> _Ip:
    """An address without its zone; the IPv4 address inside of an IPv6 one that carries one."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    teredo = ip.teredo[1] if ip.teredo else None
    return ip.ipv4_mapped or ip.sixtofour or teredo or ip


def is_metadata(ip: _Ip) -> bool:
    """True for link-local addresses and the metadata services of clouds."""
    return ip.is_link_local or str(ip) in _METADATA


def is_public(ip: _Ip) -> bool:
    """True for an address of the internet that belongs to one machine."""
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)
