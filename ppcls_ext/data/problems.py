"""Everything that is wrong with an input, in one message, however much it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from ppcls_ext.errors import Refused


class Problems:
    """Collects problems: the first `limit` in words, the rest counted, so that a million bad lines cost no memory."""

    def __init__(self, title: str, limit: int = 20) -> None:
        self.title = title
        self.count = 0
        self.hints: list[str] = []
        self._limit = limit
        self._texts: list[str] = []

    def add(self, texts: Iterable[str], count: int) -> None:
        """Enter `count` problems; of their `texts` only as many are drawn as are shown."""
        self._texts += itertools.islice(texts, self._limit - len(self._texts))
        self.count += count

    def refuse(self) -> None:
        """Raise `Refused` with every problem, or return if there is none."""
        if not self.count:
            return
        lines = [f"{self.title} ({self.count} problem{'s' if self.count > 1 else ''}):"]
        lines += [f"  - {text}" for text in self._texts]
        if self.count > len(self._texts):
            lines.append(f"  - ... and {self.count - len(self._texts)} more")
        raise Refused("\n".join([*lines, *self.hints]))
