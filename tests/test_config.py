"""The configuration: what loads, what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import DECODE, NORMALIZE, run_tool

from ppcls_ext import config
from ppcls_ext.errors import Refused
from ppcls_ext.log import RunLog
from ppcls_ext.trained import tell_of_other_preparation

Write = Callable[..., Path]


def refusal(path: Path, *overrides: str, needs: tuple[str, ...] = ("Train",)) -> str:
    with pytest.raises(Refused) as refused:
        config.load(path, overrides, needs)
    return str(refused.value)


def test_numbers_mean_numbers(write_config: Write, tmp_path: Path) -> None:
    text = write_config().read_text().replace('"1.0/255.0"', "1.0/255.0").replace("0.05", "5e-2")
    path = tmp_path / "plain.yaml"
    path.write_text(text)
    loaded = config.load(path)
    assert loaded.Optimizer.lr.arguments["learning_rate"] == 0.05
    assert config.load(path, ["Optimizer.lr.learning_rate=1e-3"]).Optimizer.lr.arguments["learning_rate"] == 1e-3
    ops = loaded.DataLoader.Train.dataset.arguments["transform_ops"]
    assert ops[-1]["NormalizeImage"]["scale"] in ("1.0/255.0", 1 / 255)
    assert config.load(path, ["Optimizer.lr.learning_rate=1.0/256"]).Optimizer.lr.arguments["learning_rate"] == 1 / 256


@pytest.mark.parametrize("text, value", [("no", "no"), ("on", "on"), ("010", 10), ("1:30", "1:30"), ("1e-3", 0.001)])
def test_yaml_means_what_a_reader_expects(text: str, value: object) -> None:
    from ppcls_ext.config.reading import read_yaml

    assert read_yaml(text, "here") == value


def test_overrides_reach_into_lists_and_may_hold_equal_signs(write_config: Write) -> None:
    path = write_config()
    loaded = config.load(
        path,
        [
            "DataLoader.Train.dataset.transform_ops.1.RandCropImage.size=48",
            "Global.output_dir=runs/a=b",
            "EMA.decay=0.9",
        ],
    )
    assert loaded.DataLoader.Train.dataset.arguments["transform_ops"][1] == {"RandCropImage": {"size": 48}}
    assert loaded.Global.output_dir == "runs/a=b"
    assert loaded.EMA.decay == 0.9


def test_an_override_without_a_value_takes_the_key_out(write_config: Write) -> None:
    path = write_config()
    assert config.load(path, ["Global.seed="]).Global.seed is None
    ops = config.load(path, ["DataLoader.Train.dataset.transform_ops.2="]).DataLoader.Train.dataset.arguments[
        "transform_ops"
    ]
    assert [next(iter(op)) for op in ops] == ["DecodeImage", "RandCropImage", "NormalizeImage"]
    swapped = ["DataLoader.Eval.dataset.name=ImageNetDataset", "DataLoader.Eval.dataset.cls_label_path=val.txt"]
    assert config.load(path, swapped).DataLoader.Eval.dataset.name == "ImageNetDataset"
    back = [*swapped, "DataLoader.Eval.dataset.name=ClassFolderDataset", "DataLoader.Eval.dataset.cls_label_path="]
    assert config.load(path, back).DataLoader.Eval.dataset.name == "ClassFolderDataset"
    assert "there is no Global.sed to take out, and no value after '='" in refusal(path, "Global.sed=")


def test_an_override_is_never_evaluated(write_config: Write, tmp_path: Path) -> None:
    value = f"__import__('os').system('touch {tmp_path}/hacked')"
    assert config.load(write_config(), [f"Global.output_dir={value}"]).Global.output_dir == value
    assert "not valid YAML" in refusal(write_config(), "Global.output_dir=!!python/object/apply:os.system ['true']")
    assert not (tmp_path / "hacked").exists()


def test_all_mistakes_are_reported_in_one_message_with_place_and_cure(write_config: Write) -> None:
    message = refusal(
        write_config(),
        "Globall.epochs=3",
        "Global.epoch=3",
        "Global.print_batch_step=often",
        "Arch.name=MicroNet_M7",
        "Optimizer.learning_ratee=1",
        "Optimizer.lr.learning_rate=fast",
        "Loss.Train.0.CELoss.epsilon=1.5",
        "DataLoader.Train.dataset.image_root=/not/there",
        "DataLoader.Eval.sampler.batch_size=0",
        "DataLoader.Eval.loader.num_worker=4",
        "DataLoader.Train.dataset.transform_ops.1={RandCropImag: {size: 32}}",
        "Metric.Eval.0.TopkAcc.topk=[0]",
    )
    for line in (
        "12 problems",
        "Global.print_batch_step: expected int, got 'often'",
        "Globall: unknown section. Did you mean 'Global'?",
        "Global.epoch: unknown key. Did you mean 'epochs'?",
        "Arch.name: unknown backbone 'MicroNet_M7'. Did you mean 'MicroNet_M",
        "Optimizer.learning_ratee: unknown argument.",
        "Optimizer.lr.learning_rate: expected float, got 'fast'",
        "Loss.Train.0.CELoss: epsilon: expected 0 <= epsilon < 1, got 1.5",
        "DataLoader.Train.dataset.image_root: no such folder: /not/there",
        "batch_size: expected at least 1, got 0",
        "DataLoader.Eval.loader.num_worker: unknown key. Did you mean 'num_workers'?",
        "'RandCropImag'. Did you mean 'RandCropImage'?",
        "topk: expected whole numbers from 1, got [0]",
    ):
        assert line in message, f"{line}\nis not in\n{message}"


def test_arguments_that_a_component_does_not_take_are_refused(write_config: Write) -> None:
    message = refusal(
        write_config(), "Arch.dropuot=0.1", "Optimizer.lr.gamma=0.1", "Arch.clas_num=3", "Optimizer.layer_decy=0.9"
    )
    assert "DataLoader.Eval.shuffle: unknown key. Known: dataset, loader, sampler." in refusal(
        write_config(), "DataLoader.Eval.shuffle=True"
    )
    assert "Arch.clas_num: unknown argument. Did you mean 'class_num'?" in message
    assert "Optimizer.layer_decy: unknown argument. Did you mean 'layer_decay'?" in message
    assert "Arch.dropuot: unknown argument. Did you mean 'dropout'?" in message
    assert "Optimizer.lr.gamma: unknown argument" in message


def test_numbers_without_end_are_refused_wherever_they_stand(write_config: Write) -> None:
    message = refusal(
        write_config(), "Optimizer.lr.learning_rate=.inf", "Optimizer.clip_norm=.inf", "Loss.Train.0.CELoss.weight=.nan"
    )
    for place, number in (
        ("Optimizer.lr.learning_rate", "inf"),
        ("Optimizer.clip_norm", "inf"),
        ("Loss.Train.0.CELoss.weight", "nan"),
    ):
        assert f"{place}: expected a finite number, got {number}" in message


def test_keys_and_values_of_a_mapping_are_checked_with_their_place(write_config: Write) -> None:
    sizes, thaw = "DataLoader.Train.dataset.image_sizes", "Freeze.unfreeze"
    message = refusal(write_config(), f"{sizes}={{1: -5}}", f"{thaw}=[stem]", "Freeze.all_but_head=True")
    assert f"{sizes}.1: expected greater than or equal to 1, got -5" in message
    assert f"{thaw}: expected epochs with what trains from then on: {{5: stage4}}, got ['stem']" in message
    assert f"{sizes}.0: expected greater than or equal to 1, got 0" in refusal(write_config(), f"{sizes}={{0: 32}}")

    late = refusal(write_config(), "Global.epochs=3", f"{thaw}={{4: head}}", "Freeze.until=stem")
    assert "Freeze.unfreeze.4: comes after the last epoch, Global.epochs=3" in late


def test_missing_parts_are_named(write_config: Write) -> None:
    message = refusal(write_config(DataLoader={}, Loss={}, Optimizer={}))
    assert "DataLoader.Train: missing; this tool reads it" in message
    assert "DataLoader.Eval: missing; this tool reads it; or set Global.eval_during_train=False" in message
    assert "Loss.Train: missing" in message
    assert "Optimizer: missing" in message
    assert "Infer.infer_imgs: no such file or folder: nowhere.jpg" in refusal(
        write_config(), "Infer.infer_imgs=nowhere.jpg", needs=("Infer",)
    )


def test_a_repeated_key_and_broken_yaml_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("Global:\n  epochs: 1\n  epochs: 2\n")
    assert f"{path}:3: not valid YAML: the key 'epochs' stands twice" in refusal(path)
    path.write_text("Global: [1\nArch: 2\n")
    assert f"{path}:" in refusal(path)
    path.write_text("- a\n")
    assert "expected sections such as Global and Arch, got list" in refusal(path)
    assert f"Cannot read the configuration {tmp_path}: Is a directory" in refusal(tmp_path)


def test_a_home_folder_is_put_in_where_the_shell_does_not(write_config: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    loaded = config.load(write_config(), ["Global.output_dir=~/runs", "Infer.infer_imgs=[~/a.png, b~.png]"])
    assert loaded.Global.output_dir == "/somewhere/runs" and loaded.Infer.infer_imgs == ["/somewhere/a.png", "b~.png"]


def test_a_value_that_the_shell_has_torn_is_refused_with_the_way_to_quote_it(write_config: Write) -> None:
    said = refusal(write_config(), "EMA={decay:")
    assert "-o EMA:1: not valid YAML" in said and "quote braces and brackets from the shell" in said


def test_overrides_that_lead_nowhere_are_refused(write_config: Write) -> None:
    assert "expected path.to.key=value" in refusal(write_config(), "Global.epochs")
    assert "expected an index from 0 to 3, got '9'" in refusal(
        write_config(), "DataLoader.Train.dataset.transform_ops.9=1"
    )
    assert "Global.epochs is 2, not a section" in refusal(write_config(), "Global.epochs.more=1")


def test_a_base_is_merged_and_one_level_deep(write_config: Write, tmp_path: Path) -> None:
    base = write_config()
    child = tmp_path / "child.yaml"
    child.write_text("base: config.yaml\nGlobal: {epochs: 9}\nOptimizer: {lr: {name: Constant, learning_rate: 0.1}}\n")
    loaded = config.load(child)
    assert (loaded.Global.epochs, loaded.Global.seed) == (9, 1)
    assert loaded.Optimizer.lr.name == "Constant"
    grandchild = tmp_path / "grandchild.yaml"
    grandchild.write_text("base: child.yaml\n")
    assert "one level is allowed" in refusal(grandchild)
    assert base.exists()


def test_the_resolved_configuration_loads_as_the_same(write_config: Write, tmp_path: Path) -> None:
    loaded = config.load(write_config(), ["EMA.decay=0.99", "Optimizer.regularizer={name: L2, coeff: 1e-5}"])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml(loaded))
    again = config.load(path)
    assert config.to_yaml(again) == config.to_yaml(loaded)
    assert again.Optimizer.regularizer.arguments == {"coeff": 1e-5}
    assert yaml.safe_load(path.read_text())["Arch"]["dropout"] == 0.05


def test_a_configuration_is_never_changed_after_it_is_loaded(write_config: Write) -> None:
    loaded = config.load(write_config())
    with pytest.raises(ValueError, match="frozen"):
        loaded.Global.epochs = 5


def test_normalisation_must_fit_the_channels(write_config: Write) -> None:
    message = refusal(write_config(), "Arch.in_channels=1")
    assert "DataLoader.Train.dataset.transform_ops.3.NormalizeImage" in message
    ops = [DECODE, {"NormalizeImage": {**NORMALIZE["NormalizeImage"], "std": [1.0, 0.0, 1.0]}}]
    assert "std" in refusal(write_config(Infer={"transforms": ops}))


def test_every_configuration_of_the_repository_is_valid(repository: Path) -> None:
    files = [path for path in (repository / "configs").glob("*.yaml")]
    assert len(files) >= 4
    for path in files:
        config.load(path)
        header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
        for word in ("Command:", "Hardware:", "Expected:"):
            assert any(line.startswith(f"# {word}") for line in header), f"{path.name} does not state its {word}"


def test_the_micronet_recipes_are_the_published_ones(repository: Path) -> None:
    for variant, decay, warmup, dropout in (
        ("m0", 3e-5, 0, 0.05),
        ("m1", 3e-5, 0, 0.05),
        ("m2", 3e-5, 0, 0.1),
        ("m3", 4e-5, 5, 0.1),
    ):
        loaded = config.load(repository / f"configs/micronet_{variant}.yaml")
        optimizer = loaded.Optimizer
        assert loaded.Global.epochs == 600
        assert (optimizer.name, optimizer.arguments["momentum"]) == ("Momentum", 0.9)
        assert (optimizer.lr.name, optimizer.lr.arguments["learning_rate"]) == ("Cosine", 0.2)
        assert optimizer.lr.arguments.get("warmup_epoch", 0) == warmup
        assert optimizer.regularizer.arguments["coeff"] == decay
        assert not optimizer.one_dim_param_no_weight_decay and optimizer.no_weight_decay_name is None
        assert loaded.Arch.arguments["dropout"] == dropout
        assert loaded.DataLoader.Train.sampler.arguments["batch_size"] * 4 == 512


def test_paddleclas_files_of_micronet_load_unchanged(shared: Path) -> None:
    files = sorted((shared / "peers/paddleclas_configs").glob("MicroNet_M*.yaml"))
    assert files
    for path in files:
        loaded = config.load(path)
        assert loaded.Arch.class_num == 1000
        ours = config.load(Path(__file__).parent.parent / "configs" / f"{path.stem.lower()}.yaml")
        assert ours.Optimizer == loaded.Optimizer
        if path.stem == "MicroNet_M3":
            # ours rounds sizes as the authors' evaluation does
            rounding = {"rounding": "torchvision"}
            for operator in ("ResizeImage", "CropImage"):
                [theirs] = [op[operator] for op in loaded.Infer.transforms if operator in op]
                [own] = [op[operator] for op in ours.Infer.transforms if operator in op]
                assert own == theirs | rounding


def test_the_command_line_prints_the_resolved_configuration(write_config: Write) -> None:
    shown = run_tool("tools/train.py", "-c", write_config(), "-o", "Global.epochs=7", "--print-config")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["Global"]["epochs"] == 7
    refused = run_tool("tools/train.py", "-c", write_config(), "-o", "Globall.epochs=7")
    assert refused.returncode == 2
    assert "Globall: unknown section. Did you mean 'Global'?" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_settings_that_do_not_fit_together_are_refused(write_config: Write) -> None:
    for overrides, message in (
        (["Global.early_stopping=1", "Global.eval_during_train=False"], "Global.early_stopping: needs evaluations"),
        (["Global.start_eval_epoch=9"], "Global.start_eval_epoch: 9 is after the last epoch, 2"),
        (["Global.pretrained_model=nowhere"], "Global.pretrained_model: no such file: nowhere"),
        (["Global.device=tpu"], "Global.device: expected auto, cpu, gpu or gpu:N, got 'tpu'"),
        (["Global.epochs=True"], "Global.epochs: expected int, got True"),
        (["Global.image_shape=3"], "Global.image_shape: expected [channels, height, width], got 3"),
        (["Metric.Eval=[{TopkAcc: {topk: 1}}, {TopkAcc: {topk: [1, 2]}}]"], "Metric.Eval: top1 stands twice"),
        (["Optimizer.lr.eta_min=-1"], "eta_min: expected 0 to learning_rate"),
    ):
        assert message in refusal(write_config(), *overrides), message


def test_a_published_recipe_may_be_tried_for_fewer_epochs_than_its_warm_up(repository: Path) -> None:
    assert config.load(repository / "configs/micronet_m3.yaml", ["Global.epochs=3"]).Global.epochs == 3


def test_prediction_prepares_images_as_evaluation_does_unless_told_otherwise(write_config: Callable[..., Path]) -> None:
    loaded = config.load(write_config(Infer={}), ["DataLoader.Eval.dataset.transform_ops.1.ResizeImage.size=40"])
    assert loaded.Infer.transforms == loaded.DataLoader.Eval.dataset.arguments["transform_ops"]
    assert loaded.Infer.transforms[1]["ResizeImage"]["size"] == 40
    own = [{"DecodeImage": {}}, {"ResizeImage": {"size": 8}}, {"NormalizeImage": {}}]
    assert config.load(write_config(Infer={"transforms": own})).Infer.transforms == own


def test_prediction_that_prepares_images_otherwise_than_evaluation_says_so(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tell_of_other_preparation(config.load(write_config()), RunLog())  # ToCHWImage alone is no difference
    assert capsys.readouterr().out == ""
    smaller = "DataLoader.Eval.dataset.transform_ops.1.ResizeImage.size=40"
    tell_of_other_preparation(config.load(write_config(), [smaller]), RunLog())
    assert "Infer.transforms prepare images otherwise than DataLoader.Eval does: " in capsys.readouterr().out


def test_operators_of_an_evaluation_that_prediction_cannot_use_are_refused(write_config: Callable[..., Path]) -> None:
    path = write_config(Infer={"infer_imgs": "."})
    random = "DataLoader.Eval.dataset.transform_ops.1={RandCropImage: {size: 32}}"
    config.load(path, [random], ["Eval"])
    place = "Infer.transforms, missing and taken from DataLoader.Eval"
    with pytest.raises(Refused, match=f"{place}: holds random operators, which prediction cannot use"):
        config.load(path, [random], ["Infer"])
