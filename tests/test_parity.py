"""Every network computes what its reference implementation computes: outputs, gradients, batch-norm statistics.

The numbers lie in tests/parity (small copies) and, beside the repository, in ../shared/parity (whole). A family joins
with rows in tests/parity/cases.py and its small copies.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import paddle
import pytest
from conftest import run_tool
from networks import size_marks
from parity import compare, summary
from parity.cases import CASES, Case, our_names, with_reference_weights
from parity.fixture import FOLDER, Fixture, load_compact, load_full

from ppcls_ext import list_models

SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity" / "fixtures"


SMALL_COPY, WHOLE = "small copy", "shared"


def case_params() -> list[Any]:
    """Every case with its whole fixture, and with its small copy if there is one."""
    copies = {path.stem for path in FOLDER.glob("*.npz")}
    assert copies <= {case.variant for case in CASES}
    return [
        pytest.param((case, source), marks=size_marks(case.model), id=f"{case.variant}-{source}")
        for case in CASES
        for source in (SMALL_COPY, WHOLE)
        if source == WHOLE or case.variant in copies
    ]


@pytest.fixture(params=case_params())
def case_and_source(request: pytest.FixtureRequest) -> tuple[Case, str]:
    return request.param


@pytest.fixture
def case(case_and_source: tuple[Case, str]) -> Case:
    return case_and_source[0]


@pytest.fixture
def expected(case_and_source: tuple[Case, str]) -> Fixture:
    case, source = case_and_source
    if source == SMALL_COPY:
        return load_compact(case.variant)
    path = SHARED / f"{case.fixture}.json"
    if not path.is_file():
        pytest.skip(f"no whole fixture of {case.variant} beside the repository (../shared/parity/fixtures)")
    return load_full(path)


@pytest.fixture
def network(case: Case, expected: Fixture, tmp_path: Path) -> paddle.nn.Layer:
    return with_reference_weights(case, expected, tmp_path)


def test_the_parameters_are_as_many_as_the_references(network: paddle.nn.Layer, expected: Fixture) -> None:
    trainable = sum(int(parameter.size) for parameter in network.parameters() if parameter.trainable)
    assert trainable == expected.facts["num_params"]


@pytest.mark.parametrize("tag", ["eval", "odd"])
def test_logits_and_stages_are_the_references(
    network: paddle.nn.Layer, expected: Fixture, case: Case, tag: str
) -> None:
    if tag not in expected.facts:
        pytest.skip(f"the reference of {case.variant} takes one size")
    differences = compare.evaluation(expected, network, tag, case.stage_names)
    print(case.variant, tag, differences)
    assert differences["logits"] <= case.logits
    assert differences["stages"] <= 1e-4


def test_a_training_step_is_the_references(network: paddle.nn.Layer, expected: Fixture, case: Case) -> None:
    if "train" not in expected.facts:
        pytest.skip(f"{case.variant} was not trained by its reference")
    step = compare.training_step(expected, network, our_names(expected, network))
    worst = max(step.gradients.values())
    print(case.variant, "train", step.loss, step.logits, worst, step.gradient_sums, step.statistics)
    assert step.loss <= 1e-4
    assert step.logits <= case.logits
    assert step.gradient_sums <= 1e-2
    assert step.statistics <= 1e-5
    # A maximum of two numbers that are equal to within rounding may fall on either side, and takes a few gradients
    # with it (MicroNet-M0 has one pair that is 5e-8 apart); the test in float64 knows no such pairs.
    off = {name: difference for name, difference in step.gradients.items() if difference > 5e-3}
    assert len(off) <= case.share_off * len(step.gradients) and max(off.values(), default=0.0) <= 2e-2, off


def test_a_training_step_in_float64_is_the_references(network: paddle.nn.Layer, expected: Fixture, case: Case) -> None:
    if "train" not in expected.facts:
        pytest.skip(f"{case.variant} was not trained by its reference")
    loss, gradients = compare.training_step_in_float64(expected, network, our_names(expected, network))
    print(case.variant, "train in float64", loss, max(gradients.values()))
    assert loss <= 1e-6
    assert max(gradients.values()) <= 1e-4


def test_a_page_is_not_written_where_networks_would_be_missing(tmp_path: Path, repository: Path) -> None:
    page = repository / "docs/networks.md"
    before = page.read_bytes()
    for folders, message in (
        ([tmp_path], f"no numbers of * in {tmp_path}"),
        ([], "--write replaces the whole table, and shufflenetv2_x0_33, "),
    ):
        done = run_tool("tests/parity/table.py", *folders, "--write", page, cwd=repository)
        assert done.returncode == 2 and message in done.stderr
    assert page.read_bytes() == before


def test_the_readmes_table_says_what_was_published_and_measured(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    assert readme == summary.page(readme), "make it anew with: python tests/parity/summary.py --write"
    shown = {
        name
        for _, patterns in summary.FAMILIES.values()
        for name in list_models()
        for pattern in patterns
        if fnmatchcase(name, pattern)
    }
    assert shown == set(list_models())
