"""Speed measured against PyTorch and onnxruntime, pair by pair on one machine."""
