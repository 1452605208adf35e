"""Nothing is lost: a run killed at any moment and taken up again ends with the bits of an unbroken one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, small_config

from ppcls_ext.checkpoint import load_set
from ppcls_ext.errors import Refused
from ppcls_ext.log import RunLog

# Trains as `tools/train.py` does, again and again in one process image: importing Paddle takes longer than the run. The
# parent forks one child per attempt, kills it with -9 after a delay, and lets the next child resume.
DRIVER = """
import os, random, signal, sys, time
sys.path.insert(0, {repository!r})
from ppcls_ext import checkpoint, config, engine

configuration, output, workers, kills, seed = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
chance = random.Random(seed)
base = [f"Global.output_dir={{output}}", f"DataLoader.Train.loader.num_workers={{workers}}"]
latest = os.path.join(output, "MicroNet_M0", "latest")

def attempt(delay, in_save):
    child = os.fork()
    if child == 0:
        if in_save is not None:
            # die inside the n-th file operation of a save: half a file written, or between two renames
            count = [0]
            def dying(call):
                def step(*arguments, **keywords):
                    count[0] += 1
                    if count[0] == in_save:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return call(*arguments, **keywords)
                return step
            os.replace, os.fsync = dying(os.replace), dying(os.fsync)
        options = base + ([f"Global.checkpoints={{latest}}"] if os.path.exists(latest + ".pdstates") else [])
        try:
            engine.train(config.load(configuration, options, ["Train"]))
        except BaseException as error:
            import traceback; traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status

killed = inside = 0
began = time.time()
while killed < kills:
    in_save = chance.randint(1, 60) if killed % 2 else None
    status = attempt(None if in_save else chance.uniform(0.05, 1.6), in_save)
    if os.WIFSIGNALED(status):
        killed += 1
        inside += in_save is not None
        continue
    if status:
        sys.exit(f"attempt failed with status {{status}}")
    if time.time() - began > 240:
        break
    # it got to the end before the blow fell: begin anew, the blows go on
    import shutil
    shutil.rmtree(output)
status = attempt(None, None)
print(f"killed {{killed}} times, {{inside}} of them inside a save; then ended with status {{status}}")
sys.exit(1 if status else 0)
"""


def config_file(folder: Path, pictures: Path) -> Path:
    config = small_config(pictures, folder / "whole")
    config["Global"] |= {"save_steps": 1, "epochs": 3}
    config["EMA"] = {"decay": 0.9}
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def tensors(output: Path) -> dict[str, dict[str, np.ndarray]]:
    return load_set(output / "MicroNet_M0/latest").tensors


@pytest.mark.parametrize("workers, kills", [(0, 12), (2, 10)])
def test_a_run_killed_with_minus_9_at_random_moments_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, pictures: Path, workers: int, kills: int
) -> None:
    path = config_file(tmp_path, pictures)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER.format(repository=str(REPOSITORY)))

    def drive(name: str, kills: int) -> str:
        command = [sys.executable, driver, path, tmp_path / name, workers, kills, 7]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout.splitlines()[-1]

    drive("whole", 0)
    said = drive("killed", kills)
    assert f"killed {kills} times, {kills // 2} of them inside a save; then ended with status 0" in said
    whole, killed = tensors(tmp_path / "whole"), tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys() == {".pdparams", ".pdopt", ".ema.pdparams"}
    for suffix in whole:
        for name in whole[suffix]:
            assert whole[suffix][name].tobytes() == killed[suffix][name].tobytes(), (suffix, name)


def start(path: Path, *overrides: str, hangup: signal.Handlers = signal.SIG_DFL) -> subprocess.Popen[str]:
    """`hangup`: what a closed terminal does to the process: a child inherits it, from the terminal or from nohup."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "tools/train.py"), "-c", str(path), "-o", *overrides]
    before = signal.signal(signal.SIGHUP, hangup)
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGHUP, before)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_sigterm_ctrl_c_and_a_closed_terminal_save_and_exit_with_their_own_status(
    tmp_path: Path, pictures: Path, number: int, status: int
) -> None:
    path = config_file(tmp_path, pictures)
    process = start(path, "Global.epochs=500", "DataLoader.Train.loader.num_workers=1")
    latest = tmp_path / "whole/MicroNet_M0/latest"
    wait_for(latest.with_name("latest.pdstates"), process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert f"stopped on request; go on with -o Global.checkpoints={latest}" in output
    assert "Traceback" not in errors
    assert load_set(latest).states["global_step"] >= 1


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path, pictures: Path) -> None:
    process = start(config_file(tmp_path, pictures), "Global.epochs=6", hangup=signal.SIG_IGN)
    wait_for(tmp_path / "whole/MicroNet_M0/latest.pdstates", process)
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped on request" not in output, errors
    assert load_set(tmp_path / "whole/MicroNet_M0/latest").states["epoch"] == 7


def test_a_run_whose_terminal_is_gone_goes_on_in_its_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path)

    def gone(line: str) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log._console.print = gone
    log.info("still here")
    log.close()
    assert "ppcls INFO: still here" in (tmp_path / "train.log").read_text()


def test_a_damaged_checkpoint_is_refused_by_the_tool_and_another_one_offered(tmp_path: Path, pictures: Path) -> None:
    path = config_file(tmp_path, pictures)
    done = start(path, "Global.epochs=1")
    assert done.wait(120) == 0
    latest = tmp_path / "whole/MicroNet_M0/latest"
    with open(f"{latest}.pdopt", "r+b") as file:
        file.seek(500)
        file.write(b"\x00\xff\x00")
    process = start(path, f"Global.checkpoints={latest}")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "latest.pdopt is damaged" in errors and "-o Global.checkpoints=" in errors and "Traceback" not in errors
    with pytest.raises(Refused, match="latest.pdopt is damaged"):
        load_set(latest)
