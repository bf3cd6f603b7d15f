"""The container: one job core, and a file of routes for each way in."""
