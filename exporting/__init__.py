"""Trained networks for other programs: ONNX, torch.export, safetensors, and a folder for the Hugging Face hub."""
