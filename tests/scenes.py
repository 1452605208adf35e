"""Bad inputs: each function here sets one up and gives the command that meets it (see test_bad_input.py)."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import TRAIN_OPS, small_config
from torch_writer import Call, Name, Storages, zip_file

from ppcls_ext import create_model
from ppcls_ext.checkpoint import save_tensors
from ppcls_ext.weights import graph_of, state_arrays

DESCRIPTION = """
Global: {image_shape: [3, 32, 32]}
PreProcess: {transform_ops: []}
PostProcess: {Topk: {topk: 1, label_list: null}}
Digests: {inference.pdiparams: '0', inference.json: '0'}
"""


@dataclass
class Scene:
    """Where a row plays: `root` holds pictures, lists and config.yaml; `trained` a finished run."""

    root: Path
    trained: Path

    def config(self, **changes: object) -> Path:
        path = self.root / "config.yaml"
        path.write_text(json.dumps(small_config(self.root, self.root / "output", **changes)), encoding="utf-8")
        return path

    def lists(self, text: str, **dataset: object) -> Path:
        """A configuration whose training split is a label list with this text."""
        (self.root / "train.txt").write_text(text)
        path = self.config(Arch={"name": "MicroNet_M0", "class_num": 3})
        config = json.loads(path.read_text())
        config["DataLoader"]["Train"]["dataset"] = {
            "name": "ImageNetDataset",
            "image_root": str(self.root / "train"),
            "cls_label_path": str(self.root / "train.txt"),
            "transform_ops": TRAIN_OPS,
            **dataset,
        }
        config["Global"]["eval_during_train"] = False
        path.write_text(json.dumps(config))
        return path

    def good_lines(self) -> str:
        return "".join(f"class_{label}/{n}.png {label}\n" for label in range(3) for n in range(4))


def train(path: Path, *overrides: str) -> list[object]:
    return ["tools/train.py", "-c", path, *(["-o", *overrides] if overrides else [])]


def evaluate(scene: Scene, *overrides: str) -> list[object]:
    return ["tools/eval.py", "-c", scene.config(), *(["-o", *overrides] if overrides else [])]


def predict(scene: Scene) -> list[object]:
    return ["tools/infer.py", "-c", scene.config(), "-o", f"Global.pretrained_model={scene.trained}/best_model"]


def broken_yaml(scene: Scene) -> list[object]:
    path = scene.root / "config.yaml"
    path.write_text("Global:\n  epochs: [1\nArch: x\n")
    return train(path)


def unreadable(scene: Scene, **dataset: object) -> list[object]:
    (scene.root / "train/class_0/2.png").write_bytes(b"no image")
    (scene.root / "train/class_1/1.png").write_bytes(b"")
    return train(scene.lists(scene.good_lines(), **dataset))


def stuck_worker(scene: Scene) -> list[object]:
    fifo = scene.root / "train/class_0/2.png"  # a file that never answers
    fifo.unlink()
    os.mkfifo(fifo)
    path = scene.lists(scene.good_lines(), check_files="none")
    return train(path, "DataLoader.Train.loader={num_workers: 1, timeout: 1}", "DataLoader.Train.sampler.shuffle=False")


def killed_worker(scene: Scene) -> list[object]:
    def kill_children() -> None:
        deadline = time.monotonic() + 30
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while time.monotonic() < deadline:
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
                return
            time.sleep(0.02)

    threading.Thread(target=kill_children, daemon=True).start()
    return train(scene.config(), "DataLoader.Train.loader.num_workers=1", "Global.epochs=200")


def strange_folder(scene: Scene) -> list[object]:
    (scene.root / "val/class_2").rename(scene.root / "val/clas_2")
    return train(scene.config())


def copied_run(scene: Scene) -> Path:
    """The files of `latest`, to be damaged."""
    folder = scene.root / "output/MicroNet_M0"
    folder.mkdir(parents=True)
    for suffix in (".pdparams", ".pdopt", ".pdstates"):
        for name in ("latest", "epoch_1"):
            (folder / (name + suffix)).write_bytes((scene.trained / (name + suffix)).read_bytes())
    return folder / "latest"


def half_written(scene: Scene) -> list[object]:
    latest = copied_run(scene)
    path = latest.with_name("latest.pdparams")
    path.write_bytes(path.read_bytes()[:100_000])
    return train(scene.config(), f"Global.checkpoints={latest}")


def flipped(scene: Scene) -> list[object]:
    latest = copied_run(scene)
    path = latest.with_name("latest.pdopt")
    data = bytearray(path.read_bytes())
    data[70_000] ^= 1
    path.write_bytes(data)
    return train(scene.config(), f"Global.checkpoints={latest}")


def malicious(scene: Scene) -> list[object]:
    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {scene.root}/hacked",)

    (scene.root / "bad.pdparams").write_bytes(pickle.dumps({"weight": Attack()}))
    return evaluate(scene, f"Global.pretrained_model={scene.root}/bad.pdparams", "Arch.class_num=3")


def with_a_namespace(scene: Scene) -> list[object]:
    content = {"state_dict": {}, "args": Call(Name("argparse", "Namespace"))}
    (scene.root / "bad.pth").write_bytes(zip_file(content, Storages()))
    return evaluate(scene, f"Global.pretrained_model={scene.root}/bad.pth", "Arch.class_num=3")


def with_the_other_padding(scene: Scene) -> list[object]:
    sizes = {"widths": [4, 4, 4], "depths": [1], "kernels": [3], "strides": [1], "expansions": [1]}
    network = create_model("EfficientNet", num_classes=3, padding="symmetric", **sizes)
    save_tensors(scene.root / "x.pdparams", state_arrays(network), {"graph": graph_of(network)})
    arch = [f"Arch.{name}={value}" for name, value in sizes.items()]
    return evaluate(
        scene, f"Global.pretrained_model={scene.root}/x", "Arch.name=EfficientNet", "Arch.class_num=3", *arch
    )


def one_bad_image(scene: Scene) -> list[object]:
    (scene.root / "val/class_1/0.png").write_bytes(b"no image")
    weights = f"Global.pretrained_model={scene.trained}/best_model"
    return ["tools/infer.py", "-c", scene.config(), "-o", weights]


def damaged_export(scene: Scene) -> list[object]:
    (scene.root / "model").mkdir()
    (scene.root / "model/inference.yml").write_text(DESCRIPTION)
    (scene.root / "model/inference.pdiparams").write_bytes(b"cut")
    return ["deploy/predict.py", scene.root / "model", scene.root / "val"]


def edited_export(scene: Scene) -> list[object]:
    (scene.root / "model").mkdir()
    (scene.root / "model/inference.yml").write_text(DESCRIPTION.replace("topk: 1", "topk: 0"))
    return ["deploy/predict.py", scene.root / "model", scene.root / "val"]
