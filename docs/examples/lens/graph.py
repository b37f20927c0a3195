"""Networks of the benchmarks as graphs of ONNX, for a phone or a browser.

The graphs are built node by node instead of being traced. A trace of the benchmarks'
convolutions has shifted copies in place of a convolution, and batch normalisation as
five more operations a layer. Here a layer is one convolution whose weights have the
normalisation in them.

A graph takes bytes: images of shape (n, height, width, channels) and any n. Everything
else, the enlargement and the scaling of the numbers, is a part of it. It has one output
for each head: logits of shape (n, classes).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.scenarios._images import DEVIATION, MEAN
from benchmarks.scenarios._mobilenet import STAGES, Stage
from benchmarks.scenarios.mnist import STRIDE

Weights = Literal["float32", "half", "int8"]
OPSET, IR = 18, 8
INPUT = "images"
EPSILON = 1e-5  # of batch normalisation in Flax


class Graph:
    """A graph that grows: every method appends nodes and returns their output.

    Args:
        weights: how weights are stored. ``half`` has 16 bits each; ``int8`` has 8 bits
            in the convolutions of one pixel, nearly all weights of a MobileNetV2, with
            a scale for each output channel, and 16 bits elsewhere. All computation is
            in 32 bits: what runs the graph converts the weights once, as it loads them.
    """

    def __init__(self, weights: Weights = "float32"):
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """One node with one output."""
        name = attributes.pop("name", f"{operation}_{len(self.nodes)}")
        node = helper.make_node(operation, list(inputs), [name], **attributes)
        self.nodes.append(node)
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """An array that is stored as it is."""
        name = f"array_{len(self.arrays)}"
        array = np.ascontiguousarray(value, dtype)
        self.arrays.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, value: np.ndarray) -> str:
        """An array that is stored as ``weights`` says, output channels first."""
        if self.weights == "float32":
            return self.constant(value)
        if self.weights == "half" or value.shape[2:] != (1, 1):
            stored = self.constant(value, np.float16)
            return self.add("Cast", stored, to=TensorProto.FLOAT)
        value = np.asarray(value, np.float32)
        scale = np.abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True) / 127
        scale = np.where(scale > 0, scale, 1.0)
        stored = self.constant(np.round(value / scale), np.int8)
        number = self.add("Cast", stored, to=TensorProto.FLOAT)
        return self.add("Mul", number, self.constant(scale))

    def pixels(self) -> str:
        """The input as numbers from 0 to 255, channels before rows and columns."""
        number = self.add("Cast", INPUT, to=TensorProto.FLOAT)
        return self.add("Transpose", number, perm=[0, 3, 1, 2])

    def convolve(
        self, x: str, kernel: np.ndarray, bias: np.ndarray, **attributes: Any
    ) -> str:
        """A convolution, its kernel as JAX has it: (height, width, in, out)."""
        kernel = self.weight(kernel.transpose(3, 2, 0, 1))
        return self.add("Conv", x, kernel, self.constant(bias), **attributes)

    def head(self, features: str, layer: Mapping[str, Any], name: str) -> str:
        """The logits of a dense layer: an output of the graph."""
        matrix, bias = np.asarray(layer["w"]).T, self.constant(layer["b"])
        return self.add(
            "Gemm", features, self.weight(matrix), bias, transB=1, name=name
        )

    def model(
        self,
        heads: Mapping[str, int],
        channels: int,
        sides: Sequence[int | str],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The whole of it, checked."""
        images = helper.make_tensor_value_info(
            INPUT, TensorProto.UINT8, ["n", *sides, channels]
        )
        logits = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", classes])
            for name, classes in heads.items()
        ]
        graph = helper.make_graph(self.nodes, "network", [images], logits, self.arrays)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="ncg_optax",
            ir_version=IR,
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model


def mobilenet(
    variables: Mapping[str, Any],
    heads: Mapping[str, Any],
    size: int,
    weights: Weights = "float32",
    stages: tuple[Stage, ...] = STAGES,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """MobileNetV2 with several last layers: ``logits = features @ w + b`` for each.

    Args:
        variables: of `MobileNetV2`: ``params`` and ``batch_stats``.
        heads: by name of the output, the last layer as `benchmarks` has it.
        size: height and width that images of any size are brought to.
        weights: how weights are stored, see `Graph`.
        stages: the blocks of the network.
        metadata: further notes in the file.
    """
    graph = Graph(weights)
    sizes = graph.constant([size, size], np.int64)
    x = graph.add(
        "Resize", graph.pixels(), "", "", sizes, axes=[2, 3], mode="linear",
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    # (x / 255 - mean) / deviation as one product and one sum
    scale = 1 / (255 * np.array(DEVIATION))
    shift = -np.array(MEAN) / np.array(DEVIATION)
    column = (1, 3, 1, 1)
    x = graph.add("Mul", x, graph.constant(scale.reshape(column)))
    x = graph.add("Add", x, graph.constant(shift.reshape(column)))

    def layer(x: str, *path: str, stride: int = 1, linear: bool = False) -> str:
        kernel, bias, depthwise = _folded(variables, path)
        pad = (kernel.shape[0] - 1) // 2
        x = graph.convolve(
            x, kernel, bias, strides=[stride, stride], pads=[pad] * 4,
            group=kernel.shape[3] if depthwise else 1,
        )  # fmt: skip
        return x if linear else graph.add("Clip", x, zero, six)

    zero, six = graph.constant(0.0), graph.constant(6.0)
    x = layer(x, "features_0", stride=2)
    index, width = 0, variables["batch_stats"]["features_0"]["norm"]["mean"].size
    for stage in stages:
        for place in range(stage.count):
            index += 1
            block, stride = f"features_{index}", stage.stride if place == 0 else 1
            h = x if stage.expansion == 1 else layer(x, block, "expand")
            h = layer(h, block, "depthwise", stride=stride)
            h = layer(h, block, "project", linear=True)
            same = stride == 1 and width == stage.channels
            x, width = (graph.add("Add", x, h) if same else h), stage.channels
    x = layer(x, f"features_{index + 1}")
    features = graph.add("Flatten", graph.add("GlobalAveragePool", x), axis=1)
    for name, (last,) in heads.items():
        graph.head(features, last, name)
    classes = {name: len(last["b"]) for name, (last,) in heads.items()}
    return graph.model(classes, 3, ("height", "width"), metadata or {})


def cnn(
    networks: Mapping[str, Any],
    weights: Weights = "float32",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The convolutional network of the scenario ``mnist_cnn``.

    Args:
        networks: by name of the output, the parameters. Each has all of its layers.
        weights: how weights are stored, see `Graph`.
        metadata: further notes in the file.
    """
    graph = Graph(weights)
    pixels = graph.add("Mul", graph.pixels(), graph.constant(1 / 255))
    classes = {}
    for name, params in networks.items():
        x = pixels
        for layer in params["convolutions"]:
            kernel, bias = np.asarray(layer["w"]), np.asarray(layer["b"])
            x = graph.convolve(
                x, kernel, bias, strides=[STRIDE, STRIDE], auto_pad="SAME_UPPER"
            )
            x = graph.add("Relu", x)
        x = graph.add("Transpose", x, perm=[0, 2, 3, 1])  # as JAX lays it out
        (dense,) = params["dense"]
        graph.head(graph.add("Flatten", x, axis=1), dense, name)
        classes[name] = len(dense["b"])
    return graph.model(classes, 1, (28, 28), metadata or {})


def _folded(
    variables: Mapping[str, Any], path: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Kernel and bias of a layer with its normalisation, and whether it is depthwise.

    The normalisation is ``y = scale (x - mean) / sqrt(var + eps) + bias``.
    """
    params, statistics = variables["params"], variables["batch_stats"]
    for name in path:
        params, statistics = params[name], statistics[name]
    kernel = np.asarray(params["convolution"]["kernel"], np.float64)
    scale, bias = (np.asarray(params["norm"][n], np.float64) for n in ("scale", "bias"))
    mean, var = (np.asarray(statistics["norm"][n]) for n in ("mean", "var"))
    scale = scale / np.sqrt(var.astype(np.float64) + EPSILON)
    return kernel * scale, bias - mean * scale, path[-1] == "depthwise"
