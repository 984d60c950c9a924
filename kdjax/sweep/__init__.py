"""Many runs of one configuration with some fields changed: members side by side."""
