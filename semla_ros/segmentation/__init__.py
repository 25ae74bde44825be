"""Segmentation models in plain PyTorch behind one protocol: CAT-Seg and SED, prompts and checkpoints."""
