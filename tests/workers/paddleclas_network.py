"""A network of PaddleClas in a process of its own (its parameters have fixed names: one network a process).

    python paddleclas_network.py NAME FOLDER

writes FOLDER/theirs.pdparams, images.npy and logits.npy.
"""

import sys
from pathlib import Path

import numpy as np
import paddle

from ppcls_ext.paddleclas import architectures

name, folder = sys.argv[1], Path(sys.argv[2])
paddle.seed(0)
network = architectures()[0].build_model({"Arch": {"name": name, "class_num": 10}, "Global": {"device": "cpu"}})
draw = np.random.default_rng(0)
for tensor_name, tensor in network.state_dict().items():
    if tensor_name.endswith("_variance"):
        tensor.set_value(draw.uniform(0.5, 1.5, tensor.shape).astype(np.float32))
    elif tensor.ndim == 1:  # norms and biases do not start as ones and zeros
        tensor.set_value(tensor.numpy() + draw.uniform(-0.1, 0.1, tensor.shape).astype(np.float32))
network.eval()
paddle.save(network.state_dict(), str(folder / "theirs.pdparams"))
images = draw.normal(size=(2, 3, 224, 224)).astype(np.float32)
with paddle.no_grad():
    logits = network(paddle.to_tensor(images))
np.save(folder / "images.npy", images)
np.save(folder / "logits.npy", logits.numpy())
