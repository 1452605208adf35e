"""Channel arithmetic, and the checks of sizes, that the networks share."""

from __future__ import annotations

from ppcls_ext.errors import Refused


def make_divisible(value: float, divisor: int) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and never below 0.9 of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def require_positive(**sizes: int) -> None:
    """Refuse a size (class count, channels ...) that is not a whole number above 0."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Refused(f"{name}: expected a whole number above 0, got {value!r}.")
