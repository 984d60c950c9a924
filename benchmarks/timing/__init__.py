"""The sides of `speed.py`: what is timed, and how kdjax, PyTorch and onnxruntime do it."""
