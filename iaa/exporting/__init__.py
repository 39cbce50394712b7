"""Trained networks for other programs: ONNX, safetensors, and a folder for the Hugging Face hub."""
