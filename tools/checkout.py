"""Imported first by every tool: it runs the `ppcls_ext` beside it, and says what this Python lacks.

So a checkout needs no installation of itself, and of two checkouts each runs its own code.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Module -> what `pip install` calls it: all of requirements.txt.
NEEDED = {
    "paddle": "paddlepaddle",
    "numpy": "numpy",
    "yaml": "PyYAML",
    "cv2": "opencv-python-headless",
    "PIL": "Pillow",
    "sklearn": "scikit-learn",
    "visualdl": "visualdl",
    "matplotlib": "matplotlib",
    "pydantic": "pydantic",
    "rich": "rich",
    "safetensors": "safetensors",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "setuptools": "setuptools",
}

missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
if missing:
    print(
        f"Refused: {sys.executable} has no {', '.join(missing)}.\n"
        f"`make setup` in {ROOT} makes an environment; then: . {ROOT}/.venv/bin/activate\n"
        f"Or, into one of your own: pip install -r {ROOT}/requirements.txt",
        file=sys.stderr,
    )
    sys.exit(2)
sys.path.insert(0, str(ROOT))
