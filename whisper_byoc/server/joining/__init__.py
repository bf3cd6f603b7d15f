"""Joining the network: the registration of this container as a capability at go-livepeer orchestrators."""
