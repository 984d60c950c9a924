"""Files that run elsewhere; the only user of onnx besides `bench`."""
