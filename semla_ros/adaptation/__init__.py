"""From the scene to the weights: embedding, drift, retrieval, fusion."""
