"""A smaller student cut from a checkpoint: vocabulary, layers, width, image and patch size."""
