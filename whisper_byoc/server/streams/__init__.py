"""BYOC streams: a job between the channels that an orchestrator made for it."""
