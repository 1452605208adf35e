"""What the tools share: their arguments, and how a run that ends is told to the shell.

Exit status: 0 all done; 1 a defect of the program (with its traceback); 2 an input was refused before work began;
3 work had begun and could not go on; 4 done, but some images could not be read; 129, 130 and 143 stopped by a closed
terminal, Ctrl-C or SIGTERM, in training after saving; 141 nobody reads the output any more.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from ppcls_ext import processor
from ppcls_ext.distributed import failures
from ppcls_ext.errors import FirstFailed, Refused, RunFailed
from ppcls_ext.files import file_problem, folder_problem

EXIT_REFUSED = 2
EXIT_FAILED = 3
EXIT_PARTLY = 4

MOST_THREADS = 1024

# Overrides of the tools that read the training split and neither evaluate nor follow a schedule.
TRAINING_SPLIT_ALONE = [
    "Global.eval_during_train=False",
    "Global.early_stopping=null",
    "Optimizer.lr={name: Constant, learning_rate: 1.0}",
]


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with `-c`, `-o` and `--print-config`; a tool may add its own."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("-c", "--config", required=True, metavar="FILE", help="configuration file (YAML)")
    result.add_argument(
        "-o",
        "--override",
        action="append",
        default=[],
        nargs="+",
        metavar="KEY=VALUE",
        help="replace one value, e.g. -o Global.epochs=10 -o DataLoader.Train.sampler.batch_size=64; repeatable",
    )
    result.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return result


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def thread_count(text: str) -> int:
    """An argument that is a number of threads."""
    if positive(text) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_THREADS} threads, got '{text}'")
    return int(text)


def port(text: str) -> int:
    """An argument that is a port, or 0."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got '{text}'")
    return int(text)


def output_folder(text: str) -> Path:
    """An argument that names a folder to write into, which need not be there."""
    if problem := folder_problem(Path(text)):
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def output_file(text: str) -> Path:
    """An argument that names a file to write."""
    if problem := file_problem(Path(text)):
        raise argparse.ArgumentTypeError(problem)
    return Path(text)


def answers_file(text: str) -> Path:
    """An argument that names a file for answers."""
    if Path(text).suffix not in (".csv", ".jsonl"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .csv or .jsonl, got '{text}'")
    return output_file(text)


def add_save(tool: argparse.ArgumentParser) -> None:
    """`--save FILE`, of the tools that print answers."""
    text = "write the answers to this .csv or .jsonl file as well"
    tool.add_argument("--save", metavar="FILE", type=answers_file, help=text)


def add_model(tool: argparse.ArgumentParser) -> None:
    """The exported model, and how it is served, of the scripts in `deploy`."""
    tool.add_argument("model", type=Path, help="the folder that tools/export_model.py wrote")
    tool.add_argument("--topk", type=positive, default=None, help="classes to name (default: as exported)")
    tool.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    tool.add_argument("--threads", type=thread_count, default=1, help="threads of the CPU's mathematics")
    about = "paddle: Paddle Inference (default); onnx: ONNX Runtime, without Paddle"
    tool.add_argument("--engine", choices=("paddle", "onnx"), default="paddle", help=about)
    tool.add_argument("--no-onednn", action="store_true", help="serve without oneDNN even where it answers alike")


def load_model(arguments: argparse.Namespace):
    """The model that `add_model`'s arguments name; what its user should know goes to stderr."""
    from ppcls_ext.serving.model import ServedModel

    onednn = None if arguments.no_onednn else "probed"
    served = ServedModel(arguments.model, arguments.device, arguments.threads, onednn, arguments.engine)
    end_by_sigterm()
    for note in served.notes:
        print(f"Warning: {note}", file=sys.stderr)
    return served


def load_config(arguments: argparse.Namespace, needs: Iterable[str]):
    """The configuration that the command line names, or, with --print-config, its text on stdout and the end."""
    import_paddle()
    from ppcls_ext import config

    overrides = [text for group in arguments.override for text in group]
    if arguments.print_config:
        print(config.to_yaml(config.load(arguments.config, overrides)), end="")
        raise SystemExit(0)
    return config.load(arguments.config, overrides, needs)


def import_paddle() -> None:
    """Import Paddle with all cores: it takes one thread unless OMP_NUM_THREADS says otherwise before the import."""
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    processor.prepare_mkl()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        import paddle  # noqa: F401
    end_by_sigterm()
    for line in said.getvalue().splitlines():
        # It warns of what was just asked for; several processes get one thread each from the launcher.
        if "OMP_NUM_THREADS" not in line:
            print(line, file=sys.stderr)


class _Terminated(BaseException):
    """SIGTERM, as `KeyboardInterrupt` is Ctrl-C: what is half done can still be written down."""


def end_by_sigterm() -> None:
    """Let SIGTERM end the tool as `run` says; called again after Paddle's import, which sets a handler of its own."""

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it up to three times and means it once
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Call `main` and leave with its status; what a user can cause is shown as a message without a traceback.

    Of several processes each tells its failure to the first, whose output the terminal shows.
    """
    # Paddle says it at every batch norm
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called: >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    message, told = "", False
    end_by_sigterm()
    try:
        try:
            status = main() or 0
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself now
    except Refused as error:
        message, status = f"Refused: {error}", EXIT_REFUSED
    except RunFailed as error:
        message, status = f"Stopped: {error}", EXIT_FAILED
        told = isinstance(error, FirstFailed)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "ppcls_ext":
            raise
        cure = "`pip install -r requirements.txt` brings what the suite needs"
        message, status = f"Refused: {sys.executable} has no {error.name}; {cure}", EXIT_REFUSED
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; the interpreter would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        message, status = f"Stopped: {error}", EXIT_FAILED  # a full disk, a folder that cannot be written
    except KeyboardInterrupt:
        message, status = "Stopped by Ctrl-C.", 130
    except _Terminated:
        message, status = "Stopped by SIGTERM.", 143
    except Exception as error:  # noqa: BLE001 - a defect: shown whole, status 1
        message, status = traceback.format_exc(), 1
        if lost := failures.lost_another(error):
            message, status = lost, EXIT_FAILED
    if message:
        print(message, file=sys.stderr, flush=True)
        if status in (130, 143):
            failures.stopped()
        else:
            failures.report(None if told else message)
    sys.stdout.flush()
    sys.exit(status)
