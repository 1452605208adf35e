"""Imported first by every script here: it finds `ppcls_ext`, or says what this Python lacks."""

from __future__ import annotations

import sys
from pathlib import Path

# In a checkout the `ppcls_ext` of the checkout; elsewhere there is none, and the installed one is found.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from ppcls_ext import cli  # noqa: F401
except ModuleNotFoundError as missing:
    cure = "`pip install -r requirements.txt` brings what the suite needs"
    if missing.name == "ppcls_ext":
        cure = "put the checkout's ppcls_ext folder beside deploy, or: pip install --no-deps CHECKOUT"
    print(f"Refused: {sys.executable} has no {missing.name}; {cure}", file=sys.stderr)
    sys.exit(2)
