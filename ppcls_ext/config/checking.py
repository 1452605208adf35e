"""A plain mapping -> a validated `Config`; every mistake is collected with its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from ppcls_ext import registry
from ppcls_ext.checkpoint import weights_exist
from ppcls_ext.config.components import POSTPROCESSES, PROGRAM_ARGUMENTS, REGULARIZERS
from ppcls_ext.config.fit import answer_problems, fit_problems, infer_problems, optimization_problems
from ppcls_ext.config.sections import (
    AmpOptions,
    ArchOptions,
    Component,
    Config,
    DistillOptions,
    EmaOptions,
    FreezeOptions,
    GlobalOptions,
    InferOptions,
    LoaderOptions,
    OptimizerOptions,
    Section,
    Split,
    Splits,
    Terms,
)
from ppcls_ext.errors import did_you_mean
from ppcls_ext.registry import Registry, arguments_of, check_arguments, check_value
from ppcls_ext.transforms import build_transforms, check_transforms


class Check:
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
        self,
        component: Callable[..., Any],
        raw: dict[str, Any],
        place: str,
        kind: str,
        check_files: bool,
        also: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Bind the arguments of a component and look for the files that they name; `also`: its section's own keys."""
        hidden = PROGRAM_ARGUMENTS.get(kind, frozenset())
        arguments, wrong = check_arguments(component, raw, place, hidden, also)
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

    def component(
        self,
        table: Registry,
        raw: Any,
        place: str,
        build: bool = False,
        files: bool = False,
        also: Iterable[str] = (),
    ) -> Component | None:
        """A component written as `name: X` with its arguments, and the keys `also`, beside the name."""
        mapping = self.mapping(raw, place)
        name = mapping.pop("name", None)
        if not isinstance(name, str):
            self.say(f"{place}.name: missing; expected one of the known {table.kind}s: {', '.join(table)}")
            return None
        return self._known(table, name, mapping, place, f"{place}.name", build, files, also)

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
        self,
        table: Registry,
        name: str,
        raw: dict[str, Any],
        place: str,
        name_place: str,
        build: bool,
        files: bool,
        also: Iterable[str] = (),
    ) -> Component | None:
        if name not in table:
            self.say(f"{name_place}: unknown {table.kind} '{name}'. {did_you_mean(name, table)}")
            return None
        before = len(self.problems)
        arguments = self.arguments(table[name], raw, place, table.kind, files, also)
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
        keys = ArchOptions.model_fields.keys() - {"arguments"}
        plain = {key: mapping[key] for key in ArchOptions.model_fields if key in mapping and key in keys}
        own = {key: value for key, value in mapping.items() if key not in plain}
        if plain.get("pretrained") not in (None, False):
            plain.pop("pretrained")
            self.say("Arch.pretrained: nothing is downloaded here; name a weights file: Global.pretrained_model=PATH")
        older = self.section(raw, "Global").get("class_num")
        if older is not None and plain.setdefault("class_num", older) != older:
            self.say(f"Global.class_num: {older!r}, but Arch.class_num is {plain['class_num']!r}; give one of the two")
        fields = self.fields(ArchOptions, plain, "Arch")
        channels = self.section(raw, "Global").get("image_channel")
        if channels is not None and channels != fields.get("in_channels", 3):
            self.say(f"Global.image_channel: {channels!r}, but Arch.in_channels is {fields.get('in_channels', 3)}")
        name = fields.setdefault("name", "")
        if "name" not in plain:
            self.say("Arch.name: missing; `python -m ppcls_ext.models list` shows the networks")
        elif name and name not in registry.BACKBONES:
            self.say(f"Arch.name: unknown backbone '{name}'. {did_you_mean(name, registry.BACKBONES)}")
        elif name:
            before = len(self.problems)
            fields["arguments"] = self.arguments(registry.BACKBONES[name], own, "Arch", "backbone", False, keys)
            self.problems[before:] = [
                f"{text} If another network's configuration gives it, take it out: -o {text.partition(':')[0]}="
                if ": unknown argument." in text
                else text
                for text in self.problems[before:]
            ]
        return ArchOptions(**fields)

    def terms(self, table: Registry, raw: dict[str, Any], name: str) -> Terms:
        mapping = self.section(raw, name)
        self.fields(Terms, mapping, name, more_keys=("Train", "Eval"))
        parts = {
            key: self.one_key_list(table, mapping.get(key), f"{name}.{key}", build=True) for key in ("Train", "Eval")
        }
        if table is registry.METRICS and not self.problems:
            for key, part in parts.items():
                named = [metric for one in part for metric in table[one.name](**one.arguments).names()]
                for metric in sorted({metric for metric in named if named.count(metric) > 1}):
                    self.say(f"{name}.{key}: {metric} stands twice")
        return Terms(**parts)

    def optimizer(self, raw: dict[str, Any]) -> OptimizerOptions | None:
        mapping = self.section(raw, "Optimizer")
        if not mapping:
            return None
        keys = OptimizerOptions.model_fields.keys() - {"arguments"}
        plain = {key: mapping[key] for key in OptimizerOptions.model_fields if key in mapping and key in keys}
        own = {key: value for key, value in mapping.items() if key not in plain}
        fields = self.fields(OptimizerOptions, plain, "Optimizer", more_keys=("lr", "regularizer"))
        schedule = self.component(registry.SCHEDULES, mapping.get("lr"), "Optimizer.lr", build=True)
        if mapping.get("regularizer") is not None:
            regularizer = self.component(REGULARIZERS, mapping["regularizer"], "Optimizer.regularizer")
            fields["regularizer"] = regularizer
            if "weight_decay" in own:
                self.say("Optimizer.weight_decay: stands beside Optimizer.regularizer; give one of the two")
        clips = [key for key in ("clip_norm", "clip_value", "clip_adaptive") if fields.get(key) is not None]
        if len(clips) > 1:
            self.say(f"Optimizer.{clips[1]}: stands beside Optimizer.{clips[0]}; give one of the two")
        made = self.component(registry.OPTIMIZERS, {"name": fields.get("name"), **own}, "Optimizer", also=keys)
        if schedule is None or made is None:
            return None
        return OptimizerOptions(**{**fields, "lr": schedule, "arguments": made.arguments})

    def freeze(self, raw: dict[str, Any], epochs: int) -> FreezeOptions:
        fields = self.fields(FreezeOptions, self.section(raw, "Freeze"), "Freeze")
        options = FreezeOptions(**fields)
        freezes = bool(options.layers) or options.until is not None or options.all_but_head
        for key in ("unfreeze", "unfreeze_every"):
            if getattr(options, key) and not freezes:
                self.say(f"Freeze.{key}: nothing is frozen; add Freeze.layers, Freeze.until or Freeze.all_but_head")
        for begin in sorted(options.unfreeze):
            if "Train" in self.needs and begin > epochs:
                self.say(f"Freeze.unfreeze.{begin}: comes after the last epoch, Global.epochs={epochs}")
        return options

    def distill(self, raw: dict[str, Any]) -> DistillOptions | None:
        if raw.get("Distill") is None:
            return None
        mapping = self.section(raw, "Distill")
        fields = self.fields(DistillOptions, mapping, "Distill", more_keys=("teacher",))
        teacher = self.component(registry.BACKBONES, mapping.get("teacher"), "Distill.teacher")
        if mapping.get("weights") is None:
            self.say("Distill.weights: missing; a teacher without trained weights teaches nothing")
        elif "Train" in self.needs and "weights" in fields and not weights_exist(Path(fields["weights"])):
            self.say(f"Distill.weights: no such file: {fields['weights']}, with or without .pdparams")
        if teacher is None or "weights" not in fields:
            return None
        return DistillOptions(**{**fields, "teacher": teacher})

    def split(self, raw: dict[str, Any], name: str, channels: int) -> Split | None:
        place = f"DataLoader.{name}"
        mapping = self.mapping(self.section(raw, "DataLoader").get(name), place)
        if not mapping:
            if name in self.needs:
                cure = "; or set Global.eval_during_train=False" if "Train" in self.needs and name == "Eval" else ""
                self.say(f"{place}: missing; this tool reads it{cure}")
            return None
        self.fields(Split, mapping, place, more_keys=("dataset", "sampler", "loader"))
        dataset = self.component(
            registry.DATASETS, mapping.get("dataset"), f"{place}.dataset", files=name in self.needs
        )
        if dataset is not None:
            self.transforms(dataset.arguments.get("transform_ops"), f"{place}.dataset.transform_ops", channels)
            self.mixing(dataset.arguments.get("batch_transform_ops"), name, f"{place}.dataset.batch_transform_ops")
            if name == "Eval" and dataset.arguments.get("image_sizes"):
                self.say(f"{place}.dataset.image_sizes: an evaluation has one size; it belongs in DataLoader.Train")
        sampler = self.component(registry.SAMPLERS, mapping.get("sampler"), f"{place}.sampler", build=True)
        options = self.fields(LoaderOptions, self.mapping(mapping.get("loader"), f"{place}.loader"), f"{place}.loader")
        if dataset is None or sampler is None:
            return None
        return Split(dataset=dataset, sampler=sampler, loader=LoaderOptions(**options))

    def transforms(self, ops: Any, place: str, channels: int) -> None:
        if isinstance(ops, list):
            self.problems += check_transforms(ops, place, channels)

    def mixing(self, ops: Any, split: str, place: str) -> None:
        if not ops:
            return
        if split == "Eval":
            self.say(f"{place}: an evaluation never mixes images; it belongs in DataLoader.Train")
        operators = self.one_key_list(registry.BATCH_TRANSFORMS, ops, place, build=True)
        if len(operators) > 1:
            self.say(f"{place}: {len(operators)} operators; OpSampler chooses one of several for each batch")

    def infer(self, raw: dict[str, Any], channels: int, evaluation: Split | None) -> InferOptions:
        mapping = self.section(raw, "Infer")
        fields = self.fields(InferOptions, mapping, "Infer", more_keys=("PostProcess",))
        own = bool(fields.get("transforms"))
        if not own and evaluation is not None:  # prepared as they were when the network was judged
            fields["transforms"] = evaluation.dataset.arguments.get("transform_ops")
        if fields.get("transforms") and (own or "Infer" in self.needs):
            before = len(self.problems)
            self.transforms(fields["transforms"], "Infer.transforms", channels)
            if len(self.problems) == before:
                place = "Infer.transforms" if own else "Infer.transforms, missing and taken from DataLoader.Eval"
                self.problems += infer_problems(build_transforms(fields["transforms"], channels), place)
        if mapping.get("PostProcess") is not None:
            given = {"name": "Topk", **self.mapping(mapping["PostProcess"], "Infer.PostProcess")}
            process = self.component(POSTPROCESSES, given, "Infer.PostProcess")
            if process is not None:
                fields["PostProcess"] = process
        if "Infer" in self.needs:
            given = fields.get("infer_imgs")
            if not given:
                self.say(
                    "Infer.infer_imgs: missing; name an image, a folder, or a list of them: -o Infer.infer_imgs=PATH"
                )
            for path in [given] if isinstance(given, str) else given or []:
                if not Path(path).exists():
                    self.say(f"Infer.infer_imgs: no such file or folder: {path}")
            if not fields.get("transforms"):
                self.say("Infer.transforms: missing, and there is no DataLoader.Eval, whose operators would be taken")
        return InferOptions(**fields)

    def run(self, options: GlobalOptions, loaders: Splits) -> None:
        """What has to fit together over the sections."""
        evaluates = options.eval_during_train and loaders.Eval is not None
        if options.early_stopping and not evaluates:
            self.say("Global.early_stopping: needs evaluations: Global.eval_during_train=True and DataLoader.Eval")
        if evaluates and options.start_eval_epoch > options.epochs:
            self.say(f"Global.start_eval_epoch: {options.start_eval_epoch} is after the last epoch, {options.epochs}")
        if options.pretrained_model is not None and not weights_exist(Path(options.pretrained_model)):
            self.say(f"Global.pretrained_model: no such file: {options.pretrained_model}, with or without .pdparams")

    def whole(self, raw: dict[str, Any]) -> Config:
        for key in raw:
            if key not in Config.model_fields:
                self.say(f"{key}: unknown section. {did_you_mean(key, Config.model_fields)}")
        options = GlobalOptions(**self.fields(GlobalOptions, self.section(raw, "Global"), "Global", ("class_num",)))
        if "Train" in self.needs and options.eval_during_train:
            self.needs |= {"Eval"}
        arch = self.arch(raw)
        loaders = self.section(raw, "DataLoader")
        self.fields(Splits, loaders, "DataLoader", more_keys=("Train", "Eval"))
        ema = raw.get("EMA")
        splits = Splits(**{name: self.split(raw, name, arch.in_channels) for name in ("Train", "Eval")})
        config = dict(
            Global=options,
            AMP=AmpOptions(**self.fields(AmpOptions, self.section(raw, "AMP"), "AMP")),
            EMA=None if ema is None else EmaOptions(**self.fields(EmaOptions, self.mapping(ema, "EMA"), "EMA")),
            Arch=arch,
            Freeze=self.freeze(raw, options.epochs),
            Distill=self.distill(raw),
            Loss=self.terms(registry.LOSSES, raw, "Loss"),
            Optimizer=self.optimizer(raw),
            DataLoader=splits,
            Infer=self.infer(raw, arch.in_channels, splits.Eval),
            Metric=self.terms(registry.METRICS, raw, "Metric"),
        )
        if not self.problems:
            self.problems += fit_problems(config["Loss"], config["Metric"], config["DataLoader"])
            if "Infer" in self.needs:
                self.problems += answer_problems(config["Infer"].PostProcess.name, config["DataLoader"])
        if "Train" in self.needs:
            self.run(options, config["DataLoader"])
            if not config["Loss"].Train:
                self.say("Loss.Train: missing; for example [- CELoss: {weight: 1.0}]")
            self.problems += optimization_problems(config)
            if config["Optimizer"] is None and not raw.get("Optimizer"):
                self.say("Optimizer: missing; training needs an optimizer and its lr")
        return Config(**config)
