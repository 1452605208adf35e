"""What a run or an evaluation becomes: pictures and tables."""
