"""Several processes: the same training, exact counts, nobody left waiting, and the error of the rank that failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import EVAL_OPS, REPOSITORY, run_tool, small_config

from ppcls_ext.checkpoint import load_set
from ppcls_ext.distributed import failures
from ppcls_ext.log import read_metrics

# A script for the launcher: what the tests of one process do in a function, these do in here.
PRELUDE = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
sys.path.insert(0, {str(REPOSITORY / "tests")!r})
import time
import numpy as np
from ppcls_ext import cli
"""


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """launch(body, processes) runs the script `body`, whose `main` is called as a tool's."""

    def run(body: str, processes: int = 2, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        script = tmp_path / "script.py"
        script.write_text(PRELUDE + body + "\ncli.run(main)\n")
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
            command += ["--log_dir", str(tmp_path / "log")]
        command.append(str(script))
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=tmp_path, env=environment)

    return run


def shown(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr


TRAIN_PLAIN = """
def main():
    cli.import_paddle()
    from ppcls_ext import config, engine
    from ppcls_ext.registry import BACKBONES
    from test_engine import plain_network
    if "tests_plain" not in BACKBONES:
        BACKBONES.register("tests_plain")(plain_network)
    engine.train(config.load({path!r}, {overrides!r}, ["Train"]))
"""


def write(path: Path, pictures: Path, output: Path, **changes: object) -> Path:
    config = small_config(pictures, output, **changes)
    config["Global"]["epochs"] = 5
    config["DataLoader"]["Train"]["dataset"]["transform_ops"] = EVAL_OPS
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    "arch, tolerance",
    [({"name": "tests_plain"}, 1e-6), ({"name": "MicroNet_M0", "use_sync_bn": True, "dropout": 0.0}, 2e-4)],
    ids=["without batch norm", "with synchronised batch norm"],
)
def test_two_ranks_of_b_train_like_one_of_2b(
    launch: Callable, tmp_path: Path, pictures: Path, arch: dict, tolerance: float
) -> None:
    path = write(tmp_path / "c.yaml", pictures, tmp_path, Arch=arch)
    lr = "Optimizer.lr={name: Constant, learning_rate: 0.01}"
    for processes, batch in ((1, 12), (2, 6)):
        overrides = [f"Global.output_dir={tmp_path}/out{processes}", f"DataLoader.Train.sampler.batch_size={batch}", lr]
        done = launch(TRAIN_PLAIN.format(path=str(path), overrides=overrides), processes)
        assert done.returncode == 0 and "Stopped" not in shown(done), shown(done)[-3000:]
    one, two = (load_set(tmp_path / f"out{n}" / arch["name"] / "latest") for n in (1, 2))
    assert one.states["global_step"] == two.states["global_step"] == 15
    for name, array in one.tensors[".pdparams"].items():
        np.testing.assert_allclose(two.tensors[".pdparams"][name], array, atol=tolerance, rtol=0, err_msg=name)
    told = [read_metrics(tmp_path / f"out{n}" / arch["name"]) for n in (1, 2)]
    losses = [[record["loss"] for record in records if record["kind"] == "train_epoch"] for records in told]
    np.testing.assert_allclose(losses[1], losses[0], atol=tolerance, rtol=0)  # of all ranks' images


def test_an_evaluation_on_two_processes_counts_every_image_once(trained: Path, tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        done = run_tool(
            "tools/eval.py", "-c", trained.parent / "config.yaml",
            "-o", f"Global.pretrained_model={trained}/best_model",
            "DataLoader.Eval.sampler.batch_size=4", "--report", f"report_{processes}",
            processes=processes, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, shown(done)[-3000:]
        results.append(json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"arch"'))))
    one, two = results
    assert one["images"] == two["images"] == 15  # 2 x 7 and a half
    assert one["top1_correct"] == two["top1_correct"] and one["top5_correct"] == two["top5_correct"]
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    answers = [(tmp_path / f"report_{processes}/answers.csv").read_text() for processes in (1, 2)]
    assert len(answers[0].splitlines()) == 16 and answers[0] == answers[1]


def test_the_collectives_do_what_they_say(launch: Callable) -> None:
    done = launch("""
def main():
    import paddle
    from ppcls_ext import distributed
    from ppcls_ext.errors import RunFailed
    distributed.start()
    rank = distributed.rank()
    assert distributed.all_sum(np.array([1.0, rank])).tolist() == [2.0, 1.0]
    assert distributed.any_rank(rank == 1) and not distributed.any_rank(False)
    assert distributed.first_does(lambda: "done") == ("done" if rank == 0 else None)
    assert distributed.merged({f"of rank {rank}": "x"}) == {"of rank 0": "x", "of rank 1": "x"}
    def fail():
        raise ValueError("the disk is full")
    try:
        distributed.first_does(fail)
    except (ValueError, RunFailed) as error:
        said = str(error)
    assert said == ("the disk is full" if rank == 0 else "rank 0 failed; its own message says why")
    norm = paddle.nn.BatchNorm1D(3)
    norm._mean.set_value(np.full(3, rank, np.float32))
    norm._variance.set_value(np.full(3, 1 + 2 * rank, np.float32))
    distributed.equalise_statistics(paddle.nn.Sequential(norm).state_dict())
    assert norm._mean.numpy().tolist() == [0.5] * 3 and norm._variance.numpy().tolist() == [2.0] * 3
    print("all held")
""")
    assert done.returncode == 0 and "all held" in done.stdout, shown(done)[-3000:]


def test_the_terminal_shows_the_error_of_the_rank_that_failed(launch: Callable) -> None:
    done = launch("""
def main():
    cli.import_paddle()
    from ppcls_ext import distributed
    from ppcls_ext.distributed import failures
    from ppcls_ext.errors import RunFailed
    failures.join()
    distributed.any_rank(False)
    if distributed.rank() == 1:
        raise RunFailed("lists/train.txt:12: images/a.jpg: cannot be decoded")
    distributed.any_rank(False)
""")
    assert done.returncode != 0
    assert "[rank 1] failed:\nStopped: lists/train.txt:12: images/a.jpg: cannot be decoded" in shown(done)


def test_what_the_first_rank_could_not_do_is_told_once(launch: Callable) -> None:
    done = launch("""
def main():
    cli.import_paddle()
    from ppcls_ext import distributed
    from ppcls_ext.distributed import failures
    from ppcls_ext.errors import RunFailed
    failures.join()
    def save():
        raise RunFailed("output: the disk is full")
    distributed.first_does(save)
""")
    assert done.returncode != 0 and "Stopped: output: the disk is full" in shown(done)
    assert "rank 0 failed" not in done.stdout + done.stderr  # what the terminal shows


class Training:
    """A real training of two processes that has saved once, with its launcher."""

    def __init__(self, folder: Path, pictures: Path) -> None:
        self.said, self.log = folder / "said.txt", folder / "log"
        self.latest = folder / "out/MicroNet_M0/latest"
        path = write(folder / "c.yaml", pictures, folder / "out")
        command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", self.log]
        command += [REPOSITORY / "tools/train.py", "-c", path, "-o", "Global.epochs=500"]
        # where processes tell each other of failures, so that what they leave is seen
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
        with open(self.said, "w") as said:
            self.launcher = subprocess.Popen(
                list(map(str, command)), stdout=said, stderr=said, env=environment, start_new_session=True
            )
        deadline = time.monotonic() + 90
        while not self.latest.with_name("latest.pdstates").exists():
            assert self.launcher.poll() is None and time.monotonic() < deadline, self.said.read_text()[-3000:]
            time.sleep(0.1)

    def process_of(self, rank: int) -> int:
        """The process number of a rank."""
        found = subprocess.run(["pgrep", "-P", str(self.launcher.pid)], capture_output=True, text=True, check=True)
        return next(
            pid
            for pid in map(int, found.stdout.split())
            if f"PADDLE_TRAINER_ID={rank}\0" in Path(f"/proc/{pid}/environ").read_text()
        )


def test_without_a_place_to_tell_each_other_of_failures_a_run_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setattr(failures, "_folder", lambda: tmp_path / "file/folder")
    failures.watch()
    failures.remember(tmp_path / "latest")
    assert capsys.readouterr().err.startswith("Warning: what ends another process will not be shown: [Errno 20] Not a")


@pytest.mark.parametrize("rank", [0, 1])
def test_kill_9_of_a_rank_ends_all_and_says_how_to_go_on(tmp_path: Path, pictures: Path, rank: int) -> None:
    training = Training(tmp_path, pictures)
    killed = training.process_of(rank)
    os.kill(killed, signal.SIGKILL)
    assert training.launcher.wait(60) != 0
    log = (training.log / "workerlog.0").read_text()  # of which the launcher shows what it has time for
    [told] = {line for line in log.splitlines() if line.startswith("Stopped: ") and "ended without a message" in line}
    assert f"rank {rank} (process {killed})" in told
    assert f"Go on from the last checkpoint: -o Global.checkpoints={training.latest}\n" in log
    assert "Traceback (most recent call last):" not in log.replace("C++ Traceback (most recent call last):", "")
    load_set(training.latest)
    deadline = time.monotonic() + 10
    while left := list(tmp_path.glob("ppcls_ext-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_sigterm_ends_a_process_that_waits_for_the_others_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        PRELUDE
        + """
def main():
    cli.import_paddle()
    from ppcls_ext import distributed
    print("joins", flush=True)
    distributed.start()
cli.run(main)
"""
    )
    alone = {"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "0", "PADDLE_MASTER": "127.0.0.1:0"}
    ends = "127.0.0.1:36001,127.0.0.1:36002"
    alone |= {"PADDLE_TRAINER_ENDPOINTS": ends, "PADDLE_CURRENT_ENDPOINT": ends.split(",")[0]}
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **alone},
        cwd=tmp_path,
        start_new_session=True,
    )
    assert "joins" in process.stdout.readline()
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM
    deadline = time.monotonic() + 10
    with pytest.raises(ProcessLookupError):  # nor is what Paddle had started left
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_sigterm_to_the_launcher_saves_at_one_step_on_all_ranks(tmp_path: Path, pictures: Path) -> None:
    training = Training(tmp_path, pictures)
    training.launcher.send_signal(signal.SIGTERM)
    training.launcher.wait(60)
    log = (training.log / "workerlog.0").read_text()
    assert "stopped on request; go on with -o Global.checkpoints=" in log and "without a message" not in log
    assert load_set(training.latest).states["global_step"] >= 1


@pytest.mark.slow
def test_a_save_that_takes_longer_than_a_collective_may_does_not_end_the_run(
    launch: Callable, tmp_path: Path, pictures: Path
) -> None:
    path = write(tmp_path / "c.yaml", pictures, tmp_path / "out")
    done = launch(f"""
def main():
    cli.import_paddle()
    from ppcls_ext import config, engine
    from ppcls_ext.training import saving
    real = saving.save_set
    def slow(prefix, *rest, **more):
        if prefix.name == "epoch_1":
            time.sleep(40)
        real(prefix, *rest, **more)
    saving.save_set = slow
    engine.train(config.load({str(path)!r}, ["Global.epochs=1"], ["Train"]))
""")
    assert done.returncode == 0, shown(done)[-3000:]
    assert load_set(tmp_path / "out/MicroNet_M0/epoch_1").states["global_step"] == 3
