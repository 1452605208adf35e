"""The one class map of a model: class index -> name. The training split defines it, the checkpoint carries it.

As a file it is PaddleClas's `class_id_map_file`: one `index name` per line, the name being all that follows the first
white space ("0 tench, Tinca tinca").
"""

from __future__ import annotations

from pathlib import Path

from ppcls_ext.errors import Problems, Refused
from ppcls_ext.files import write_file

CLASS_MAP = "class_map.txt"


def read_class_map(file: str) -> list[str]:
    """The class names in the order of their indices; lines may stand in any order.

    Raises `Refused`, with file and line, for a file that is not UTF-8, blank and malformed lines, an index that stands
    twice, and indices that are missing.
    """
    names: dict[int, str] = {}
    line_of: dict[int, int] = {}
    problems = Problems(f"{file}: not a usable class map")
    for number, line in enumerate(_text(file).splitlines(), 1):
        wrong = ""
        index, _, name = line.strip().replace("\t", " ", 1).partition(" ")
        if not index:
            wrong = "blank line"
        elif not (index.isascii() and index.isdigit() and name.strip()):
            wrong = f"expected 'index name', got {line!r}"
        elif int(index) in names:
            wrong = f"class {int(index)} stands already on line {line_of[int(index)]}"
        else:
            names[int(index)] = name.strip()
            line_of[int(index)] = number
        if wrong:
            problems.add([f"{file}:{number}: {wrong}"], 1)
    for before, after in zip([-1, *sorted(names)], sorted(names)):
        if after > before + 1:
            gap = f"class {before + 1} is" if after == before + 2 else f"classes {before + 1} to {after - 1} are"
            problems.add([f"{file}:{line_of[after]}: class {after} stands here, but {gap} missing"], 1)
    problems.refuse()
    return [names[index] for index in range(len(names))]


def _text(file: str) -> str:
    try:
        # utf-8-sig: Windows editors begin a file with a byte order mark.
        text = Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Refused(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise Refused(f"{file}:{line}: not UTF-8; save the class map as UTF-8") from error
    if not text.strip():
        raise Refused(f"{file}: is empty; expected one 'index name' per line")
    return text.replace("\r\n", "\n")


def write_class_map(file: str, names: list[str]) -> None:
    """Write a class map in one step: a reader sees the old file or the new one. Reading it gives `names` again."""
    check_class_names(names, file)
    write_file(Path(file), "".join(f"{index} {name}\n" for index, name in enumerate(names)))


def check_class_names(names: list[str], place: str) -> None:
    """Refuse names that a class map cannot hold: empty, with white space at an end, with line breaks, not UTF-8."""
    bad = [name for name in names if not _can_be_written(name)]
    problems = Problems(f"{place}: class names that a class map cannot hold")
    problems.add((f"{name!r}: rename it; no line breaks, no blanks at the ends, UTF-8" for name in bad), len(bad))
    problems.refuse()


def _can_be_written(name: str) -> bool:
    is_utf8 = not any("\ud800" <= character <= "\udfff" for character in name)
    return is_utf8 and name == name.strip() and name.splitlines() == [name]


def agreed_class_names(
    stored: list[str] | None, stored_as: str, own: list[str] | None, own_as: str, num_classes: int | None
) -> list[str] | None:
    """The class names of a dataset: the stored ones, else its own; refused if the two, or the network, disagree."""
    if stored is not None and own is not None and stored != own:
        if len(stored) != len(own):
            raise Refused(f"{own_as} has {len(own)} classes, but {stored_as} has {len(stored)}")
        index = next(i for i, (a, b) in enumerate(zip(stored, own)) if a != b)
        raise Refused(f"{own_as}: class {index} is {own[index]!r}, but in {stored_as} it is {stored[index]!r}")
    names, names_as = (own, own_as) if stored is None else (stored, stored_as)
    if names is not None and num_classes is not None and len(names) != num_classes:
        shown = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise Refused(
            f"{names_as} has {len(names)} classes, but the network has {num_classes}: set Arch.class_num={len(names)}. "
            f"The classes are {shown}"
        )
    return names
