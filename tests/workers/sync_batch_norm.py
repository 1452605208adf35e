"""One rank of `test_layers.py`: a step on this rank's share of a batch. Argument: the folder for the results."""

import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from ppcls_ext import distributed
from ppcls_ext.layers import convert_sync_batchnorm


def network() -> nn.Layer:
    """Batch norms over maps and over vectors."""
    return nn.Sequential(
        nn.Conv2D(3, 8, 3, stride=2),
        nn.BatchNorm2D(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 7 * 7, 5),
        nn.BatchNorm1D(5),
    )


def one_step(model: nn.Layer, images: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Loss, gradients and running statistics of one step; outputs of eval() after it."""
    model.train()
    loss = ((model(paddle.to_tensor(images)) - paddle.to_tensor(targets)) ** 2).mean()
    loss.backward()
    results = {f"gradient {name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    results |= {f"state {name}": tensor.numpy() for name, tensor in model.state_dict().items()}
    model.eval()
    results["evaluated"] = model(paddle.to_tensor(images[:1])).numpy()
    return results


def batch() -> tuple[np.ndarray, np.ndarray]:
    """8 images whose first half differs from the second in mean and range; targets."""
    draw = np.random.default_rng(3)
    images = draw.normal(size=(8, 3, 16, 16)).astype(np.float32)
    images[4:] = images[4:] * 3 + 20
    return images, draw.normal(size=(8, 5)).astype(np.float32)


def main() -> None:
    distributed.start()
    paddle.seed(1)
    model = paddle.DataParallel(convert_sync_batchnorm(network()))
    images, targets = batch()
    share = slice(4 * distributed.rank(), 4 * distributed.rank() + 4)
    results = one_step(model, images[share], targets[share])
    np.savez(Path(sys.argv[1]) / f"rank{distributed.rank()}.npz", **results)


if __name__ == "__main__":
    main()
