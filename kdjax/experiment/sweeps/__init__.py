"""Many runs of one config with some fields changed, and searches."""
