"""Training: what a run does, what it leaves behind, and what stops it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import small_config

from ppcls_ext import config, engine
from ppcls_ext.checkpoint import load_set
from ppcls_ext.errors import Refused, RunFailed
from ppcls_ext.log import read_metrics
from ppcls_ext.losses import CELoss
from ppcls_ext.metrics import TopkAcc
from ppcls_ext.optim import WeightAverage, build_optimizer, clip_by_global_norm
from ppcls_ext.optim.groups import decays
from ppcls_ext.registry import OPTIMIZERS, SCHEDULES
from ppcls_ext.weights import read_metadata, state_arrays

Write = Callable[..., Path]


def train(path: Path, *overrides: str) -> Path:
    """Train as a tool would; returns the folder of the run."""
    loaded = config.load(path, overrides, ["Train"])
    engine.train(loaded)
    return loaded.output_folder()


def weights(folder: Path, name: str = "latest") -> dict[str, np.ndarray]:
    return load_set(folder / name).tensors[".pdparams"]


def assert_same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name


# ------------------------------------------------------------------------------------------------ a whole run


def test_a_run_leaves_what_the_readme_promises(write_config: Write) -> None:
    folder = train(write_config(), "EMA.decay=0.9", "Global.use_visualdl=True")
    names = {path.name for path in folder.iterdir()}
    for stem in ("best_model", "latest", "epoch_1", "epoch_2"):
        assert {f"{stem}.pdparams", f"{stem}.pdopt", f"{stem}.pdstates"} <= names
    assert {"latest.ema.pdparams", "best_model_ema.pdparams", "config.yaml", "class_map.txt"} <= names
    assert {"run.json", "train.log", "metrics.jsonl", "curves.png", "vdl"} <= names
    assert not [name for name in names if name.endswith(".new")]
    assert (folder / "class_map.txt").read_text() == "0 class_0\n1 class_1\n2 class_2\n"
    run = json.loads((folder / "run.json").read_text())
    assert run["versions"]["paddle"] == paddle.__version__ and run["seed"] == 1
    config.load(folder / "config.yaml")
    log = (folder / "train.log").read_text()
    assert "ppcls INFO: [Train][Epoch 1/2][Iter: 2/5]lr(Cosine): 0.0" in log
    for part in ("top1: ", "top5: ", "CELoss: ", "loss: ", "batch_cost: ", "reader_cost: ", " samples/s, eta: 0:00:"):
        assert part in log
    assert "[Eval][Epoch 1][Avg]top1: " in log and "[Eval][EMA][Epoch 2][best metric: " in log
    kinds = [record["kind"] for record in read_metrics(folder)]
    assert kinds.count("eval") == kinds.count("eval_ema") == kinds.count("train_epoch") == 2
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_a_fixed_seed_is_a_fixed_run_and_another_seed_another(write_config: Write, tmp_path: Path) -> None:
    path = write_config()
    first = weights(train(path, f"Global.output_dir={tmp_path}/a"))
    assert_same_bits(first, weights(train(path, f"Global.output_dir={tmp_path}/b")))
    assert_same_bits(
        first, weights(train(path, f"Global.output_dir={tmp_path}/c", "DataLoader.Train.loader.num_workers=2"))
    )
    other = weights(train(path, f"Global.output_dir={tmp_path}/d", "Global.seed=2"))
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)


def test_no_seed_is_a_fresh_seed_that_is_printed(write_config: Write, tmp_path: Path) -> None:
    path = write_config()
    seeds = set()
    for name in "ab":
        folder = train(path, f"Global.output_dir={tmp_path}/{name}", "Global.seed=", "Global.epochs=1")
        seed = load_set(folder / "latest").states["seed"]
        assert f"seed: {seed} (fresh: Global.seed is not set)" in (folder / "train.log").read_text()
        seeds.add(seed)
    assert len(seeds) == 2


@pytest.mark.parametrize("stop_at", [2, 5, 8], ids=["inside epoch 1", "between the epochs", "inside epoch 2"])
def test_a_run_cut_short_and_resumed_ends_as_if_it_had_not_been(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    options = ["EMA.decay=0.9", "Global.save_steps=1", "Optimizer.clip_norm=1.0", "Global.update_freq=1"]
    path = write_config()
    whole = train(path, *options, f"Global.output_dir={tmp_path}/whole")

    class Cut(Exception):
        pass

    real = engine.save

    def save_then_die(run: engine.Run, name: str) -> None:
        real(run, name)
        if name == "latest" and run.position.global_step == stop_at:
            raise Cut

    monkeypatch.setattr(engine, "save", save_then_die)
    with pytest.raises(Cut):
        train(path, *options, f"Global.output_dir={tmp_path}/cut")
    monkeypatch.setattr(engine, "save", real)
    cut = tmp_path / "cut" / "MicroNet_M0"
    assert load_set(cut / "latest").states["global_step"] == stop_at
    paddle.seed(12345)  # whatever the state of Paddle's generator is
    paddle.nn.Linear(3, 3)  # whatever else the process has built
    train(path, *options, f"Global.output_dir={tmp_path}/cut", f"Global.checkpoints={cut}/latest", "Global.seed=")
    for name in ("latest", "best_model", "epoch_2"):
        a, b = load_set(whole / name), load_set(cut / name)
        for states in (a.states, b.states):
            assert "output_dir" in states.pop("config")  # which differs
        assert a.states == b.states
        for member in a.tensors:
            assert_same_bits(a.tensors[member], b.tensors[member])
    strip = [[{k: v for k, v in r.items()} for r in read_metrics(f)] for f in (whole, cut)]
    assert strip[0] == strip[1]


def test_accumulated_batches_train_like_one_large_batch(write_config: Write, tmp_path: Path) -> None:
    # MicroNet's batch norms see each part by itself; what can be equal is a network without them
    from ppcls_ext.registry import BACKBONES

    if "tests_plain" not in BACKBONES:
        BACKBONES.register("tests_plain")(plain_network)
    path = write_config(Arch={"name": "tests_plain"})
    ops = ["Metric.Train.0.TopkAcc.topk=[1]", "Global.epochs=2"]
    large = train(path, *ops, f"Global.output_dir={tmp_path}/a", "DataLoader.Train.sampler.batch_size=16")
    parts = train(
        path, *ops, f"Global.output_dir={tmp_path}/b", "DataLoader.Train.sampler.batch_size=8", "Global.update_freq=2"
    )
    a, b = weights(large), weights(parts)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-6)
    assert load_set(parts / "latest").states["global_step"] == 2 * math.ceil(36 / 16)


def plain_network(num_classes: int = 1000, in_channels: int = 3) -> paddle.nn.Layer:
    """A network without batch norm: its batches do not influence each other."""
    network = paddle.nn.Sequential(
        paddle.nn.Conv2D(in_channels, 8, 3, stride=4),
        paddle.nn.ReLU(),
        paddle.nn.AdaptiveAvgPool2D(1),
        paddle.nn.Flatten(),
        paddle.nn.Linear(8, num_classes),
    )
    network.num_classes = num_classes
    return network


# ------------------------------------------------------------------------------------------------ what stops a run


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.epochs=1")
    good = weights(folder)
    with pytest.raises(RunFailed) as failed:
        train(path, f"Global.checkpoints={folder}/latest", "Optimizer.lr={name: Constant, learning_rate: 1e30}")
    message = str(failed.value)
    assert "the loss is nan in epoch 2" in message or "the loss is inf in epoch 2" in message
    assert "class_" in message and ".png" in message  # what the last batches were
    assert f"-o Global.checkpoints={folder / 'latest'}" in message
    assert_same_bits(good, weights(folder))


def test_training_stops_early_when_nothing_is_gained(write_config: Write) -> None:
    folder = train(
        write_config(),
        "Global.early_stopping=2",
        "Global.epochs=9",
        "Optimizer.lr={name: Constant, learning_rate: 0.0}",
    )
    assert "early stopping: no gain in 2 evaluations" in (folder / "train.log").read_text()
    assert load_set(folder / "latest").states["epoch"] < 9


def test_a_resume_with_other_data_inside_an_epoch_is_refused(write_config: Write, tmp_path: Path, monkeypatch) -> None:
    path = write_config()
    real = engine.save

    class Cut(Exception):
        pass

    def die(run: engine.Run, name: str) -> None:
        real(run, name)
        raise Cut

    monkeypatch.setattr(engine, "save", die)
    with pytest.raises(Cut):
        train(path, "Global.save_steps=2")
    monkeypatch.setattr(engine, "save", real)
    latest = tmp_path / "output/MicroNet_M0/latest"
    with pytest.raises(Refused, match="batch_size was 8, is 6"):
        train(path, f"Global.checkpoints={latest}", "DataLoader.Train.sampler.batch_size=6")
    with pytest.raises(Refused, match="Global.seed is 7, but the run in .* began with 1"):
        train(path, f"Global.checkpoints={latest}", "Global.seed=7")
    with pytest.raises(Refused, match="latest is a MicroNet_M0; the configuration's Arch is MicroNet_M1"):
        train(path, f"Global.checkpoints={latest}", "Arch.name=MicroNet_M1")


def test_a_last_batch_of_one_image_is_refused_where_the_network_cannot_train_on_it(write_config: Write) -> None:
    with pytest.raises(Refused, match="a batch of an epoch would hold one image"):
        train(write_config(), "DataLoader.Train.sampler.batch_size=7")


def test_amp_on_a_cpu_is_said_not_to_run(write_config: Write) -> None:
    folder = train(write_config(), "AMP.use_amp=True", "AMP.level=O2", "Global.epochs=1", "Global.device=gpu")
    log = (folder / "train.log").read_text()
    assert log.count("AMP.use_amp is on, but Paddle has no half-precision kernels on a CPU: training in float32") == 1
    assert "Global.device is gpu, but this machine or this build of PaddlePaddle has none: running on the CPU" in log


def test_image_sizes_and_a_warm_up_beyond_the_end_of_the_run_are_said(write_config: Write) -> None:
    sizes = "DataLoader.Train.dataset.image_sizes={1: 16, 2: 32, 9: 48}"
    folder = train(write_config(), "Global.epochs=1", sizes, "Optimizer.lr.warmup_epoch=3")
    log = (folder / "train.log").read_text()
    assert "image_sizes: the sizes from epoch 2, 9 on are not reached in 1 epochs" in log
    assert "the warm-up (3 epochs) is longer than the run (1)" in log


def test_pretrained_weights_with_other_classes_keep_a_fresh_head_and_say_so(
    write_config: Write, tmp_path: Path
) -> None:
    folder = train(write_config(), "Global.epochs=1")
    from conftest import write_pictures

    write_pictures(tmp_path / "five/train", classes=5, images=4)
    write_pictures(tmp_path / "five/val", classes=5, images=2)
    five = tmp_path / "five.yaml"
    five.write_text(json.dumps(small_config(tmp_path / "five", tmp_path / "output5")))
    out = train(five, f"Global.pretrained_model={folder}/best_model", "Global.epochs=1")
    assert "classifier replaced (" in (out / "train.log").read_text()


# ------------------------------------------------------------------------------------------------ the parts


def test_schedules_are_the_formulas_of_their_papers() -> None:
    cosine = SCHEDULES["Cosine"](0.2, warmup_epoch=5)
    assert cosine(0, 10, 100) == 0.0
    assert cosine(25, 10, 100) == pytest.approx(0.1)
    assert cosine(50, 10, 100) == pytest.approx(0.2)
    assert cosine(50 + 475, 10, 100) == pytest.approx(0.1)
    assert cosine(999, 10, 100) == pytest.approx(0.1 * (1 + math.cos(math.pi * 949 / 950)))
    steps = SCHEDULES["MultiStepDecay"](1.0, milestones=[2, 4], gamma=0.5)
    assert [steps(step, 1, 6) for step in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]
    linear = SCHEDULES["Linear"](1.0, end_lr=0.5)
    assert [linear(step, 2, 2) for step in range(4)] == [1.0, 0.875, 0.75, 0.625]
    assert SCHEDULES["Linear"](1.0, by_epoch=True)(3, 2, 4) == 0.75
    assert SCHEDULES["Constant"](0.3, warmup_epoch=1, warmup_start_lr=0.1)(1, 2, 9) == pytest.approx(0.2)
    piecewise = SCHEDULES["Piecewise"](decay_epochs=[1, 3], values=[1, 0.1, 0.01])
    assert [piecewise(step, 1, 5) for step in range(5)] == [1, 0.1, 0.1, 0.01, 0.01]


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 5)).astype(np.float32)
    labels = rng.integers(0, 5, 6)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.full((6, 5), 0.1 / 5) + 0.9 * np.eye(5)[labels]
    tensors = paddle.to_tensor(logits), paddle.to_tensor(labels)
    assert float(CELoss(epsilon=0.1)(*tensors)) == pytest.approx(-(target * log_p).sum(1).mean(), abs=1e-6)
    assert float(CELoss(weight=3.0)(*tensors)) == pytest.approx(-3 * log_p[np.arange(6), labels].mean(), abs=1e-6)
    soft = paddle.to_tensor(target.astype(np.float32))
    assert float(CELoss()(tensors[0], soft)) == pytest.approx(-(target * log_p).sum(1).mean(), abs=1e-6)


def test_topk_counts_correct_answers_and_never_asks_for_more_classes_than_there_are() -> None:
    logits = paddle.to_tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9]])
    labels = paddle.to_tensor([1, 2, 0])
    metric = TopkAcc(topk=[1, 2, 5])
    assert metric.names() == ["top1", "top2", "top5"]
    assert [int(count) for count in metric(logits, labels)] == [1, 2, 3]


def test_the_norm_of_clipping_is_global_over_all_decay_groups() -> None:
    layers = [paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 4)]
    parameters = [p for layer in layers for p in layer.parameters()]
    sum((p * i).sum() for i, p in enumerate(parameters, 1)).backward()
    before = np.concatenate([p.grad.numpy().ravel() for p in parameters])
    norm = clip_by_global_norm(parameters, 0.5)
    after = np.concatenate([p.grad.numpy().ravel() for p in parameters])
    assert float(norm) == pytest.approx(np.linalg.norm(before), rel=1e-5)
    np.testing.assert_allclose(after, before * 0.5 / np.linalg.norm(before), rtol=1e-4)


def optimizer_options(name: str, **more: object) -> config.OptimizerOptions:
    lr = config.Component(name="Constant", arguments={"learning_rate": 0.1})
    return config.OptimizerOptions(name=name, lr=lr, **more)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_decay_spares_what_the_configuration_names(name: str) -> None:
    def step(decay: float) -> tuple[np.ndarray, np.ndarray]:
        paddle.seed(0)
        layer = paddle.nn.Linear(3, 2)
        layer.bias.set_value(np.ones(2, np.float32))
        options = optimizer_options(name, arguments={"weight_decay": decay}, one_dim_param_no_weight_decay=True)
        optimizer = build_optimizer(options, layer)
        optimizer.set_lr(0.1)
        (layer.weight.sum() * 0.3 + layer.bias.sum() * 0.2).backward()
        optimizer.step()
        return layer.weight.numpy(), layer.bias.numpy()

    plain, decayed = step(0.0), step(0.5)
    assert not np.allclose(plain[0], decayed[0])
    np.testing.assert_array_equal(plain[1], decayed[1])


def test_no_decay_for_a_name_that_no_parameter_has_is_refused() -> None:
    layer = paddle.nn.Linear(3, 2)
    with pytest.raises(Refused, match="'wieght' is in no parameter's name. Did you mean 'weight'?"):
        decays(optimizer_options("SGD", no_weight_decay_name="wieght"), layer)
    regular = config.Component(name="L2", arguments={"coeff": 0.25})
    found = decays(optimizer_options("SGD", no_weight_decay_name="bias", regularizer=regular), layer)
    assert found == {"weight": 0.25, "bias": 0.0}


def test_averaged_weights_follow_the_formula_and_give_the_own_ones_back() -> None:
    layer = paddle.nn.Linear(2, 2)
    average = WeightAverage(layer, decay=0.9, warmup=True)
    shadow = layer.weight.numpy().copy()
    for step in range(40):
        layer.weight.set_value(np.full((2, 2), float(step), np.float32))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        shadow = decay * shadow + (1 - decay) * step
    np.testing.assert_allclose(average.state()["weight"], shadow, rtol=1e-5)
    with average.applied():
        np.testing.assert_allclose(layer.weight.numpy(), shadow, rtol=1e-5)
    np.testing.assert_array_equal(layer.weight.numpy(), np.full((2, 2), 39.0))


def test_skipped_images_are_counted_and_listed_at_the_end(write_config: Write, tmp_path: Path) -> None:
    from conftest import write_pictures

    write_pictures(tmp_path / "broken/train")
    write_pictures(tmp_path / "broken/val", images=4)
    (tmp_path / "broken/train/class_1/3.png").write_bytes(b"not an image")
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps(small_config(tmp_path / "broken", tmp_path / "output")))
    with pytest.raises(RunFailed, match="class_1/3.png"):
        train(path)
    folder = train(path, "DataLoader.Train.dataset.unreadable=skip", "Global.epochs=1")
    log = (folder / "train.log").read_text()
    assert "Train: 1 images could not be read and were left out" in log and "class_1/3.png" in log


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_network_in_half_precision_is_averaged_and_saved_in_float32(dtype: str) -> None:
    layer = paddle.nn.Linear(2, 2)
    layer.to(dtype=dtype)
    average = WeightAverage(layer, decay=0.9, warmup=False)
    start = average.state()["weight"]
    layer.weight.set_value(paddle.full([2, 2], 2.0).astype(dtype))
    average.update(0)
    np.testing.assert_allclose(average.state()["weight"], 0.9 * start + 0.2, rtol=1e-6)
    with average.applied():
        assert str(layer.weight.dtype).endswith(dtype)
    arrays = state_arrays(layer)
    assert arrays["weight"].dtype == np.float32 and (arrays["weight"] == 2.0).all()


# ------------------------------------------------------------------------------------------------ what went wrong once


def test_best_weights_and_best_averaged_weights_are_files_of_their_own(write_config: Write) -> None:
    folder = train(write_config(), "EMA.decay=0.9", "Global.epochs=6", "Optimizer.lr.learning_rate=0.3")
    for name in ("best_model", "best_model_ema", "latest", "previous", "epoch_6"):
        found = load_set(folder / name)
        assert read_metadata(folder / name)["sha256"]
        assert (".pdopt" in found.tensors) == (name != "best_model_ema")
    states = load_set(folder / "best_model_ema").states
    assert states["best_ema"]["epoch"] == states["epoch"]


def test_a_run_with_accumulation_is_taken_up_from_the_last_step_of_an_epoch(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.update_freq=2", "Global.epochs=1")
    assert load_set(folder / "best_model").states["step"] == 3  # of five batches
    train(path, "Global.update_freq=2", f"Global.checkpoints={folder}/best_model")
    assert load_set(folder / "latest").states["epoch"] == 3


def test_early_stopping_is_remembered_by_a_run_that_is_taken_up(write_config: Write, tmp_path: Path) -> None:
    options = ["Global.early_stopping=1", "Global.epochs=6", "Optimizer.lr={name: Constant, learning_rate: 0.0}"]
    path = write_config()
    folder = train(path, *options)
    ended = load_set(folder / "latest").states["epoch"]
    assert ended < 6
    for name in ("latest", "best_model"):
        train(path, *options, f"Global.checkpoints={folder}/{name}", f"Global.output_dir={tmp_path}/{name}")
        log = (tmp_path / name / "MicroNet_M0/train.log").read_text()
        assert "early stopping: no gain in 1 evaluations" in log
    assert not (tmp_path / "latest/MicroNet_M0/latest.pdstates").exists()
    assert load_set(tmp_path / "best_model/MicroNet_M0/latest").states["epoch"] == ended


def test_weights_that_an_update_broke_are_not_saved(write_config: Write) -> None:
    path = write_config()
    rates = "Optimizer.lr={name: Piecewise, decay_epochs: [0.35], values: [0.01, 1e39]}"
    with pytest.raises(RunFailed, match="not finite after step|the loss is"):
        train(path, "Global.save_steps=1", "Global.print_batch_step=1", rates)
    saved = weights(Path(config.load(path).output_folder()))
    assert all(np.isfinite(array).all() for array in saved.values())


def test_a_refused_run_leaves_the_records_of_the_earlier_one(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.epochs=1")
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(Refused):
        train(path, "Arch.class_num=5")
    assert (folder / "metrics.jsonl").read_bytes() == before
    train(path, "Global.epochs=1")  # a fresh run begins its records anew
    assert [record["step"] for record in read_metrics(folder)] == [
        record["step"] for record in map(json.loads, before.splitlines())
    ]


def test_other_batches_between_epochs_keep_the_learning_rate_in_its_epoch(write_config: Write) -> None:
    path = write_config()
    folder = train(path, "Global.epochs=1")
    train(path, f"Global.checkpoints={folder}/latest", "DataLoader.Train.sampler.batch_size=4")
    assert (
        "taken up with changes: steps_per_epoch was 5, is 9; batch_size was 8, is 4"
        in (folder / "train.log").read_text()
    )
    assert load_set(folder / "latest").states["global_step"] == 2 * 9


def test_a_run_beyond_its_end_says_that_nothing_is_to_do(write_config: Write) -> None:
    path = write_config()
    folder = train(path)
    train(path, f"Global.checkpoints={folder}/latest")
    assert "nothing to do: 2 epochs are done, Global.epochs is 2" in (folder / "train.log").read_text()


def test_an_evaluation_split_never_numbers_its_folders_itself(
    write_config: Write, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.txt").write_text("".join(f"class_{2 - n}/{i}.png {n}\n" for n in range(3) for i in range(8)))
    path = write_config(Arch={"name": "MicroNet_M0", "class_num": 3})
    options = ["name=ImageNetDataset", f"cls_label_path={tmp_path}/train.txt"]
    with pytest.raises(Refused, match="DataLoader.Eval.dataset.class_map: missing"):
        train(path, *(f"DataLoader.Train.dataset.{option}" for option in options))
