"""Files, folders and streams scored by a saved detector."""
