"""CAT-Seg in plain PyTorch: CLIP, cost aggregation, decoder, prompts and checkpoints."""
