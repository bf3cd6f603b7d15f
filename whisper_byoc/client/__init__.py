"""The client side of the socket: `TrickleClient` speaks to a container, `GatewayClient` to a gateway."""

from whisper_byoc.client.gateway import GatewayClient
from whisper_byoc.client.trickle import TrickleClient

__all__ = ["GatewayClient", "TrickleClient"]
