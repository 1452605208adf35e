"""Evaluation and prediction with a trained network, used as a user would."""

from __future__ import annotations

import ast
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import Run, answers_in, config_of, weights, write_pictures

from ppcls_ext import config
from ppcls_ext.checkpoint import load_set
from ppcls_ext.errors import Refused
from ppcls_ext.report.evaluation import Judged, write_report
from ppcls_ext.serving import prediction
from ppcls_ext.trained import class_names_of


def test_evaluation_prints_exact_counts_as_json(trained: Path, run_here: Run, tmp_path: Path) -> None:
    status, output, _ = run_here(
        "tools/eval.py", "-c", config_of(trained), "-o", weights(trained), "--json", tmp_path / "r.json"
    )
    assert status == 0
    assert "loaded 192 of 192 tensors from" in output and "[Eval][Epoch 0][Avg]top1: " in output
    result = json.loads(output.splitlines()[-1])
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert result["images"] == 15 and result["skipped"] == 0
    assert result["top1"] == result["top1_correct"] / 15
    best = load_set(trained / "best_model").states["best"]
    assert result["top1"] == best["top1"]  # what training saw is what evaluation finds


def test_the_class_index_comes_from_the_checkpoint_not_from_the_folders_of_the_split(
    trained: Path, run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    for label in (1, 2):  # without class_0 the folders' own order would shift every index
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / f"part/class_{label}").symlink_to(pictures / f"val/class_{label}")
    options = [weights(trained), f"DataLoader.Eval.dataset.image_root={tmp_path}/part"]
    status, output, _ = run_here("tools/eval.py", "-c", config_of(trained), "-o", *options)
    assert status == 0
    part = json.loads(output.splitlines()[-1])
    counts = []
    for label in range(3):
        (tmp_path / f"one{label}").mkdir()
        (tmp_path / f"one{label}/class_{label}").symlink_to(pictures / f"val/class_{label}")
        options = [weights(trained), f"DataLoader.Eval.dataset.image_root={tmp_path}/one{label}"]
        _, output, _ = run_here("tools/eval.py", "-c", config_of(trained), "-o", *options)
        counts.append(json.loads(output.splitlines()[-1])["top1_correct"])
    assert part["top1_correct"] == counts[1] + counts[2]


def test_evaluation_of_folders_with_weights_that_carry_no_class_map_is_refused(
    trained: Path, run_here: Run, tmp_path: Path
) -> None:
    import paddle

    bare = {
        name: paddle.to_tensor(array) for name, array in load_set(trained / "best_model").tensors[".pdparams"].items()
    }
    paddle.save(bare, str(tmp_path / "bare.pdparams"))
    options = [f"Global.pretrained_model={tmp_path}/bare", "Arch.class_num=3"]
    status, _, errors = run_here("tools/eval.py", "-c", config_of(trained), "-o", *options)
    assert status == 2
    assert "DataLoader.Eval.dataset.class_map: missing" in errors
    options.append(f"DataLoader.Eval.dataset.class_map={trained}/class_map.txt")
    status, output, _ = run_here("tools/eval.py", "-c", config_of(trained), "-o", *options)
    assert status == 0 and "loaded 192 of 192 tensors" in output


def test_skipped_images_of_an_evaluation_are_listed_and_the_status_says_so(
    trained: Path, run_here: Run, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "val", images=3)
    (tmp_path / "val/class_0/1.png").write_bytes(b"x")
    options = [
        weights(trained),
        f"DataLoader.Eval.dataset.image_root={tmp_path}/val",
        "DataLoader.Eval.dataset.unreadable=skip",
    ]
    command = ("tools/eval.py", "-c", config_of(trained), "-o", *options, "--report", tmp_path / "report")
    status, output, _ = run_here(*command)
    assert status == 4
    assert "left out: " in output and "class_0/1.png" in output
    result = json.loads(output.splitlines()[-1])
    assert (result["images"], result["skipped"]) == (8, 1)
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    listed = page.partition("<h2>Images that could not be read</h2>")[2]
    assert "class_0/1.png</td><td>" in listed and listed.count("<tr>") == 2


def test_prediction_prints_the_published_format(trained: Path, run_here: Run, pictures: Path) -> None:
    status, output, errors = run_here(
        "tools/infer.py", "-c", config_of(trained), "-o", weights(trained), "Infer.batch_size=2"
    )
    assert status == 0, errors
    lines = [line for line in output.splitlines() if line.startswith("[{")]
    assert len(lines) == 3  # five images, two a batch
    first = ast.literal_eval(lines[0])[0]
    assert list(first) == ["class_ids", "scores", "file_name", "label_names"]
    assert first["file_name"] == str(pictures / "val/class_1/0.png")
    assert sorted(first["class_ids"]) == [0, 1, 2] and sum(first["scores"]) == pytest.approx(1, abs=1e-4)
    assert first["label_names"] == [f"class_{index}" for index in first["class_ids"]]
    assert first["scores"] == sorted(first["scores"], reverse=True)


def test_prediction_takes_files_folders_and_lists_and_survives_a_bad_image(
    trained: Path, run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG cut")
    (tmp_path / "names.txt").write_text(f"{pictures}/val/class_2/1.png\nbad.png\nabsent.png\n")
    images = [f"{pictures}/val/class_0/0.png", f"{pictures}/val/class_1", f"{tmp_path}/names.txt"]
    status, output, errors = run_here(
        "tools/infer.py",
        "-c",
        config_of(trained),
        "-o",
        weights(trained),
        f"Infer.infer_imgs={images}",
        "Infer.PostProcess.topk=1",
    )
    assert status == 4
    assert len(answers_in(output)) == 7
    assert all(len(answer["class_ids"]) == 1 for answer in answers_in(output))
    assert f"{tmp_path}/bad.png: cannot be decoded" in errors and f"{tmp_path}/absent.png: cannot be read" in errors


def test_answers_are_saved_a_line_for_every_image_that_was_asked_about(
    trained: Path, run_here: Run, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "a, bad.png").write_bytes(b"\x89PNG cut")
    asked = ["-c", config_of(trained), "-o", weights(trained), f"Infer.infer_imgs=['{pictures}/val','{tmp_path}']"]
    status, output, _ = run_here("tools/infer.py", *asked, "--save", tmp_path / "new/answers.jsonl")
    *told, bad = [json.loads(line) for line in (tmp_path / "new/answers.jsonl").read_text("utf-8").splitlines()]
    assert status == 4 and told == answers_in(output) and len(told) == 15
    assert bad["file_name"] == f"{tmp_path}/a, bad.png" and bad["error"].startswith("cannot be decoded")
    run_here("tools/infer.py", *asked, "Infer.PostProcess.topk=2", "--save", tmp_path / "answers.csv")
    with open(tmp_path / "answers.csv", encoding="utf-8") as file:
        *rows, last = csv.DictReader(file)
    best = [{**row, "class_id": int(row["class_id"]), "score": float(row["score"])} for row in rows[::2]]
    for row, answer in zip(best, told):
        assert (row["file_name"], row["rank"], row["error"]) == (answer["file_name"], "1", "")
        assert [row["class_id"], row["score"]] == [answer["class_ids"][0], answer["scores"][0]]
        assert row["label_name"] == answer["label_names"][0]
    assert [row["rank"] for row in rows] == ["1", "2"] * 15
    assert last == {**dict.fromkeys(last, ""), "file_name": bad["file_name"], "error": bad["error"]}
    first = ["-c", config_of(trained), "-o", weights(trained), f"Infer.infer_imgs=['{tmp_path}','{pictures}/val']"]
    run_here("tools/infer.py", *first, "--save", tmp_path / "first.csv")
    assert (tmp_path / "first.csv").read_text("utf-8").splitlines()[1].startswith(f'"{tmp_path}/a, bad.png",')
    status, _, errors = run_here("tools/infer.py", *asked, "--save", "answers.xlsx")
    assert status == 2 and "expected a name that ends in .csv or .jsonl, got 'answers.xlsx'" in errors


def test_answers_that_were_given_before_ctrl_c_are_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def batches() -> Iterator[list[dict]]:
        yield [
            {"file_name": "a.png", "class_ids": [1], "scores": [0.5]},
            {"file_name": "b.png", "error": "is not there"},
        ]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prediction.print_answers(batches(), tmp_path / "answers.jsonl")
    names = [json.loads(line)["file_name"] for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert names == ["a.png", "b.png"]
    assert f"{tmp_path}/answers.jsonl: the answers about the first 2 images\n" in capsys.readouterr().err


@pytest.mark.parametrize("number, status, name", [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_tool_that_is_stopped_says_so_and_keeps_its_answers(
    tmp_path: Path, repository: Path, number: int, status: int, name: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background inherits as ignored
sys.path.insert(0, {str(repository)!r})
from pathlib import Path
from ppcls_ext import cli
from ppcls_ext.serving.prediction import print_answers
def batches():
    cli.import_paddle()
    yield [{{"file_name": "a.png", "class_ids": [1], "scores": [0.5]}}]
    time.sleep(60)
cli.run(lambda: print_answers(batches(), Path("answers.csv")))
""")
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert "a.png" in process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert errors == f"answers.csv: the answers about the first 1 images\nStopped by {name}.\n"
    assert (tmp_path / "answers.csv").read_text("utf-8").splitlines()[1] == "a.png,1,1,,0.5,"


def test_a_tool_whose_output_is_closed_ends_well(repository: Path) -> None:
    body = "import sys; sys.path.insert(0, sys.argv[1]); from ppcls_ext import cli; cli.run(lambda: print('out'))"
    command = ["sh", "-c", '"$0" -c "$1" "$2" >&-', sys.executable, body, str(repository)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_prediction_says_that_the_gpu_it_was_to_use_is_not_there(trained: Path, run_here: Run, pictures: Path) -> None:
    if paddle.device.cuda.device_count():
        pytest.skip("this machine has a GPU")
    options = [weights(trained), f"Infer.infer_imgs={pictures}/val/class_1/0.png", "Global.device=gpu"]
    status, output, _ = run_here("tools/infer.py", "-c", config_of(trained), "-o", *options)
    assert status == 0 and "Global.device is gpu, but this machine or this build of PaddlePaddle has none" in output


def test_names_come_from_a_file_where_the_weights_carry_none(trained: Path, run_here: Run, tmp_path: Path) -> None:
    import paddle

    arrays = load_set(trained / "best_model").tensors[".pdparams"]
    paddle.save({name: paddle.to_tensor(array) for name, array in arrays.items()}, str(tmp_path / "bare.pdparams"))
    (tmp_path / "names.txt").write_text("0 nought\n1 one\n2 two\n")
    options = [f"Global.pretrained_model={tmp_path}/bare", "Arch.class_num=3"]
    given = [*options, f"Infer.PostProcess.class_id_map_file={tmp_path}/names.txt"]
    status, output, _ = run_here("tools/infer.py", "-c", config_of(trained), "-o", *given)
    assert status == 0 and set(answers_in(output)[0]["label_names"]) == {"nought", "one", "two"}
    status, _, errors = run_here(
        "tools/infer.py", "-c", config_of(trained), "-o", *options, "Infer.PostProcess.class_id_map_file=no.txt"
    )
    assert status == 2 and "Infer.PostProcess.class_id_map_file: no such file: no.txt" in errors


def test_a_list_of_images_may_begin_with_a_mark_and_no_path_is_empty(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\nb.png\n", encoding="utf-8-sig")
    assert prediction.find_images(str(tmp_path / "list.txt")) == [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(Refused, match="an image's path is empty"):
        prediction.find_images([""])


def test_a_list_with_labels_and_a_name_that_is_not_there_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a/1.png 0\na/2.png 1\n")
    with pytest.raises(Refused, match="labels.txt: holds labels; a list of images is one path a line"):
        prediction.find_images(str(tmp_path / "labels.txt"))
    with pytest.raises(Refused, match="nowhere.png: no such file or folder"):
        prediction.find_images(str(tmp_path / "nowhere.png"))


def test_an_answer_orders_equal_scores_by_index_and_never_asks_for_more_classes_than_there_are() -> None:
    row = np.array([0.2, 0.4, 0.4], np.float32)
    assert prediction.answer(row, "a.png", 5, None) == {
        "class_ids": [1, 2, 0],
        "scores": [0.4, 0.4, 0.2],
        "file_name": "a.png",
    }
    np.testing.assert_allclose(prediction.softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])


def test_a_class_map_that_fits_goes_before_the_names_of_the_weights_and_another_is_told(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = "Infer.PostProcess.class_id_map_file"
    for name, lines in (("fits", "0 oak\n1 elm\n"), ("other", "0 a\n1 b\n2 c\n")):
        (tmp_path / f"{name}.txt").write_text(lines)

    def names(file: str, carried: list[str] | None = None) -> list[str] | None:
        loaded = config.load(write_config(), [f"{place}={tmp_path / file}"])
        return class_names_of(loaded, {"class_names": carried}, 2)

    assert names("fits.txt", ["x", "y"]) == names("fits.txt") == ["oak", "elm"]
    for file, problem in (("other.txt", "names 3 classes, the network has 2"), ("gone.txt", "no such file: ")):
        capsys.readouterr()
        assert names(file, ["x", "y"]) == ["x", "y"]
        said = capsys.readouterr().out
        assert problem in said and "the names that the weights carry are used" in said
        with pytest.raises(Refused, match="and the weights carry no class map; name another file"):
            names(file)


def test_a_report_shows_every_class_the_confusions_and_the_mistakes(
    trained: Path, run_here: Run, tmp_path: Path
) -> None:
    options = (f"Global.pretrained_model={trained}/best_model",)
    status, output, errors = run_here(
        "tools/eval.py", "-c", config_of(trained), "-o", *options, "--report", tmp_path / "report"
    )
    assert status == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert f"report: {tmp_path}/report/report.html" in output
    with open(tmp_path / "report/answers.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result["images"] and sum(row["right"] == "1" for row in rows) == result["top1_correct"]
    assert {row["label"] for row in rows} == {"class_0", "class_1", "class_2"}
    assert all(Path(row["file"]).is_file() and (row["label"] == row["answer"]) == (row["right"] == "1") for row in rows)
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    wrong = result["images"] - result["top1_correct"]
    assert "could not be read</h2>" not in page
    assert f"{wrong} of {result['images']} answers are wrong" in page and page.count("<figure>") == wrong
    assert page.count('src="data:image/jpeg;base64,') == wrong and page.count('src="data:image/png;base64,') == 1
    assert f"<td>top1</td><td>{result['top1']:.5f}</td>" in page and "<td>class_2</td>" in page


def test_what_a_report_says_is_counted_and_nothing_in_a_name_is_markup(tmp_path: Path) -> None:
    judged = Judged(
        files=["gone/a.jpg", "gone/b.jpg", "gone/c.jpg", "gone/d.jpg"],
        labels=np.array([0, 0, 0, 1]),
        probabilities=np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.6, 0.4, 0], [0.3, 0.7, 0]]),
        class_names=["<b>oak</b>", "elm & co", "never seen"],
    )
    page = write_report(tmp_path, "A <title>", {"weights": "<w>"}, judged).read_text(encoding="utf-8")
    assert (
        "<b>oak</b>" not in page and "&lt;b&gt;oak&lt;/b&gt;" in page and "elm &amp; co" in page and "&lt;w&gt;" in page
    )
    assert "<title>A &lt;title&gt;</title>" in page and "never seen</td>" not in page
    recall = [row.split("</td>")[3][-5:] for row in page.split("<tr>") if "</span>" in row]
    assert recall == ["0.667", "1.000"]  # the hardest first
    assert "<td>1 of 3</td>" in page and "1 of 4 answers are wrong" in page and "taken for elm &amp; co (0.80)" in page
    assert (tmp_path / "answers.csv").read_text().splitlines()[2] == "gone/b.jpg,<b>oak</b>,elm & co,0.80000,0"
