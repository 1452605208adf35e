"""The layers of a network by name, and what the namings of several projects have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np

Arrays = dict[str, np.ndarray]


class Layers:
    """The layers of a network, as its tensors name them."""

    def __init__(self, tensors: Collection[str]) -> None:
        self.names = {name.rpartition(".")[0] for name in tensors}
        # (stage, number in the stage) of every block, in the order of the network: of an EfficientNet, of a ResNet
        self.blocks = self._numbers(r"blocks\.(\d{1,3})\.(\d{1,3})\.")
        self.units = self._numbers(r"layer(\d)\.(\d{1,3})\.")

    def _numbers(self, pattern: str) -> list[tuple[int, ...]]:
        found = (re.match(pattern, name) for name in self.names)
        return sorted({tuple(map(int, match.groups())) for match in found if match})


@dataclass(frozen=True)
class Rule:
    """How one project names the layers of one family of ours.

    `layer` is told the name of a layer, without the tensor's own last part, and says what it is called here. `graph`:
    choices of the network that leave no trace in its tensors and that this project always makes. `finish` changes the
    renamed tensors where the project's graph is the same function of other numbers, and says what it did.
    """

    project: str
    layer: Callable[[str, Layers], str | None]
    graph: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Arrays, Collection[str]], tuple[Arrays, str]] | None = None


# --------------------------------------------------------------------------------------------- EfficientNet
# Ours are timm's names: the batch norms of a block are counted, so they shift by one where a block does not expand.

_EXPANDING = {
    "expand": "conv_pw", "expand norm": "bn1", "depthwise": "conv_dw", "depthwise norm": "bn2",
    "reduce": "se.conv_reduce", "excite": "se.conv_expand", "project": "conv_pwl", "project norm": "bn3",
}  # fmt: skip
_PLAIN = {
    "depthwise": "conv_dw", "depthwise norm": "bn1",
    "reduce": "se.conv_reduce", "excite": "se.conv_expand", "project": "conv_pw", "project norm": "bn2",
}  # fmt: skip


def in_block(block: tuple[int, ...], role: str, layers: Layers) -> str | None:
    stage, number = block
    roles = _EXPANDING if f"blocks.{stage}.{number}.conv_pwl" in layers.names else _PLAIN
    return f"blocks.{stage}.{number}.{roles[role]}" if role in roles else None


def in_numbered_block(number: str, role: str, layers: Layers) -> str | None:
    """The same, for a project that counts the blocks of the whole network."""
    return in_block(layers.blocks[int(number)], role, layers) if int(number) < len(layers.blocks) else None
