"""Agreement sentences: the package's own grammar, and readers of published data."""
