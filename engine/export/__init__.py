"""Trained models in the formats of others: `transformers`, ONNX, torch.export."""
