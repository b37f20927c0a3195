"""The page in a real browser: pictures, a camera, a drawn digit, no network, faults.

Set NCG_OPTAX_SCREENSHOTS to a folder to keep pictures of the page.
"""

import io
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

REASON = 'NOT TESTED, the extra is missing: python -m pip install ".[lens]"'
pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)

import browser as browsers  # noqa: E402
import stand_ins  # noqa: E402

from docs.examples.lens import build, export  # noqa: E402

LENS = pathlib.Path(__file__).parents[2] / "docs" / "examples" / "lens"
ZOO = pathlib.Path(os.environ.get("NCG_OPTAX_ZOO", LENS.parents[2] / "zoo"))
PAGE = ("index.html", "style.css", *(path.name for path in LENS.glob("*.js")))
LIMIT = 16e6  # bytes of the page and one network
FIRST = "document.querySelector('#classes li .name')?.textContent"
READY = "performance.getEntriesByName('ready photographs').length"


def networks():
    """Those of the zoo if there is one with its data, or else the stand-ins."""
    try:
        found = export.photographs(ZOO), export.digits(ZOO)
        return [first(network, 300) for network in found], True
    except (FileNotFoundError, ValueError) as error:
        print(f"The stand-ins are tested, not the real networks: {error}")
        return [stand_ins.photographs(), stand_ins.digits()], False


def first(network, count):
    """The file that the page loads, compared on the first held-out images only."""
    images, labels, logits = network.held
    held = images[:count], labels[:count], {n: x[:count] for n, x in logits.items()}
    return network._replace(weights=(export.SERVED,), held=export.Held(*held))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with all that is served, and the networks in it."""
    if browsers.program() is None:
        pytest.skip("NOT TESTED, there is no Chromium here")
    folder = tmp_path_factory.mktemp("lens")
    for name in PAGE:
        shutil.copy(LENS / name, folder)
    try:
        build.build(LENS)
    except build.BuildError as error:
        pytest.skip(f"NOT TESTED: {error}")
    shutil.copytree(LENS / "vendor", folder / "vendor")
    found, real = networks()
    export.export(found, folder / "models")
    return folder, found, real


@pytest.fixture
def served(site):
    server = browsers.Server(site[0])
    yield server
    server.stop()


@pytest.fixture
def changed(site, tmp_path):
    """A server of a copy of the site, which the test may change, and the folder."""
    folder = tmp_path / "site"
    shutil.copytree(site[0], folder)
    server = browsers.Server(folder)
    yield server, folder
    server.stop()


@pytest.fixture(scope="module")
def shared():
    """A browser for tests that leave nothing behind."""
    found = browsers.Browser()
    yield found
    found.close()


@pytest.fixture
def fresh():
    """Opens browsers with further flags, and closes them."""
    opened = []

    def open_one(*flags, **options):
        opened.append(browsers.Browser(*flags, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def png(path, image):
    Image.fromarray(image).save(path)
    return path


def choose(browser, path):
    """The class that the page names for a picture."""
    browser.run("document.getElementById('classes').replaceChildren()")
    browser.choose("#file", path)
    return browser.until(FIRST)


def keep(browser, name, tmp_path):
    """A picture of the page, which has to have more than one colour."""
    folder = pathlib.Path(os.environ.get("NCG_OPTAX_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = browser.screenshot(folder / name)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
        return image.size


def problems(browser):
    return browser.text("problems")


def test_pictures_have_the_classes_that_jax_sees(site, served, shared, tmp_path):
    network = site[1][0]
    shared.open(served.url)
    shared.until(READY)
    for head in network.cards:
        shared.click(f"input[value={head}]")
        logits = network.held.logits[head]
        # Where the two best are nearly equal, 16 bits may prefer the other one.
        best = np.sort(logits[:40], axis=1)
        clear = np.flatnonzero(best[:, -1] - best[:, -2] > 0.5)[:6]
        assert len(clear) == 6
        for row in clear:
            image = png(tmp_path / "image.png", network.held.images[row])
            expected = network.classes[logits[row].argmax()]
            assert choose(shared, image) == expected, (head, row)
    assert "ms a frame" in shared.text("time")
    assert shared.run("document.querySelectorAll('#classes li').length") == 5
    assert problems(shared) == "" and shared.errors == []
    shared.until("performance.getEntriesByName('stored').length")
    assert all(path.startswith("/") for path in served.requests)


def test_a_switch_of_the_optimizer_looks_again(site, served, shared, tmp_path):
    network = site[1][0]
    one, other = list(network.cards)[:2]
    classes = {n: network.held.logits[n].argmax(1) for n in (one, other)}
    margin = [np.sort(network.held.logits[n], axis=1) for n in (one, other)]
    clear = np.logical_and(*(m[:, -1] - m[:, -2] > 0.4 for m in margin))
    row = np.flatnonzero((classes[one] != classes[other]) & clear)[0]
    shared.open(served.url)
    shared.until(READY)
    choose(shared, png(tmp_path / "image.png", network.held.images[row]))
    for name in (one, other, one):
        shared.click(f"input[value={name}]")
        shared.until(f"{FIRST} === '{network.classes[classes[name][row]]}'")


def test_a_seven_is_drawn_with_the_pointer_and_with_keys(
    site, served, shared, tmp_path
):
    shared.open(served.url)
    shared.until("performance.getEntriesByName('ready digits').length")
    first = "document.querySelector('#digit-classes li .name')?.textContent"
    shared.draw(
        "#board", [(0.3, 0.25), (0.5, 0.25), (0.7, 0.25), (0.58, 0.5), (0.45, 0.8)]
    )
    assert shared.until(first) == "7"
    shared.click("#clear")
    assert not shared.run(first)
    # The pen begins at the top, in the middle.
    corner, down = 7 * ["ArrowRight"], 7 * ["ArrowDown", "ArrowDown", "ArrowLeft"]
    shared.run("document.getElementById('board').focus()")
    shared.press(*5 * ["ArrowLeft"], " ", *corner, *corner[:3], *down, " ")
    assert shared.until(first) == "7"
    assert "Most probable digit: 7" in shared.text("status")
    keep(shared, "digit.png", tmp_path)


def test_a_camera_is_read_frame_by_frame(site, served, fresh, tmp_path):
    network = site[1][0]
    name = next(iter(network.cards))
    logits = network.held.logits[name]
    best = np.sort(logits, axis=1)
    row = (best[:, -1] - best[:, -2])[:200].argmax()
    # The picture in the middle of a wide frame, with grey beside it.
    side = 480
    large = Image.fromarray(network.held.images[row]).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    frame = Image.new("RGB", (640, side), (90, 90, 90))
    frame.paste(large, (80, 0))
    film = io.BytesIO()
    for _ in range(10):
        frame.save(film, "jpeg", quality=95, subsampling=0)
    path = tmp_path / "film.mjpeg"
    path.write_bytes(film.getvalue())
    browser = fresh(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-video-capture={path}",
    )
    browser.open(served.url)
    browser.until(READY)
    browser.click("#camera")
    assert browser.until(FIRST) == network.classes[logits[row].argmax()]
    text = "document.getElementById('time').innerText"
    shown = browser.until(f"/[1-9].*frames/.test({text}) && {text}")
    assert "frames a second" in shown
    keep(browser, "camera.png", tmp_path)
    browser.click("#camera")
    assert browser.run("document.getElementById('video').srcObject.active") is False
    assert problems(browser) == ""


def test_one_camera_at_a_time_and_one_that_is_removed(served, fresh):
    browser = fresh(
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"
    )
    browser.before_every_page(
        """
        window.streams = [];
        const devices = navigator.mediaDevices, ask = devices.getUserMedia;
        devices.getUserMedia = async (wanted) => {
          streams.push(await ask.call(devices, wanted));
          return streams.at(-1);
        };"""
    )
    browser.open(served.url)
    browser.until(READY)
    browser.run("for (let i = 0; i < 3; i++) document.getElementById('camera').click()")
    browser.until("!document.getElementById('video').hidden")
    browser.run("document.getElementById('turn').focus()")
    browser.run("document.getElementById('turn').click()")
    browser.until("streams.length === 2 && document.activeElement.id === 'turn'")
    assert browser.run("streams.map((s) => s.active)") == [False, True]
    browser.run("streams[1].getTracks()[0].dispatchEvent(new Event('ended'))")
    assert "switched off or removed" in problems(browser)
    assert browser.text("camera") == "Start the camera"
    assert browser.run("streams.some((s) => s.active)") is False


def test_pictures_of_any_shape(served, shared, tmp_path):
    shared.open(served.url)
    shared.until(READY)
    shares = "document.getElementById('classes').innerText"
    random = np.random.default_rng(0)
    figure = Image.fromarray(random.integers(0, 255, (6, 4, 3), np.uint8))
    figure = figure.resize((120, 180), Image.Resampling.BICUBIC)
    # What is transparent is white.
    mask = Image.new("L", figure.size)
    mask.paste(255, (20, 60, 70, 120))
    white = Image.new("RGB", figure.size, "white")
    white.paste(figure, mask=mask)
    expected = choose(shared, png(tmp_path / "white.png", np.asarray(white)))
    found = shared.run(shares)
    figure.putalpha(mask)
    assert choose(shared, png(tmp_path / "clear.png", np.asarray(figure))) == expected
    assert shared.run(shares) == found
    # A camera that was held upright writes so into the file.
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, upright = tmp_path / "turned.jpg", tmp_path / "upright.jpg"
    white.rotate(90, expand=True).save(turned, exif=exif, quality=100, subsampling=0)
    white.save(upright, quality=100, subsampling=0)
    assert choose(shared, upright) == choose(shared, turned)
    for size in ((1, 1), (1, 3000), (6000, 4000)):
        path = tmp_path / "plain.png"
        Image.new("RGB", size, (200, 30, 40)).save(path)
        choose(shared, path)
        assert problems(shared) == "", size


def test_a_new_version_is_seen_and_a_missing_network_is_no_obstacle(changed, fresh):
    server, folder = changed
    (folder / "models" / f"photographs-{export.SERVED}.onnx").unlink()
    (folder / "other.html").write_text("another page of the server")
    browser = fresh()
    browser.open(server.url)
    browser.until("performance.getEntriesByName('stored').length")
    assert "photographs cannot be loaded" in problems(browser)
    page = folder / "index.html"
    page.write_text(page.read_text().replace("<h1>Lens</h1>", "<h1>Later</h1>"))
    browser.open(server.url)
    assert browser.run("document.querySelector('h1').innerText") == "Later"
    browser.until("performance.getEntriesByName('ready digits').length")
    browser.run("fetch('other.html').then((answer) => answer.text())")
    kept = browser.run(
        """caches.keys().then(([name]) => caches.open(name))
        .then((cache) => cache.keys())
        .then((all) => all.map((request) => request.url))"""
    )
    assert any("digits" in url for url in kept)
    assert not any("other" in url or "photographs" in url for url in kept)
    server.stop()
    browser.open("about:blank")
    browser.open(server.url)
    browser.until("performance.getEntriesByName('ready digits').length")
    assert browser.run("document.querySelector('h1').innerText") == "Later"


def test_it_works_without_a_network_after_one_visit(site, fresh, tmp_path):
    network = site[1][0]
    name = next(iter(network.cards))
    logits = network.held.logits[name]
    row = np.ptp(logits[:40], axis=1).argmax()
    server = browsers.Server(site[0])
    browser = fresh()
    browser.open(server.url)
    browser.until("performance.getEntriesByName('stored').length")
    server.stop()
    browser.open("about:blank")
    browser.open(server.url)
    browser.until(READY)
    found = choose(browser, png(tmp_path / "image.png", network.held.images[row]))
    assert found == network.classes[logits[row].argmax()]
    assert problems(browser) == ""


def test_what_a_browser_lacks_is_one_sentence(site, served, fresh, tmp_path):
    image = png(tmp_path / "image.png", site[1][0].held.images[0])
    browser = fresh()
    browser.open(served.url)  # a browser without a camera
    browser.until(READY)
    browser.click("#camera")
    browser.until("document.getElementById('problems').innerText")
    assert "There is no camera that can be used" in problems(browser)
    assert choose(browser, image)
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    browser.choose("#file", text)
    browser.until("document.getElementById('problems').innerText.includes('text')")
    assert problems(browser) == "text.png is not a picture that this browser can read."
    assert choose(browser, image) and problems(browser) == ""
    browser.before_every_page("delete globalThis.WebAssembly")
    browser.open(served.url)
    browser.until("document.getElementById('problems').innerText")
    assert "no WebAssembly" in problems(browser)
    browser.choose("#file", image)
    browser.until("document.getElementById('hint').hidden")  # it is shown all the same
    assert "No network can be run" in browser.text("status")


def test_a_damaged_network_is_not_used(site, changed, fresh):
    server, folder = changed
    damaged = folder / "models" / f"photographs-{export.SERVED}.onnx"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    browser = fresh()
    browser.open(server.url)
    browser.until("performance.getEntriesByName('ready digits').length")
    assert "photographs is damaged" in problems(browser)
    browser.draw("#board", [(0.5, 0.2), (0.5, 0.5), (0.5, 0.8)])
    browser.until("document.querySelectorAll('#digit-classes li').length === 5")
    # Repaired, it is used at the next visit: the damaged one was not kept.
    browser.until("performance.getEntriesByName('stored').length")
    shutil.copy(site[0] / "models" / damaged.name, damaged)
    browser.open(server.url)
    browser.until(READY)


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_the_page_fits(device, site, served, fresh, tmp_path):
    network = site[1][0]
    browser = fresh()
    if device == "phone":
        browser.narrow()
    browser.open(served.url)
    browser.until(READY)
    choose(browser, png(tmp_path / "image.png", network.held.images[0]))
    browser.draw("#board", [(0.3, 0.25), (0.7, 0.25), (0.45, 0.8)])
    browser.until("document.querySelectorAll('#digit-classes li').length === 5")
    wide = (
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )
    assert browser.run(wide)
    keep(browser, f"{device}.png", tmp_path)
    # All that can be used has a name and can be reached by the keyboard, in this order.
    script = """(() => {
      const all = document.querySelectorAll("button, input, canvas, a, [tabindex]");
      const seen = [...all].filter((e) => e.checkVisibility());
      return seen.map((e) => [
        e.id || e.value || e.className || e.tagName, e.tabIndex,
        e.ariaLabel || e.labels?.[0]?.textContent || e.textContent ||
          e.getAttribute("aria-labelledby"),
      ]);
    })()"""
    found = {name: (index, label) for name, index, label in browser.run(script)}
    assert {"camera", "file", "board", "clear", *network.cards} <= set(found)
    for name, (index, label) in found.items():
        assert label and (index == 0 or name == "picture"), name


def test_page_and_one_network_are_small(site):
    folder, found, real = site
    size = sum(path.stat().st_size for path in (folder / "vendor").rglob("*.*js"))
    size += sum(path.stat().st_size for path in (folder / "vendor").rglob("*.wasm"))
    size += sum((folder / name).stat().st_size for name in PAGE)
    size += (folder / "models" / "models.json").stat().st_size
    size += (folder / "models" / f"photographs-{export.SERVED}.onnx").stat().st_size
    print(f"{size / 1e6:.2f} MB, {'real' if real else 'stand-in'} network")
    assert size <= LIMIT


def test_the_page_measures_first_answer_and_frames(site, served, fresh, tmp_path):
    network, real = site[1][0], site[2]
    image = png(tmp_path / "image.png", network.held.images[0])
    browser = fresh()
    browser.open(served.url)
    browser.choose("#file", image)  # before the network is there
    browser.until("performance.getEntriesByName('answer').length")
    first = browser.run("performance.getEntriesByName('answer')[0].startTime")
    times = []
    for head in 5 * list(network.cards):
        browser.click(f"input[value={head}]")
        text = browser.text("time")
        times.append(float(re.match(r"[\d.]+", text)[0]))
    message = f"first answer {first:.0f} ms after the visit, {times[-1]:.1f} ms a frame"
    print(message, "" if real else "(a small stand-in)")
    # The targets are 3,000 and 125, on a machine that does nothing else.
    assert first > 0 and len(times) == 5 * len(network.cards) and min(times) > 0
