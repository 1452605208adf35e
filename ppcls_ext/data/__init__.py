"""Datasets, samplers and the loader: from files on a disk to batches of arrays. Knows numpy and OpenCV, not Paddle."""
