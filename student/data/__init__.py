"""Batches for training: split, sampling, draws of views and captions, prefetching."""
