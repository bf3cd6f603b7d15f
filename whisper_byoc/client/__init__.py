"""The client side of the socket: `TrickleClient` speaks to a container."""

from whisper_byoc.client.trickle import TrickleClient

__all__ = ["TrickleClient"]
