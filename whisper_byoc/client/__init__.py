"""The client side of the socket: `TrickleClient` speaks to a container, `GatewayClient` to a gateway."""

from whisper_byoc.client.clients import GatewayClient, TrickleClient

__all__ = ["GatewayClient", "TrickleClient"]
