"""The mean of several checkpoints of one network (stochastic weight averaging, arXiv 1803.05407).

Batch-norm statistics are not averaged: those of the mean network are other ones, and are measured anew on the training
images, of the size that the last epoch has; of one checkpoint alone, too: one of a schedule-free run has the statistics
of another point. Frozen ones stay what they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import paddle
from paddle.utils import unique_name

from ppcls_ext.checkpoint import STATES, member, save_tensors
from ppcls_ext.config import Config
from ppcls_ext.device import choose_device, device_lines
from ppcls_ext.errors import Refused
from ppcls_ext.layers import BATCH_NORMS, momenta_restored
from ppcls_ext.log import RunLog
from ppcls_ext.training.freezing import Freezing
from ppcls_ext.training.run import build_network, build_train_loader
from ppcls_ext.weights import fit_weights, read_metadata, state_arrays


def average(config: Config, paths: list[str], last: int, out: Path, batches: int | None) -> Path:
    """Write the mean of `paths`, or of the newest `last` `epoch_N` of the run, as `<out>.pdparams`; the file.

    Batch-norm statistics come from `batches` batches of the training split, or from all of it.
    """
    log = RunLog()
    for line in device_lines(config, choose_device(config.Global.device)):
        log.info(line)
    epoch = config.Global.epochs
    chosen = paths or newest(config.output_folder(), last)
    found = [read_metadata(path) for path in chosen]
    for path, metadata in zip(chosen, found):
        if metadata.get("arch", config.Arch.name) != config.Arch.name:
            raise Refused(f"{path} holds weights of {metadata['arch']}; the configuration's Arch is {config.Arch.name}")
        if metadata.get("class_names") != found[0].get("class_names"):
            raise Refused(f"{path} has other classes than {chosen[0]}")
    loader = build_train_loader(config, found[0].get("class_names"), seed=config.Global.seed or 0)
    try:
        loader.start()
        with unique_name.guard():
            network = build_network(config, loader.dataset.num_classes)
        network.set_state_dict({name: paddle.to_tensor(array) for name, array in mean_of(network, chosen).items()})
        network.train()
        Freezing(network, config.Freeze).apply(epoch)
        count = len(loader.batches(epoch))
        with log.progress("batch-norm statistics", min(batches or count, count)):
            parts = (paddle.to_tensor(part.images) for part in islice(loader.epoch(epoch), batches))
            counted = measure_batch_norms(network, told(parts, log))
    finally:
        loader.close()
    log.info(f"mean of {', '.join(chosen)}; batch-norm statistics of {counted} training images")
    metadata = {key: value for key, value in found[0].items() if key != "sha256"}
    path = member(out, ".pdparams")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, state_arrays(network), {**metadata, "mean_of": chosen})
    log.info(f"written: {path}")
    return path


def newest(folder: Path, count: int) -> list[str]:
    """The prefixes of the `count` newest `epoch_N` of a run, the oldest first."""
    numbers = [
        int(found[1]) for path in folder.glob(f"epoch_*{STATES}") if (found := re.match(r"epoch_(\d+)", path.name))
    ]
    if len(numbers) < count:
        raise Refused(
            f"{folder} holds {len(numbers)} checkpoints of whole epochs, --last asks for {count}; "
            "a run keeps one every Global.save_interval epochs"
        )
    return [str(folder / f"epoch_{number}") for number in sorted(numbers)[-count:]]


def mean_of(network: paddle.nn.Layer, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """The mean of every tensor over the files, each of which has to fit the network entirely; summed in float64."""
    sums: dict[str, np.ndarray] = {}
    count = 0
    for path in paths:
        fit_weights(network, path, strict=True)
        count += 1
        for name, array in state_arrays(network).items():
            sums[name] = sums.get(name, 0.0) + array.astype(np.float64)
    types = {name: array.dtype for name, array in state_arrays(network).items()}
    return {name: (total / count).astype(types[name]) for name, total in sums.items()}


@paddle.no_grad()
def measure_batch_norms(network: paddle.nn.Layer, batches: Iterable[paddle.Tensor]) -> int:
    """Set every running mean and variance to the mean of the batches' own, weighted by their images; how many images.

    Those of batch norms in evaluation mode stay. Everything else is in evaluation mode meanwhile: no dropout.
    """
    norms = [layer for layer in network.sublayers() if isinstance(layer, BATCH_NORMS) and layer.training]
    network.eval()
    for norm in norms:
        norm.train()
    images = 0
    with momenta_restored(norms):
        for batch in batches if norms else ():
            images += len(batch)
            for norm in norms:  # running = momentum * running + (1 - momentum) * the batch's
                norm._momentum = 1 - len(batch) / images
            network(batch)
    network.eval()
    return images


def told(parts: Iterable[paddle.Tensor], log: RunLog) -> Iterator[paddle.Tensor]:
    """The same batches, with progress."""
    for part in parts:
        yield part
        log.advance()
