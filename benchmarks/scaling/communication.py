"""What a compiled program sends between devices, read off its HLO."""

import math
import re
from typing import NamedTuple

KINDS = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
# `%name = (f32[2,3]{1,0}, f32[]) all-reduce(...)`, or `-start(` if asynchronous.
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One operation that sends something, wherever in the program it stands."""

    kind: str  # such as ``all-reduce``
    dtypes: tuple[str, ...]  # of the arrays it sends, without repetition
    elements: int  # how many numbers it sends, once
    bytes: int  # their size


def collectives(hlo: str) -> list[Collective]:
    """All operations of a program (`compiled.as_text()`) that communicate.

    One in a loop's body counts once, as do the two branches of a condition.
    """
    found = []
    for shapes, kind in _INSTRUCTION.findall(hlo):
        arrays = [
            (dtype, math.prod(map(int, filter(None, sides.split(",")))))
            for dtype, sides in _ARRAY.findall(shapes)
        ]
        dtypes = tuple(sorted({dtype for dtype, _ in arrays}))
        elements = sum(count for _, count in arrays)
        size = sum(_size(dtype) * count for dtype, count in arrays)
        found.append(Collective(kind, dtypes, elements, size))
    return found


def _size(dtype: str) -> int:
    """Bytes of one number: `f32` has 4, a truth value 1."""
    return 1 if dtype == "pred" else max(1, int(re.sub(r"\D", "", dtype)) // 8)
