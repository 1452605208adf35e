"""Imports go one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# A module may import what stands in its own row or above it.
LAYERS = [
    {"errors", "files", "processor", "apart"},
    {"registry", "distributed", "checkpoint", "pickles", "log", "layers", "ops"},
    {"transforms", "serving"},
    {"config"},
    {"losses", "metrics", "optim", "backbones", "weights", "device", "models", "paddleclas"},
    {"data"},
    {"report"},
    {"training"},
    {"engine"},
    {"lr_range", "averaging", "preview", "trained", "export", "graphs"},
    {"cli"},
]
# On top of the table of backbones stand the few names of `import ppcls_ext`.
UNRANKED = {"__init__"}


def rank_of(module: str) -> int:
    return next(rank for rank, names in enumerate(LAYERS) if module in names)


def modules(repository: Path) -> list[Path]:
    return sorted((repository / "ppcls_ext").rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Top-level parts of ppcls_ext that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ppcls_ext"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ppcls_ext.")}
    return found


def part_of(path: Path, repository: Path) -> str:
    return path.relative_to(repository / "ppcls_ext").parts[0].removesuffix(".py")


def test_imports_go_one_way(repository: Path) -> None:
    wrong = []
    for path in modules(repository):
        part = part_of(path, repository)
        if part in UNRANKED:
            continue
        for imported in imports_of(path):
            # `config.import_components` makes the components register themselves, whatever their rank.
            if part == "config" and path.name == "__init__.py":
                continue
            if rank_of(imported) > rank_of(part):
                wrong.append(f"{path.relative_to(repository)} imports {imported}")
    assert wrong == []


def test_every_part_has_a_place_in_the_layers(repository: Path) -> None:
    parts = {part_of(path, repository) for path in modules(repository)} - UNRANKED
    assert parts - set().union(*LAYERS) == set()


def test_a_backbone_never_imports_another_backbone(repository: Path) -> None:
    architectures = [
        p for p in (repository / "ppcls_ext/backbones").glob("*.py") if p.name not in ("__init__.py", "published.py")
    ]
    names = {path.stem for path in architectures}
    for path in architectures:
        imported = {
            node.module.split(".")[-1]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ppcls_ext.backbones.")
        }
        # the evaluation of one in one call stands beside it: groupmamba.py, groupmamba_inference.py
        others = {name for name in names if name.removesuffix("_inference") != path.stem.removesuffix("_inference")}
        assert not imported & others, path


def test_deploy_needs_no_training_code(repository: Path) -> None:
    allowed = {"transforms", "serving", "errors", "cli"}
    for path in (repository / "deploy").rglob("*.py"):
        assert imports_of(path) <= allowed, path


@pytest.mark.parametrize(
    "module",
    ["ppcls_ext", "ppcls_ext.cli", "ppcls_ext.transforms", "ppcls_ext.serving.prediction", "ppcls_ext.data.datasets"],
)
def test_preparing_images_does_not_import_paddle(repository: Path, module: str) -> None:
    code = f"import sys, {module}; sys.exit('paddle' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=repository).returncode == 0


def test_the_two_installations_differ_in_paddle_and_its_limits_only(repository: Path) -> None:
    def names(file: str) -> list[str]:
        lines = (repository / file).read_text().splitlines()
        return [line.split(">")[0].split("=")[0] for line in lines if line and not line.startswith("#")]

    cpu, gpu = names("requirements.txt"), names("requirements-gpu.txt")
    assert [name.replace("paddlepaddle-gpu", "paddlepaddle") for name in gpu] == cpu


def test_the_repository_names_no_path_of_the_machine_it_was_written_on(repository: Path) -> None:
    text = [
        p for p in repository.rglob("*") if p.suffix in {".py", ".md", ".yaml", ".toml", ".txt"} or p.name == "Makefile"
    ]
    ours = [
        p
        for p in text
        if not {".git", "quickstart", "output"} & set(parts := p.relative_to(repository).parts)
        and not parts[0].startswith(".venv")
    ]
    needles = ["/" + "work/", "/" + "root/", "/" + "home/"]
    assert [str(p) for p in ours if any(n in p.read_text(encoding="utf-8", errors="replace") for n in needles)] == []
