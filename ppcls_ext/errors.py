"""What a user can cause: each of these is shown as a message, not as a traceback (see `ppcls_ext.cli`)."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable


class Refused(ValueError):
    """An input was refused before any work was done on it: configuration, data, weights. Exit status 2."""


class RunFailed(RuntimeError):
    """Work that had begun could not go on: a worker died, a loss became infinite. Exit status 3."""


class FirstFailed(RunFailed):
    """Work of the first process, for which this one waited, could not go on; the first says why."""


class Problems:
    """Everything that is wrong with one input, for one message: the first `limit` in words, the rest counted.

    A million bad lines cost no memory. `hints` stand after the list.
    """

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


def refuse_all(title: str, problems: Iterable[str], limit: int = 30) -> None:
    """Raise one `Refused` that lists `problems`, or return if there is none."""
    texts, collected = list(problems), Problems(title, limit)
    collected.add(texts, len(texts))
    collected.refuse()


def did_you_mean(name: str, known: Iterable[str], also: Iterable[str] = ()) -> str:
    """A sentence fragment that offers the nearest known name, or the known names when none is near.

    `also` names what is offered where it is near, but not listed.
    """
    known = sorted({str(k) for k in known})
    choices = sorted({*known, *map(str, also)})
    close = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.6)
    if not close:
        by_lower = {k.lower(): k for k in choices}
        close = [by_lower[m] for m in difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)]
    if close:
        return f"Did you mean '{close[0]}'?"
    if not known:
        return "None is known here."
    return f"Known: {', '.join(known[:40])}{' ...' if len(known) > 40 else ''}."
