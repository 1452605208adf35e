"""What a training run consists of: `engine.py` reads from top to bottom and calls these."""
