"""The container: one job core, and a module of routes for each way in."""
