"""The orchestrator: knows containers, and gives them jobs."""
