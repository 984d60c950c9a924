"""From errors to decisions: moments, Normal, point and window scores, threshold."""
