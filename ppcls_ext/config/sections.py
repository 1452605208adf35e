"""The sections of a configuration: their keys, types and defaults. Frozen; nothing changes one after it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
ImageShape = Annotated[list[Positive], "[channels, height, width]", Field(min_length=3, max_length=3)]
NotNegative = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: known keys only, never changed after it is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Component(Section):
    """A registered component and the arguments that the configuration gives it."""

    name: str
    arguments: dict[str, Any] = {}


class GlobalOptions(Section):
    """What concerns the whole run. `batch_size` is per process and stands in the samplers."""

    epochs: Positive = 100
    output_dir: str = "./output/"
    device: Annotated[str, "auto, cpu, gpu or gpu:N", Field(pattern=r"^(auto|cpu|gpu(:\d+)?)$")] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    pretrained_model: str | None = None
    checkpoints: str | None = None
    save_interval: Positive = 1
    save_steps: Positive | None = None
    eval_during_train: bool = True
    eval_interval: Positive = 1
    start_eval_epoch: Positive = 1
    early_stopping: Positive | None = None
    print_batch_step: Positive = 10
    use_visualdl: bool = False
    update_freq: Positive = 1
    image_shape: ImageShape = [3, 224, 224]
    image_channel: Positive | None = None
    use_dali: Annotated[Literal[False], "False (images are read without DALI here)"] = False
    save_inference_dir: str = "./inference"
    to_static: Literal[False] = False
    eval_mode: Literal["classification"] = "classification"


class AmpOptions(Section):
    """Mixed precision: `paddle.amp`, where the device has it."""

    use_amp: bool = False
    level: Literal["O1", "O2"] = "O1"
    dtype: Literal["float16", "bfloat16"] = "float16"
    scale_loss: Annotated[float, Field(gt=0)] = 128.0
    use_dynamic_loss_scaling: bool = True
    use_promote: bool = False
    use_fp16_test: bool = False


class EmaOptions(Section):
    """Exponential moving average of the weights; with `warmup` the decay of update t is min(decay, (1+t)/(10+t))."""

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    warmup: bool = True


class ArchOptions(Section):
    """The network: a registered name, the number of classes, channels, and the builder's own arguments."""

    name: str
    class_num: Positive | None = None
    in_channels: Positive = 3
    use_sync_bn: bool = False
    pretrained: Literal[False] = False
    arguments: dict[str, Any] = {}


class Terms(Section):
    """Losses or metrics of training and of evaluation."""

    Train: list[Component] = []
    Eval: list[Component] = []


class OptimizerOptions(Section):
    """The optimizer, its learning-rate schedule, and what holds for every optimizer."""

    name: str
    lr: Component
    regularizer: Component | None = None
    scale_lr_with_batch: Positive | None = None
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    clip_value: Annotated[float, Field(gt=0)] | None = None
    clip_adaptive: Annotated[float, Field(gt=0)] | None = None
    no_weight_decay_name: str | list[str] | None = None
    one_dim_param_no_weight_decay: bool = False
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    arguments: dict[str, Any] = {}


class FreezeOptions(Section):
    """Parameters that keep their values.

    `layers` names layer groups or parameters (globs), `until` a layer group with all before it, `all_but_head` all but
    the classifier. `unfreeze` maps an epoch to what trains from then on; with `unfreeze_every` one more layer group
    trains every so many epochs, from the head downwards.
    """

    layers: str | list[str] = []
    until: str | None = None
    all_but_head: bool = False
    unfreeze: Annotated[dict[Positive, str | list[str]], "epochs with what trains from then on: {5: stage4}"] = {}
    unfreeze_every: Positive | None = None


class DistillOptions(Section):
    """A teacher: a registered network with its arguments, its weights, and what is learnt from it with which weight."""

    teacher: Component
    weights: str
    kind: Literal["soft", "hard"] = "soft"
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0


class LoaderOptions(Section):
    """How batches are prepared: worker processes, and how long (seconds) a batch may take before a worker is stuck."""

    num_workers: NotNegative = 0
    use_shared_memory: bool = True
    prefetch: Positive = 2
    timeout: Annotated[float, Field(gt=0)] = 120.0


class Split(Section):
    """One data split: dataset, sampler, loader."""

    dataset: Component
    sampler: Component
    loader: LoaderOptions = LoaderOptions()


class Splits(Section):
    """The splits that training and evaluation read."""

    Train: Split | None = None
    Eval: Split | None = None


class InferOptions(Section):
    """Prediction: which images, how they are prepared, how the answer is given."""

    infer_imgs: str | list[str] | None = None
    batch_size: Positive = 10
    transforms: list[dict[str, Any]] = []
    PostProcess: Component = Component(name="Topk")


class Config(Section):
    """The whole configuration."""

    Global: GlobalOptions = GlobalOptions()
    AMP: AmpOptions = AmpOptions()
    EMA: EmaOptions | None = None
    Arch: ArchOptions
    Freeze: FreezeOptions = FreezeOptions()
    Distill: DistillOptions | None = None
    Loss: Terms = Terms()
    Optimizer: OptimizerOptions | None = None
    DataLoader: Splits = Splits()
    Infer: InferOptions = InferOptions()
    Metric: Terms = Terms()

    def output_folder(self) -> Path:
        """`<output_dir>/<Arch.name>`: where a training run keeps its files."""
        return Path(self.Global.output_dir) / self.Arch.name
