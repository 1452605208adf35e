"""What a user can cause: each of these is shown as a message, not as a traceback (see `ppcls_ext.cli`)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refused(ValueError):
    """An input was refused before any work was done on it: configuration, data, weights. Exit status 2."""


class RunFailed(RuntimeError):
    """Work that had begun could not go on: a worker died, a loss became infinite. Exit status 3."""


def refuse_all(title: str, problems: Iterable[str], limit: int = 30) -> None:
    """Raise one `Refused` that lists every problem, or return if there is none.

    At most `limit` problems are written out; the rest are counted.
    """
    problems = list(problems)
    if not problems:
        return
    lines = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"  - ... and {len(problems) - limit} more")
    raise Refused("\n".join([f"{title} ({len(problems)} problem{'s' if len(problems) > 1 else ''}):", *lines]))


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
