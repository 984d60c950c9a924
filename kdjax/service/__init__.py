"""The HTTP service `kdjax serve`: a detector that answers rows as they arrive."""
