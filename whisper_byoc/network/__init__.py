"""An orchestrator and a gateway without a chain, to develop against; they work with anybody's container."""
