"""What the page is made of: its parts name the same files and the same version."""

import pathlib
import re
import shutil
import subprocess

import pytest

from docs.examples.lens import build

LENS = pathlib.Path(build.__file__).parent


def source(name):
    return (LENS / name).read_text(encoding="utf8")


def test_page_and_worker_want_the_version_that_is_copied():
    for name in ("networks.js", "sw.js"):
        found = re.findall(r"onnxruntime-web-([\d.]+)/", source(name))
        assert found == [build.VERSION], name


def test_the_worker_keeps_all_files_of_the_page():
    kept = re.search(r"const PAGE = \[(.*?)\]", source("sw.js"), re.DOTALL)[1]
    linked = re.findall(r'(?:src|href)="([\w.]+)"', source("index.html"))
    scripts = {path.name for path in LENS.glob("*.js")} - {"sw.js"}
    imported = {
        name
        for script in scripts
        for name in re.findall(r'from "\./([\w.]+)"', source(script))
    }
    assert linked == ["style.css", "lens.js"] and imported | {"lens.js"} == scripts
    for name in [*linked, *imported, *build.FILES]:
        assert f'{name}"' in kept or f"{name}`" in kept, name


def test_every_element_that_the_script_wants_is_on_the_page():
    scripts = "".join(source(name) for name in ("lens.js", "board.js", "page.js"))
    wanted = set(re.findall(r'find\("([\w-]+)"\)', scripts))
    there = set(re.findall(r'id="([\w-]+)"', source("index.html")))
    assert len(wanted) > 15 and wanted <= there


def test_nothing_is_fetched_from_elsewhere():
    policy = re.search(r'content="(default-src [^"]*)"', source("index.html"))[1]
    assert policy.startswith("default-src 'self';") and "http" not in policy
    for path in LENS.glob("*.js"):
        assert "http" not in path.read_text(encoding="utf8").replace("HTTPS", ""), path


def test_a_missing_npm_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(build.BuildError, match="npm is not installed"):
        build.build(tmp_path)


@pytest.mark.parametrize(
    ("code", "content", "said"),
    [(1, None, "cannot download"), (0, b"another package", "another checksum")],
)
def test_another_package_is_refused(monkeypatch, tmp_path, code, content, said):
    def pack(command, cwd, **options):
        if content:
            pathlib.Path(cwd, "package.tgz").write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", "no network")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", pack)
    with pytest.raises(build.BuildError, match=said):
        build.build(tmp_path)
    assert not list(tmp_path.iterdir())
