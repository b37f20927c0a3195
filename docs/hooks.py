"""What the site shows but nobody types twice: figures, statuses, defaults, timings.

A line of a page such as ``<!-- statuses -->`` or ``<!-- scaling: weak -->`` is replaced
by what a function of this file makes from the package, the README, the notebooks or the
stored results. The table `PARTS` below has all of them. A part that does not exist any
more is an error.

Pages link to files outside of ``docs`` as they lie in the repository
(``../notebooks/pinn.ipynb``), so that the links work where the Markdown is read. The
site has copies of these files at the same paths without ``../``.

Equations become MathML, which browsers draw by themselves: no script, and nothing to
fetch.
"""

import base64
import html
import importlib.util
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"
MARKER = re.compile(r"^<!-- (?P<kind>[\w ]+)(?:: (?P<what>.*))? -->$", re.MULTILINE)
# What the benchmarks write between, a table each.
KEPT = re.compile(r"^<!-- [\w-]+:(?:begin|end) -->$", re.MULTILINE)
# A number with its range in a table: the range goes to a line of its own.
RANGE = re.compile(r" (\([^()|\n]* – [^()|\n]*\)) \|")
OUTSIDE = re.compile(r"\]\(\.\./(?=benchmarks/|notebooks/)")
EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)

TEXT = re.compile(r"\\(?:text|mathrm)\{[^}]*\}")  # where "\_" is not understood
# A bar alone would be taken for an operator between two terms, with space around it.
BAR = re.compile(r'<mo(?: stretchy="false")?>(&#x0007C;)</mo>')


def figures():
    """Paths of the figures of the benchmarks, relative to the repository."""
    found = sorted((ROOT / RESULTS).glob("**/*.png"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def notebooks():
    """Paths of the notebooks, relative to the repository."""
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def pictures(path):
    """The pictures among the outputs of a notebook, as PNG files."""
    cells = json.loads((ROOT / path).read_text(encoding="utf8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    found = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode(png) for png in found if png]


def picture_path(path, number):
    """Where the site has a picture of a notebook."""
    return f"{path.removesuffix('.ipynb')}_{number}.png"


def on_files(files, config):
    """Adds figures, notebooks and their pictures to the site."""
    for path in [*figures(), *notebooks()]:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path in notebooks():
        for number, png in enumerate(pictures(path)):
            name = picture_path(path, number)
            files.append(File.generated(config, name, content=png))
    return files


def on_page_markdown(markdown, page, **_):
    """Replaces the markers."""

    def part(match):
        kind, what = match["kind"], (match["what"] or "").strip()
        if kind not in PARTS:
            raise PluginError(f"{page.file.src_uri}: unknown marker {match[0]}")
        return PARTS[kind](what)

    text = MARKER.sub(part, KEPT.sub("", markdown))
    return OUTSIDE.sub("](", RANGE.sub(r"<br>\1 |", text))


def on_page_content(content, **_):
    """Turns the equations into MathML."""

    def mathml(match):
        display = "block" if match["tag"] == "div" else "inline"
        latex = html.unescape(match["latex"]).strip()
        # The same thing, but the converter knows only the latter.
        latex = latex.replace("{aligned}", "{align*}")
        latex = TEXT.sub(lambda m: m[0].replace(r"\_", "_"), latex)
        return BAR.sub(
            r'<mo form="prefix" stretchy="false">\1</mo>',
            convert(latex, display=display),
        )

    return EQUATION.sub(mathml, content)


def readme_introduction(_):
    """The README up to its first section, without the title."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    return text.partition("\n")[2].partition("\n## ")[0].strip()


def figure_title(path):
    """What a figure shows, from the folders it lies in: the data, mostly."""
    *folders, name = Path(path).relative_to(RESULTS).with_suffix("").parts
    return " · ".join(folders + ([] if name == "curves" else [name])).replace("_", " ")


def figure_gallery(_):
    """All figures, one below the other, each under the name of its data."""
    return "\n\n".join(
        f"### {figure_title(path)}\n\n![{figure_title(path)}]({path})"
        for path in figures()
        if not Path(path).name.startswith("scaling_")
    )


def notebook_picture(what):
    """A picture of a notebook, by its name and the number of the picture."""
    name, _, number = what.partition(" ")
    path = f"notebooks/{name}.ipynb"
    if path not in notebooks() or int(number) >= len(pictures(path)):
        raise PluginError(f"There is no picture {number} in {path}.")
    return f"[![{name}]({picture_path(path, number)})]({path})"


def scaling_part(name):
    """A table of the scaling page, from the results that are stored."""
    path = ROOT / "benchmarks" / "reports" / "scaling.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    try:
        return report.part(name)
    except ValueError as error:
        raise PluginError(f"scaling: {error}") from error


def gpu_tables(_):
    """What was measured on a GPU, or that nothing was."""
    text = scaling_part("gpu")
    return text if "|" in text else "**Nothing was measured on a GPU yet.**"


def compile_times(_):
    """Seconds of compiling: Adam and the presets on all stored data sets."""
    columns = {
        "Adam": ["adam", "adam_minibatch", "adamw_minibatch"],
        "newton_cg": ["newton_cg"],
        "hessian_free": ["hessian_free"],
        "stochastic_hessian_free": ["stochastic_hessian_free"],
    }
    found = {}
    for path in sorted((ROOT / RESULTS).glob("**/*.json")):
        record = json.loads(path.read_text(encoding="utf8"))
        if "compile_seconds" in record and "short" not in path.parts:
            runs = found.setdefault(record["scenario"], {"what": record["description"]})
            # Some data sets are in both tables of the benchmarks: the longer time.
            seconds = max(record["compile_seconds"], runs.get(record["optimizer"], 0))
            runs[record["optimizer"]] = seconds

    def cell(runs, names):
        seconds = [runs[name] for name in names if name in runs]
        return f"{max(seconds):.{0 if max(seconds) >= 10 else 1}f}" if seconds else ""

    rows = [
        [runs["what"], *(cell(runs, names) for names in columns.values())]
        for runs in found.values()
        if any(runs.keys() & names for names in [*columns.values()][1:])
    ]
    rows.sort(key=lambda row: max(float(x) for x in row[1:] if x))
    heading = ["seconds of compiling", *columns]
    return table([heading, ["---", *["--:"] * len(columns)], *rows])


def preset_table(_):
    """The settings of the presets, side by side."""
    from ncg_optax.presets import DEFAULTS

    names = list(DEFAULTS)
    settings = dict.fromkeys(name for preset in DEFAULTS.values() for name in preset)

    def cell(preset, setting):
        if setting not in DEFAULTS[preset]:
            return ""
        return f"`{DEFAULTS[preset][setting]!r}`"

    rows = [
        [f"`{setting}`", *(cell(preset, setting) for preset in names)]
        for setting in settings
    ]
    return table([["", *(f"`{x}`" for x in names)], ["---"] * (len(names) + 1), *rows])


def status_table(_):
    """All status codes with their sentences."""
    import ncg_optax as ncg

    rows = [
        [str(int(code)), f"`{code.name}`", ncg.explain(code)] for code in ncg.Status
    ]
    return table([["code", "name", "meaning"], ["--:", "---", "---"], *rows])


def table(rows):
    """Rows of cells as a Markdown table; the second row aligns the columns."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def changelog(_):
    """The changelog without its title; its links begin at the root."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf8").partition("\n")[2]
    return text.replace("](docs/", "](")


PARTS = {
    "readme introduction": readme_introduction,
    "figures": figure_gallery,
    "picture": notebook_picture,
    "scaling": scaling_part,
    "gpu": gpu_tables,
    "compile times": compile_times,
    "presets": preset_table,
    "statuses": status_table,
    "changelog": changelog,
}
