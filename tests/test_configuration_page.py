"""docs/configuration.md names every key with its default, every dataset and operator, and every option, as the code."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import yaml
from pydantic_core import PydanticUndefined
from test_augmentation_page import signature

from ppcls_ext import cli, registry
from ppcls_ext.config import import_components, sections

# Heading -> section, and keys that the page describes in words, or on another page.
TABLES = {
    "Global": (sections.GlobalOptions, set()),
    "AMP": (sections.AmpOptions, set()),
    "EMA": (sections.EmaOptions, set()),
    "Arch": (sections.ArchOptions, {"arguments"}),
    "Freeze": (sections.FreezeOptions, set()),
    "Distill": (sections.DistillOptions, set()),
    "DataLoader.Train, DataLoader.Eval": (sections.LoaderOptions, set()),
    "Infer": (sections.InferOptions, set()),
}


def page_of(repository: Path) -> str:
    return (repository / "docs/configuration.md").read_text(encoding="utf-8")


def default_text(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, sections.Component):
        return default.name
    return "" if default is None else yaml.safe_dump(default, default_flow_style=True).removesuffix("\n...\n").strip()


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_stands_on_the_page_with_its_default(repository: Path, heading: str) -> None:
    section, elsewhere = TABLES[heading]
    text = page_of(repository).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\| .*\|$", text, re.MULTILINE))
    told |= {key: "" for key in re.findall(r"^\| `(\w+)` \| \| .*\|$", text, re.MULTILINE)}
    fields = {key: default_text(field.default) for key, field in section.model_fields.items() if key not in elsewhere}
    assert {key: text.lower() for key, text in told.items()} == {key: text.lower() for key, text in fields.items()}


def test_every_section_of_a_configuration_has_a_heading(repository: Path) -> None:
    headings = set(re.split(r", |\n", "\n".join(re.findall(r"^## (.*)$", page_of(repository), re.MULTILINE))))
    assert set(sections.Config.model_fields) - headings == {"DataLoader"}  # which has those of its parts


def test_the_page_has_every_dataset_and_every_operator_of_preparation(repository: Path) -> None:
    import_components()
    expected = {signature(registry.DATASETS, name) for name in registry.DATASETS}
    expected |= {
        signature(registry.TRANSFORMS, name) for name in registry.TRANSFORMS if not registry.TRANSFORMS[name].random
    }
    assert set(re.findall(r"`([A-Z]\w+\([^`]*\))`", page_of(repository))) == expected


def test_the_page_has_every_option_of_every_tool(repository: Path) -> None:
    rows = dict(re.findall(r"^\| `((?:tools|deploy)/\w+\.py)` \| (.*)\|$", page_of(repository), re.MULTILINE))
    for tool, text in rows.items():
        source = (repository / tool).read_text(encoding="utf-8")
        options = set(re.findall(r'"(--[a-z-]+)"', source)) - {"--override"}
        for add in (cli.add_model, cli.add_save):
            if f"cli.{add.__name__}(" in source:
                shared = argparse.ArgumentParser(add_help=False)
                add(shared)
                options |= {name for name in re.findall(r"--[a-z-]+", shared.format_usage())}
        assert set(re.findall(r"`(--[a-z-]+)", text)) == options, tool
    for_users = {path.name for path in (repository / "tools").glob("*.py")}
    for_users -= {"checkout.py", "quickstart.py", "recipes.py", "reference_top1.py"}  # which make the project's pages
    assert {Path(tool).name for tool in rows} == for_users | {"predict.py", "serve.py"}
