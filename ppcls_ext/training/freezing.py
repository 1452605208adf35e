"""Parameters that keep their values for the whole run or for its first epochs.

What is frozen is a function of the epoch, so a run that is taken up freezes what an unbroken one would.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import paddle

from ppcls_ext.config import FreezeOptions
from ppcls_ext.errors import Refused, did_you_mean
from ppcls_ext.layers import BATCH_NORMS
from ppcls_ext.optim.groups import group_of_parameters

NEVER = 10**9  # an epoch that no run reaches


def as_list(names: str | list[str]) -> list[str]:
    """One name or several."""
    return [names] if isinstance(names, str) else list(names)


class Freezing:
    """Which of a network's parameters train in which epoch; `apply` makes it so."""

    def __init__(self, network: paddle.nn.Layer, options: FreezeOptions) -> None:
        self.network = network
        self.options = options
        self.trainable = {name: p for name, p in network.named_parameters() if p.trainable}
        self.frozen: frozenset[str] = frozenset()  # parameters, and the statistics of frozen batch norms
        self._said = self.frozen
        self._groups = group_of_parameters(network) if options != FreezeOptions() else {}
        self._order = list(dict.fromkeys(self._groups.values()))
        if not self.trainable.keys() - self.frozen_in(1):
            raise Refused("Freeze: nothing is left to train in epoch 1")

    def frozen_in(self, epoch: int) -> set[str]:
        """Names of the parameters that are frozen in `epoch` (from 1)."""
        options = self.options
        frozen = self._matching(as_list(options.layers), "Freeze.layers")
        if options.until is not None:
            if options.until not in self._order:
                raise Refused(
                    f"Freeze.until: '{options.until}' is no layer group. {did_you_mean(options.until, self._order)}"
                )
            frozen |= self._of_groups(self._order[: self._order.index(options.until) + 1])
        if options.all_but_head:
            frozen |= self._of_groups(self._order) - self._of_groups(["head"])
        for begin, layers in sorted(options.unfreeze.items()):
            found = self._matching(as_list(layers), f"Freeze.unfreeze.{begin}")
            if not found & frozen:
                raise Refused(f"Freeze.unfreeze.{begin}: {layers} is not frozen")
            if epoch >= begin:
                frozen -= found
        if options.unfreeze_every is not None:
            from_the_head = [group for group in reversed(self._order) if self._of_groups([group]) & frozen]
            frozen -= self._of_groups(from_the_head[: (epoch - 1) // options.unfreeze_every])
        return frozen

    def thaws(self) -> bool:
        """Whether what is frozen at first trains later."""
        return bool(self.options.unfreeze or self.options.unfreeze_every)

    def apply(self, epoch: int) -> None:
        """Freeze and unfreeze for `epoch`. Frozen batch norms are put in evaluation mode.

        To be called after `network.train()`, which puts all of them in training mode.
        """
        frozen = self.frozen_in(epoch)
        for name, parameter in self.trainable.items():
            parameter.stop_gradient = name in frozen
        statistics = set()
        for name, layer in self.network.named_sublayers():
            if isinstance(layer, BATCH_NORMS):
                own = {f"{name}.{part}" for part, _ in layer.named_parameters()}
                if own & self.trainable.keys() and not (own & self.trainable.keys()) - frozen:
                    layer.eval()
                    statistics |= own
        self.frozen = frozenset(frozen | statistics)

    def unsaid(self) -> bool:
        """Whether what is frozen differs from what `summary` told last."""
        return self.frozen != self._said

    def summary(self) -> str:
        """'1,548 of 1,123,456 parameters train; frozen: stem, stage1, ...'."""
        self._said = self.frozen
        total = sum(parameter.size for parameter in self.trainable.values())
        still = sum(parameter.size for name, parameter in self.trainable.items() if name in self.frozen)
        line = f"{total - still:,} of {total:,} parameters train"
        whole = [g for g in self._order if not self._of_groups([g]) - self.frozen]
        parts = [g for g in self._order if g not in whole and self._of_groups([g]) & self.frozen]
        named = [*whole, *(f"a part of {group}" for group in parts)]
        return line + (f"; frozen: {', '.join(named)}" if named else "")

    def _of_groups(self, groups: Iterable[str]) -> set[str]:
        wanted = set(groups)
        return {name for name in self.trainable if self._groups.get(name) in wanted}

    def _matching(self, patterns: list[str], place: str) -> set[str]:
        """Parameters whose layer group or whose own name, or the beginning of it, is one of `patterns` (globs)."""
        found: set[str] = set()
        for pattern in patterns:
            one = self._of_groups(group for group in self._order if fnmatchcase(group, pattern))
            one |= {name for name in self.trainable if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")}
            if not one:
                known = {*self._order, *(name.rpartition(".")[0] for name in self.trainable), *self.trainable}
                near = did_you_mean(pattern, known)
                if near.startswith("Known"):
                    near = f"Layer groups: {', '.join(self._order)}."
                raise Refused(f"{place}: '{pattern}' matches no layer group and no parameter. {near}")
            found |= one
        return found
