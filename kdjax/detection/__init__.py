"""From errors to decisions: moments, Gaussian, point and window scores, threshold."""
