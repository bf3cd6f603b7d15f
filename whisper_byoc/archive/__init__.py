"""Archives: thousands of recordings into text, by local processes or a Ray cluster, in runs that can be resumed."""
