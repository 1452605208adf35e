"""What cannot be written is found before the work for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Run, config_of, weights

from ppcls_ext import files


@pytest.mark.parametrize(
    "command, said",
    [
        (
            ["tools/train.py", "Global.output_dir={file}"],
            "Global.output_dir: {file} is a file, so there can be no folder",
        ),
        (["tools/find_lr.py", "Global.output_dir={file}"], "Global.output_dir: {file} is a file, so there can be no "),
        (
            ["tools/export_model.py", "Global.save_inference_dir={file}", "{weights}"],
            "Global.save_inference_dir: {file} is a file; name a folder",
        ),
        (["tools/eval.py", "{weights}", "--report", "{file}"], "--report: {file} is a file; name a folder"),
        (["tools/eval.py", "{weights}", "--json", "{folder}"], "--json: {folder} is a folder; name a file"),
        (["tools/infer.py", "{weights}", "--save", "{folder}.csv"], "--save: {folder}.csv is a folder; name a file"),
        (["tools/preview.py", "Global.seed=0", "--out", "{file}/x.png"], "--out: {file} is a file; name a folder"),
        (["tools/average.py", "Global.seed=0", "--out", "{file}/x"], "--out: {file} is a file; name a folder"),
    ],
    ids=lambda value: value[0].split("/")[1] if isinstance(value, list) else "",
)
def test_what_cannot_be_written_is_found_before_the_work_begins(
    trained: Path, run_here: Run, tmp_path: Path, command: list[str], said: str
) -> None:
    places = {"file": f"{tmp_path}/file", "folder": f"{tmp_path}/folder", "weights": weights(trained)}
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.csv").mkdir()
    tool, *options = [part.format(**places) for part in command]
    status, output, errors = run_here(tool, "-c", config_of(trained), "-o", *options)
    assert status == 2 and said.format(**places) in errors and "Avg" not in output
    assert (tmp_path / "file").read_text() == "kept" and not any((tmp_path / "folder").iterdir())


def test_a_folder_without_permission_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert files.folder_problem(tmp_path / "new") == (
        f"{tmp_path} cannot be written to; name another folder, or change its permissions"
    )
