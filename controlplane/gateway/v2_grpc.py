"""Triton's gRPC service on a port of its own; the work is done by `grpc_relay`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlplane.errors import StartupError
from controlplane.gateway.grpc_relay.relay import Relay

if TYPE_CHECKING:
    from controlplane.gateway.services import Services


class GrpcGateway:
    """Serves GRPCInferenceService.

    Args:
        port: 0 takes any free one.
    """

    def __init__(self, services: Services, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._relay = Relay(services)

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            StartupError: the port cannot be had.
        """
        try:
            return await self._relay.open(self._host, self._port)
        except OSError as error:
            raise StartupError(
                f"Port {self._port} on {self._host} cannot be opened for gRPC: is another "
                "server using it? Choose one with MODELMORA_GRPC_PORT."
            ) from error

    async def stop(self, grace: float) -> None:
        """Take no new calls, let the running ones end for `grace` seconds, then cut them off."""
        await self._relay.close(grace)
