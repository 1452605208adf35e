"""The compiled operators read and write nothing beyond their tensors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ppcls_ext.ops import native

TESTS = Path(__file__).parent
# of those files: what computes with tensors, in this process, on the threads of today
COMPUTING = "not build and not compile and not bits and not thread and not process"


@pytest.mark.slow
@pytest.mark.parametrize("side", ["begin", "end"])
def test_no_operator_touches_what_lies_beyond_its_tensors(side: str) -> None:
    if not native.install():
        pytest.skip(native.status())
    files = [str(TESTS / f"test_native{name}.py") for name in ("", "_maps", "_tokens", "_inference")]
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "guarded_memory", "-k", COMPUTING, *files],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": path, "GUARDED": side},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert int(re.search(r"(\d+) calls between forbidden pages", done.stdout)[1]) > 1000
