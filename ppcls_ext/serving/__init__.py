"""From image files to answers: what a machine that serves a model needs, without training code."""
