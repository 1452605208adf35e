"""A checkout runs its own code, installed or not, and says what the interpreter lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted(path for path in (ROOT / "tools").glob("*.py") if path.name != "checkout.py")


def test_what_a_tool_looks_for_is_what_requirements_name() -> None:
    source = (ROOT / "tools/checkout.py").read_text(encoding="utf-8")
    pairs = dict(re.findall(r'^    "(\w+)": "([\w-]+)",$', source, re.MULTILINE))
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [re.match(r"[\w-]+", line).group() for line in lines if line and not line.startswith("#")]
    assert list(pairs.values()) == wanted
    installed = packages_distributions()
    for module, name in pairs.items():
        assert name.lower() in [other.lower() for other in installed[module]], module


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.name)
def test_without_its_libraries_every_tool_says_what_to_install(tool: Path) -> None:
    done = subprocess.run([sys.executable, "-S", tool], capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2 and done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"Refused: {sys.executable} has no paddlepaddle, numpy, PyYAML") and len(rest) == 2
    assert rest[0].startswith(f"`make setup` in {ROOT} ") and rest[1].endswith(f"install -r {ROOT}/requirements.txt")


@pytest.mark.parametrize("script", ["predict.py", "serve.py"])
def test_without_its_libraries_what_is_deployed_says_what_to_install(script: str) -> None:
    command = [sys.executable, "-S", ROOT / "deploy" / script, "model", "images"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2 and done.stdout == ""
    said = f"Refused: {sys.executable} has no numpy; `pip install -r requirements.txt` brings what the suite needs\n"
    assert done.stderr == said


@pytest.mark.parametrize("script", ["tools/split.py", "deploy/predict.py", "deploy/serve.py"])
def test_of_two_checkouts_each_runs_its_own_code(tmp_path: Path, script: str) -> None:
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    (tmp_path / "ppcls_ext").mkdir()
    (tmp_path / "ppcls_ext/__init__.py").write_text("print('this one')\nraise SystemExit(7)\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, tmp_path / script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=environment)
    assert (done.returncode, done.stdout) == (7, "this one\n"), done.stderr
