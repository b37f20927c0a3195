"""The tables on the pages of the benchmarks are what the commands write today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = (
    "benchmarks.md",
    "poster.md",
    "minibatch.md",
    "small-data.md",
    "scientific.md",
)
CUTEST = [f"benchmarks/results/cutest{part}.json" for part in ("", "_large", "_bounds")]


def test_the_tables_of_the_pages_are_those_of_the_results(tmp_path):
    pages = (ROOT / "docs" / name for name in PAGES)
    text = "".join(page.read_text(encoding="utf8") for page in pages)
    copy = tmp_path / "pages.md"
    copy.write_text(text, encoding="utf8")
    for command in (
        ["benchmarks", "table"],
        *(["benchmarks.cutest", "table", path] for path in CUTEST),
        ["benchmarks", "small-data"],
        ["benchmarks", "pinn"],
        ["benchmarks", "pinn", "--recommended"],
    ):
        subprocess.run(
            [sys.executable, "-m", *command, "--readme", str(copy)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    assert copy.read_text(encoding="utf8") == text
    assert text.count("-table:begin -->\n| ") == 8  # the poster's has a sentence first
