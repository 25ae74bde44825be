"""Training of the tiny CLIP, the segmenter, the adapters and their centroids."""
