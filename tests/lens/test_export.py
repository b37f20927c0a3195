"""Files of ONNX compute what JAX computes, and what does not is refused."""

import json
import os
import pathlib
import sys
from hashlib import sha256

import numpy as np
import pytest

REASON = 'the extra is missing: python -m pip install ".[lens]"'
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

import stand_ins  # noqa: E402

from docs.examples.lens import export, graph  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]


def run(model, images, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return export.logits(path, images)


@pytest.fixture(scope="module")
def photographs():
    return stand_ins.photographs()


@pytest.fixture(scope="module")
def digits():
    return stand_ins.digits(steps=20)


@pytest.mark.parametrize(
    ("weights", "error"), [("float32", 1e-4), ("half", 0.02), ("int8", 0.2)]
)
def test_mobilenet_is_that_of_flax(photographs, weights, error, tmp_path):
    held = photographs.held
    found = run(photographs.build(weights), held.images, tmp_path)
    assert list(found) == list(stand_ins.OPTIMIZERS)
    for name, expected in held.logits.items():
        assert np.ptp(expected) > 2
        np.testing.assert_allclose(found[name], expected, rtol=error, atol=error)


def test_images_of_any_number_and_size(photographs, tmp_path):
    network, variables = stand_ins.backbone()
    heads = {"adam": stand_ins.init_dense((stand_ins.HEAD, 10), 0)}
    model = graph.mobilenet(variables, heads, stand_ins.SIZE, stages=stand_ins.STAGES)
    for count, side in ((1, 32), (3, stand_ins.SIZE), (2, 20)):
        images = stand_ins.blobs(count, side)
        expected = stand_ins.seen_by_jax(network, variables, heads, images)["adam"]
        found = run(model, images, tmp_path)["adam"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_network_for_digits_is_that_of_the_scenario(digits, tmp_path):
    found = run(digits.build("float32"), digits.held.images, tmp_path)
    np.testing.assert_allclose(
        found["adam"], digits.held.logits["adam"], rtol=1e-4, atol=1e-4
    )


def test_smaller_weights_make_smaller_files(photographs):
    large, half, small = (
        sum(a.ByteSize() for a in photographs.build(weights).graph.initializer)
        for weights in export.WEIGHTS
    )
    assert half < 0.6 * large and small < 0.9 * half


def test_the_manifest_describes_the_files(photographs, digits, tmp_path):
    export.export([photographs, digits], tmp_path)
    manifest = json.loads((tmp_path / "models.json").read_text())
    for network, said in zip((photographs, digits), manifest["networks"], strict=True):
        assert list(said["files"]) == list(network.weights)
        for file in said["files"].values():
            content = (tmp_path / file["file"]).read_bytes()
            assert len(content) == file["bytes"]
            assert sha256(content).hexdigest() == file["sha256"]
        held = network.held
        for head in said["heads"]:
            right = held.logits[head["name"]].argmax(1) == held.labels
            assert head["accuracy"] == pytest.approx(right.mean(), abs=0.01)


@pytest.mark.parametrize("weights", ["float32", "half"])
def test_a_file_that_computes_something_else_is_removed(photographs, weights, tmp_path):
    held = photographs.held
    wrong = {name: logits[:, ::-1] for name, logits in held.logits.items()}
    network = photographs._replace(
        weights=(weights,), held=held._replace(logits=wrong, labels=9 - held.labels)
    )
    with pytest.raises(export.ParityError):
        export.write(network, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_logit_may_not_be_off_by_more_than_the_tolerance(photographs, tmp_path):
    name, held = "sgd", photographs.held
    logits = held.logits[name]
    export.check("float32", logits + 5e-5, name, held)
    with pytest.raises(export.ParityError, match="a logit is off by 1.0e"):
        export.check("float32", logits + 1e-2 * (logits == logits.max()), name, held)


def test_a_zoo_without_checkpoints_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint of mnist_cnn"):
        export.checkpoints(tmp_path, "mnist_cnn")


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch):
    for arguments, said in (
        ([str(tmp_path)], "no checkpoint of mobilenet_last_layer"),
        (["--output", __file__], "is a file, not a folder"),
    ):
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with pytest.raises(SystemExit, match=said):
            export.main()


@pytest.mark.slow
def test_the_zoo_is_exported(tmp_path):
    directory = pathlib.Path(os.environ.get("NCG_OPTAX_ZOO", ROOT / "zoo"))
    try:
        networks = [export.photographs(directory), export.digits(directory)]
    except (FileNotFoundError, ValueError) as error:
        pytest.skip(f"NOT TESTED, the real networks are missing: {error}")
    manifest = export.export(networks, tmp_path)  # raises where JAX differs
    assert [len(network["heads"]) for network in manifest["networks"]] == [3, 1]
    for network in manifest["networks"]:
        for file in network["files"].values():
            for said in file["heads"].values():
                assert abs(said["accuracy"] - said["jax_accuracy"]) <= 0.01
