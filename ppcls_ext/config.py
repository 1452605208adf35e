"""PaddleClas-shaped YAML -> one validated, frozen `Config`.

`load` reads a file (and the one file that its `base:` names), applies the overrides, and compares the whole with the
sections below and with the signatures of the registered components. Nothing is built here; every mistake of the
configuration is reported in one message.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ppcls_ext import registry
from ppcls_ext.errors import Refused, did_you_mean, refuse_all
from ppcls_ext.registry import Registry, arguments_of, check_arguments, check_value

# What the program, not the configuration, hands to a component.
PROGRAM_ARGUMENTS = {
    "dataset": frozenset({"channels", "num_classes", "class_names", "seed"}),
    "backbone": frozenset({"num_classes", "in_channels"}),
    "optimizer": frozenset({"parameters"}),
}

Positive = Annotated[int, Field(gt=0)]
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
    device: str = "auto"
    seed: NotNegative | None = None
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
    image_shape: list[Positive] = [3, 224, 224]
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
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    no_weight_decay_name: str | list[str] | None = None
    one_dim_param_no_weight_decay: bool = False
    arguments: dict[str, Any] = {}


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
    """The whole configuration. `files` are the ones it was read from; `overrides` as given."""

    Global: GlobalOptions = GlobalOptions()
    AMP: AmpOptions = AmpOptions()
    EMA: EmaOptions | None = None
    Arch: ArchOptions
    Loss: Terms = Terms()
    Optimizer: OptimizerOptions | None = None
    DataLoader: Splits = Splits()
    Infer: InferOptions = InferOptions()
    Metric: Terms = Terms()

    def to_yaml(self) -> str:
        """The resolved whole, defaults included, as YAML that `load` reads back."""
        return yaml.safe_dump(_as_written(self), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)

    def output_folder(self) -> Path:
        """`<output_dir>/<Arch.name>`: where a training run keeps its files."""
        return Path(self.Global.output_dir) / self.Arch.name


def topk(topk: Positive = 5, class_id_map_file: registry.InputFile | None = None) -> None:
    """The one post-processing there is: the `topk` best classes, named by `class_id_map_file` ("index name" lines)."""


# ------------------------------------------------------------------------------------------------ reading YAML


class _Yaml(yaml.SafeLoader):
    """YAML whose scalars mean what a reader expects: 1e-3 is a number, `no` a word, a repeated key a mistake."""


# YAML 1.1 reads 1e-3 as a string, `on` and `no` as booleans, 010 as 8 and 1:30 as 90.
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?\d+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _construct_int(loader: _Yaml, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _construct_mapping(loader: _Yaml, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    mapping: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, (str, int)):
            raise yaml.constructor.ConstructorError(None, None, f"a key must be a word, got {key!r}", key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Yaml.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Yaml.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def read_yaml(text: str, place: str) -> Any:
    """Parse YAML text; a mistake is refused with its line."""
    try:
        return yaml.load(text, Loader=_Yaml)  # noqa: S506 - _Yaml is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise Refused(f"{place}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"Cannot read the configuration {path}: {getattr(error, 'strerror', None) or error}") from error
    content = read_yaml(text, str(path))
    if not isinstance(content, dict):
        raise Refused(f"{path}: expected sections such as Global and Arch, got {type(content).__name__}")
    return content


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`: mappings are merged, everything else (lists too) is replaced.

    A component that changes its name keeps nothing of the base's arguments.
    """
    if "name" in own and "name" in base and own["name"] != base["name"]:
        return own
    result = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = _merged(base[key], value) if both else value
    return result


def _override(raw: dict[str, Any], text: str) -> None:
    """Apply one `a.b.1.c=value` to the raw mapping, in place."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise Refused(f"-o {text}: expected path.to.key=value, for example -o Global.epochs=10")
    here: Any = raw
    for depth, key in enumerate(keys):
        place = ".".join(keys[: depth + 1])
        last = depth == len(keys) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise Refused(f"-o {text}: {place}: expected an index from 0 to {len(here) - 1}, got '{key}'")
            slot: Any = int(key)
        elif isinstance(here, dict):
            slot = key
            here.setdefault(key, None)
        else:
            parent = ".".join(keys[:depth])
            raise Refused(f"-o {text}: {parent} is {here!r}, not a section; set the whole with -o {parent}=...")
        if last:
            here[slot] = read_yaml(value, f"-o {path}") if value.strip() else None
        else:
            if here[slot] is None:
                here[slot] = {}
            here = here[slot]


# ------------------------------------------------------------------------------------------------ validation


class _Check:
    """Walks the raw mapping, collects problems and the validated pieces."""

    def __init__(self, needs: Iterable[str]) -> None:
        self.needs = frozenset(needs)
        self.problems: list[str] = []

    def say(self, problem: str) -> None:
        self.problems.append(problem)

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.say(f"{place}: expected a section with keys, got {value!r}")
            return {}
        return {str(key): item for key, item in value.items()}

    def fields(
        self, section: type[Section], raw: dict[str, Any], place: str, more_keys: Iterable[str] = ()
    ) -> dict[str, Any]:
        """Check the plain keys of a section; `more_keys` are checked by somebody else. Unknown keys are problems."""
        known = [name for name in section.model_fields if name != "arguments"]
        more_keys = set(more_keys)
        checked = {}
        for key, value in raw.items():
            if key in more_keys:
                continue
            if key not in known:
                self.say(f"{place}.{key}: unknown key. {did_you_mean(key, [*known, *more_keys])}")
                continue
            field = section.model_fields[key]
            annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            converted, wrong = check_value(annotation, value, f"{place}.{key}")
            self.problems += wrong
            if not wrong:
                checked[key] = converted
        return checked

    def arguments(
        self, component: Callable[..., Any], raw: dict[str, Any], place: str, kind: str, check_files: bool
    ) -> dict[str, Any]:
        """Bind the arguments of a component and look for the files that they name."""
        hidden = PROGRAM_ARGUMENTS.get(kind, frozenset())
        arguments, wrong = check_arguments(component, raw, place, hidden)
        self.problems += wrong
        if check_files:
            known = arguments_of(component, hidden)
            for name in known.keys() & arguments.keys():
                text = str(known[name])
                if arguments[name] is None or not isinstance(arguments[name], str):
                    continue
                if "input file" in text and not Path(arguments[name]).is_file():
                    self.say(f"{place}.{name}: no such file: {arguments[name]}")
                if "input folder" in text and not Path(arguments[name]).is_dir():
                    self.say(f"{place}.{name}: no such folder: {arguments[name]}")
        return arguments

    def component(self, table: Registry, raw: Any, place: str, build: bool = False, files: bool = False) -> Component | None:
        """A component written as `name: X` with its arguments beside the name."""
        mapping = self.mapping(raw, place)
        name = mapping.pop("name", None)
        if not isinstance(name, str):
            self.say(f"{place}.name: missing; expected one of the known {table.kind}s: {', '.join(table)}")
            return None
        return self._known(table, name, mapping, place, f"{place}.name", build, files)

    def one_key_list(self, table: Registry, raw: Any, place: str, build: bool = False) -> list[Component]:
        """Components written as a list of one-key mappings, `- X: {...}`."""
        if raw is None:
            return []
        if not isinstance(raw, list):
            self.say(f"{place}: expected a list such as [- Name: {{...}}], got {raw!r}")
            return []
        found = []
        for index, item in enumerate(raw):
            if not isinstance(item, dict) or len(item) != 1:
                self.say(f"{place}.{index}: expected one name with its arguments, got {item!r}")
                continue
            (name, arguments), here = next(iter(item.items())), f"{place}.{index}"
            arguments = self.mapping(arguments, f"{here}.{name}")
            component = self._known(table, str(name), arguments, f"{here}.{name}", here, build, False)
            if component is not None:
                found.append(component)
        return found

    def _known(
        self, table: Registry, name: str, raw: dict[str, Any], place: str, name_place: str, build: bool, files: bool
    ) -> Component | None:
        if name not in table:
            self.say(f"{name_place}: unknown {table.kind} '{name}'. {did_you_mean(name, table)}")
            return None
        before = len(self.problems)
        arguments = self.arguments(table[name], raw, place, table.kind, files)
        if build and len(self.problems) == before:
            # These components are plain values: making one checks its ranges.
            try:
                table[name](**arguments)
            except ValueError as error:
                self.say(f"{place}: {error}")
        return Component(name=name, arguments=arguments)

    def section(self, raw: dict[str, Any], name: str) -> dict[str, Any]:
        return self.mapping(raw.get(name), name)

    # The sections -------------------------------------------------------------------------------

    def arch(self, raw: dict[str, Any]) -> ArchOptions:
        mapping = self.section(raw, "Arch")
        plain = {key: mapping[key] for key in ArchOptions.model_fields if key in mapping and key != "arguments"}
        own = {key: value for key, value in mapping.items() if key not in plain}
        if plain.get("pretrained") not in (None, False):
            plain.pop("pretrained")
            self.say("Arch.pretrained: nothing is downloaded here; name a weights file: Global.pretrained_model=PATH")
        fields = self.fields(ArchOptions, plain, "Arch")
        name = fields.setdefault("name", "")
        if not name:
            self.say("Arch.name: missing; `python -m ppcls_ext.models list` shows the networks")
        elif name not in registry.BACKBONES:
            self.say(f"Arch.name: unknown backbone '{name}'. {did_you_mean(name, registry.BACKBONES)}")
        else:
            fields["arguments"] = self.arguments(registry.BACKBONES[name], own, "Arch", "backbone", False)
        return ArchOptions(**fields)

    def terms(self, table: Registry, raw: dict[str, Any], name: str) -> Terms:
        mapping = self.section(raw, name)
        self.fields(Terms, mapping, name, more_keys=("Train", "Eval"))
        parts = {key: self.one_key_list(table, mapping.get(key), f"{name}.{key}", build=True) for key in ("Train", "Eval")}
        return Terms(**parts)

    def optimizer(self, raw: dict[str, Any]) -> OptimizerOptions | None:
        mapping = self.section(raw, "Optimizer")
        if not mapping:
            return None
        plain = {key: mapping[key] for key in OptimizerOptions.model_fields if key in mapping and key != "arguments"}
        own = {key: value for key, value in mapping.items() if key not in plain}
        fields = self.fields(OptimizerOptions, plain, "Optimizer", more_keys=("lr", "regularizer"))
        schedule = self.component(registry.SCHEDULES, mapping.get("lr"), "Optimizer.lr", build=True)
        if mapping.get("regularizer") is not None:
            regularizer = self.component(_REGULARIZERS, mapping["regularizer"], "Optimizer.regularizer")
            fields["regularizer"] = regularizer
            if "weight_decay" in own:
                self.say("Optimizer.weight_decay: stands beside Optimizer.regularizer; give one of the two")
        made = self.component(registry.OPTIMIZERS, {"name": fields.get("name"), **own}, "Optimizer")
        if schedule is None or made is None:
            return None
        return OptimizerOptions(**{**fields, "lr": schedule, "arguments": made.arguments})

    def split(self, raw: dict[str, Any], name: str, channels: int) -> Split | None:
        place = f"DataLoader.{name}"
        mapping = self.mapping(self.section(raw, "DataLoader").get(name), place)
        if not mapping:
            if name in self.needs:
                cure = "; or set Global.eval_during_train=False" if "Train" in self.needs and name == "Eval" else ""
                self.say(f"{place}: missing; this tool reads it{cure}")
            return None
        self.fields(Split, mapping, place, more_keys=("dataset", "sampler", "loader"))
        dataset = self.component(registry.DATASETS, mapping.get("dataset"), f"{place}.dataset", files=name in self.needs)
        if dataset is not None:
            self.transforms(dataset.arguments.get("transform_ops"), f"{place}.dataset.transform_ops", channels)
        sampler = self.component(registry.SAMPLERS, mapping.get("sampler"), f"{place}.sampler", build=True)
        options = self.fields(LoaderOptions, self.mapping(mapping.get("loader"), f"{place}.loader"), f"{place}.loader")
        if dataset is None or sampler is None:
            return None
        return Split(dataset=dataset, sampler=sampler, loader=LoaderOptions(**options))

    def transforms(self, ops: Any, place: str, channels: int) -> None:
        from ppcls_ext.transforms import check_transforms

        if isinstance(ops, list):
            self.problems += check_transforms(ops, place, channels)

    def infer(self, raw: dict[str, Any], channels: int) -> InferOptions:
        mapping = self.section(raw, "Infer")
        fields = self.fields(InferOptions, mapping, "Infer", more_keys=("PostProcess",))
        if fields.get("transforms"):
            self.transforms(fields["transforms"], "Infer.transforms", channels)
        if mapping.get("PostProcess") is not None:
            process = self.component(_POSTPROCESSES, mapping["PostProcess"], "Infer.PostProcess")
            if process is not None:
                fields["PostProcess"] = process
        if "Infer" in self.needs:
            given = fields.get("infer_imgs")
            if given is None:
                self.say("Infer.infer_imgs: missing; name an image, a folder, or a list of them: -o Infer.infer_imgs=PATH")
            for path in [given] if isinstance(given, str) else given or []:
                if not Path(path).exists():
                    self.say(f"Infer.infer_imgs: no such file or folder: {path}")
            if not fields.get("transforms"):
                self.say("Infer.transforms: missing; prediction has to prepare images as evaluation did")
        return InferOptions(**fields)

    def whole(self, raw: dict[str, Any]) -> Config:
        for key in raw:
            if key not in Config.model_fields:
                self.say(f"{key}: unknown section. {did_you_mean(key, Config.model_fields)}")
        options = GlobalOptions(**self.fields(GlobalOptions, self.section(raw, "Global"), "Global"))
        if "Train" in self.needs and options.eval_during_train:
            self.needs |= {"Eval"}
        arch = self.arch(raw)
        loaders = self.section(raw, "DataLoader")
        self.fields(Splits, loaders, "DataLoader", more_keys=("Train", "Eval"))
        ema = raw.get("EMA")
        config = dict(
            Global=options,
            AMP=AmpOptions(**self.fields(AmpOptions, self.section(raw, "AMP"), "AMP")),
            EMA=None if ema is None else EmaOptions(**self.fields(EmaOptions, self.mapping(ema, "EMA"), "EMA")),
            Arch=arch,
            Loss=self.terms(registry.LOSSES, raw, "Loss"),
            Optimizer=self.optimizer(raw),
            DataLoader=Splits(**{name: self.split(raw, name, arch.in_channels) for name in ("Train", "Eval")}),
            Infer=self.infer(raw, arch.in_channels),
            Metric=self.terms(registry.METRICS, raw, "Metric"),
        )
        if "Train" in self.needs:
            if not config["Loss"].Train:
                self.say("Loss.Train: missing; for example [- CELoss: {weight: 1.0}]")
            if config["Optimizer"] is None and not raw.get("Optimizer"):
                self.say("Optimizer: missing; training needs an optimizer and its lr")
        return Config(**config)


_REGULARIZERS = Registry("regularizer")
_POSTPROCESSES = Registry("post-processing")
_POSTPROCESSES.register("Topk")(topk)


@_REGULARIZERS.register("L2")
def l2(coeff: Annotated[float, Field(ge=0)] = 0.0) -> float:
    """Decay of the weights by `coeff` times their value."""
    return coeff


def load(path: str | Path, overrides: Iterable[str] = (), needs: Iterable[str] = ()) -> Config:
    """Read, override and validate a configuration.

    `needs` names the parts whose presence and files matter to the tool at hand: "Train", "Eval", "Infer". All mistakes
    are raised together as one `Refused`.
    """
    import_components()
    path = Path(path)
    raw = _read_file(path)
    if "base" in raw:
        base_path = path.parent / str(raw.pop("base"))
        base = _read_file(base_path)
        if "base" in base:
            raise Refused(f"{base_path}: is the base of {path.name} and has a base itself; one level is allowed")
        raw = _merged(base, raw)
    for override in overrides:
        _override(raw, override)
    check = _Check(needs)
    config = check.whole({str(key): value for key, value in raw.items()})
    refuse_all(f"The configuration {path} cannot be used", check.problems)
    return config


def import_components() -> None:
    """Import the modules whose components register themselves."""
    import ppcls_ext.backbones
    import ppcls_ext.data.datasets
    import ppcls_ext.data.samplers
    import ppcls_ext.losses
    import ppcls_ext.metrics
    import ppcls_ext.optim
    import ppcls_ext.transforms  # noqa: F401


def build(table: Registry, component: Component, **program_arguments: Any) -> Any:
    """Make a component from its validated arguments and what the program adds."""
    return table[component.name](**component.arguments, **program_arguments)


# ------------------------------------------------------------------------------------------------ writing


def _defaults(table: Registry, component: Component) -> dict[str, Any]:
    """The arguments of a component, defaults filled in, in the order of its signature."""
    target = table[component.name]
    hidden = PROGRAM_ARGUMENTS.get(table.kind, frozenset())
    parameters = inspect.signature(target).parameters
    return {
        name: component.arguments.get(name, parameters[name].default)
        for name in arguments_of(target, hidden)
        if name in component.arguments or parameters[name].default is not inspect.Parameter.empty
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _as_written(config: Config) -> dict[str, Any]:
    """The nested mapping in PaddleClas's shape."""

    def named(table: Registry, component: Component) -> dict[str, Any]:
        return {"name": component.name, **_defaults(table, component)}

    def terms(table: Registry, part: Terms) -> dict[str, Any]:
        return {key: [{c.name: _defaults(table, c)} for c in getattr(part, key)] for key in ("Train", "Eval")}

    def split(part: Split) -> dict[str, Any]:
        return {
            "dataset": named(registry.DATASETS, part.dataset),
            "sampler": named(registry.SAMPLERS, part.sampler),
            "loader": part.loader.model_dump(),
        }

    arch = Component(name=config.Arch.name, arguments=config.Arch.arguments)
    written: dict[str, Any] = {
        "Global": config.Global.model_dump(),
        "AMP": config.AMP.model_dump(),
        "EMA": config.EMA.model_dump() if config.EMA else None,
        "Arch": {**config.Arch.model_dump(exclude={"arguments"}), **_defaults(registry.BACKBONES, arch)},
        "Loss": terms(registry.LOSSES, config.Loss),
    }
    if config.Optimizer is not None:
        optimizer = config.Optimizer
        own = _defaults(registry.OPTIMIZERS, Component(name=optimizer.name, arguments=optimizer.arguments))
        if optimizer.regularizer is not None:
            own.pop("weight_decay", None)
        written["Optimizer"] = {
            **optimizer.model_dump(exclude={"arguments", "lr", "regularizer"}),
            **own,
            "lr": named(registry.SCHEDULES, optimizer.lr),
            "regularizer": named(_REGULARIZERS, optimizer.regularizer) if optimizer.regularizer else None,
        }
    splits = {"Train": config.DataLoader.Train, "Eval": config.DataLoader.Eval}
    written["DataLoader"] = {name: split(part) for name, part in splits.items() if part is not None}
    written["Infer"] = {
        **config.Infer.model_dump(exclude={"PostProcess"}),
        "PostProcess": named(_POSTPROCESSES, config.Infer.PostProcess),
    }
    written["Metric"] = terms(registry.METRICS, config.Metric)
    return _plain(written)
