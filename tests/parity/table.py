"""The parity table of the documentation: every network against its reference, measured.

    python tests/parity/table.py ../shared/parity/fixtures [MORE_FOLDERS ...] [--only PATTERN] [--write docs/parity.md]

Folders hold <family>/<variant>.{json,npz}, as tests/parity/reference.py writes them; without one, the small copies
beside this file are measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import paddle
from parity import compare
from parity.cases import CASES, Case, our_names, with_reference_weights
from parity.fixture import FOLDER, Fixture, images, load_compact, load_full

HEAD = (
    "| network | reference | parameters | logits, native size | logits, 161x193 | stages | "
    "training step: loss | gradients, float32 | gradients, float64 | BN statistics |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def fixtures(case: Case, folders: list[Path]) -> list[Fixture]:
    """The whole fixtures of a case, in the folders' order, or its small copy if no folder is named."""
    if not folders:
        return [load_compact(case.variant)] if (FOLDER / f"{case.variant}.npz").is_file() else []
    paths = [folder / f"{case.fixture}.json" for folder in folders]
    return [load_full(path) for path in paths if path.is_file()]


def loaded(case: Case, expected: Fixture) -> paddle.nn.Layer:
    with tempfile.TemporaryDirectory() as folder:
        return with_reference_weights(case, expected, Path(folder))


def row(case: Case, found: list[Fixture]) -> str:
    """One line of the table: the largest differences, relative ones for stages, gradients and statistics.

    The first fixture is what the network is compared with, and of a training step the first that has one.
    """
    expected = found[0]
    network = loaded(case, expected)
    parameters = sum(int(p.size) for p in network.parameters() if p.trainable)
    assert parameters == expected.facts["num_params"], f"{case.variant}: {parameters:,} parameters"
    parts = {tag: compare.evaluation(expected, network, tag, case.stage_names) for tag in sizes(expected)}
    stages = max(part["stages"] for part in parts.values())
    cells = [f"{parameters:,}", *(shown(parts[tag]["logits"]) if tag in parts else "-" for tag in ("eval", "odd"))]
    cells.append(shown(stages))
    trained = next((fixture for fixture in found if "train" in fixture.facts), None)
    cells += ["-"] * 4 if trained is None else training_cells(case, trained)
    return f"| {case.model} | {case.variant} | {' | '.join(cells)} |"


def training_cells(case: Case, expected: Fixture) -> list[str]:
    network = loaded(case, expected)
    names = our_names(expected, network)
    step = compare.training_step(expected, network, names)
    # in float64 from the start: the step has moved the statistics
    loss, gradients = compare.training_step_in_float64(expected, loaded(case, expected), names)
    assert loss <= 1e-6, f"{case.variant}: the loss in float64 differs by {loss:.2g}"
    statistics = shown(step.statistics) if expected.facts["train"]["bn_buffers"] else "-"
    return [shown(step.loss), shown(max(step.gradients.values())), shown(max(gradients.values())), statistics]


def merged_row(case: Case, found: list[Fixture]) -> str:
    """The same for the network after structural re-parameterisation; logits of the first fixture that has them."""
    cells = {"eval": "-", "odd": "-"}
    for expected in found:
        tags = [tag for tag, cell in cells.items() if cell == "-" and f"merged_{tag}_logits" in expected.arrays]
        if not tags:
            continue
        network = loaded(case, expected)
        network.eval()
        network.reparameterize()
        parameters = sum(int(p.size) for p in network.parameters() if p.trainable)
        assert parameters == expected.facts["merged_num_params"], f"{case.variant}: {parameters:,} merged parameters"
        for tag in tags:
            with paddle.no_grad():
                logits = network(paddle.to_tensor(images(expected.facts[tag]))).numpy()
            reference = expected.arrays[f"merged_{tag}_logits"]
            cells[tag] = shown(float(np.abs(logits[:, :: expected.logit_step] - reference).max()))
    count = f"{found[0].facts['merged_num_params']:,}"
    return f"| {case.model}, merged | {case.variant} | {' | '.join([count, *cells.values(), *['-'] * 5])} |"


def sizes(expected: Fixture) -> list[str]:
    return [tag for tag in ("eval", "odd") if tag in expected.facts]


def shown(difference: float) -> str:
    return f"{difference:.1e}"


def written(path: Path, rows: list[str]) -> None:
    """Put the table between the two marks of a page."""
    text = path.read_text(encoding="utf-8")
    start, end = (text.index(mark) for mark in ("<!-- parity -->", "<!-- end of parity -->"))
    table = "\n".join(("<!-- parity -->", *HEAD, *rows, ""))
    path.write_text(text[:start] + table + text[end:], encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of whole fixtures")
    parser.add_argument("--only", default="*", help="a pattern of variants, such as 'resnext50*'")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    arguments = parser.parse_args()
    wanted = [case for case in CASES if fnmatch.fnmatchcase(case.variant, arguments.only)]
    pairs = [(case, found) for case in wanted if (found := fixtures(case, arguments.folders))]
    if not pairs:
        parser.error(f"no numbers of {arguments.only} in {', '.join(map(str, arguments.folders)) or FOLDER}")
    if arguments.write and len(pairs) < len(CASES):
        measured = {case.variant for case, _ in pairs}
        lost = ", ".join(case.variant for case in CASES if case.variant not in measured)
        parser.error(
            f"--write replaces the whole table, and {lost} would be missing: tests/parity/reference.py makes them"
        )
    print("\n".join(HEAD), flush=True)
    rows = []
    for case, found in pairs:
        rows.append(row(case, found))
        print(rows[-1], flush=True)
        if "merged_num_params" in found[0].facts:
            rows.append(merged_row(case, found))
            print(rows[-1], flush=True)
    if arguments.write:
        written(arguments.write, rows)


if __name__ == "__main__":
    main()
