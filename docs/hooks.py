"""What the site shows but nobody types twice: parts of the README, figures, statuses.

A line of a page such as ``<!-- readme section: "How it compares" -->`` is replaced by
that part of the README; ``<!-- figures -->`` by the figures of the benchmarks,
``<!-- statuses -->`` by the sentences of ``ncg_optax.explain``,
``<!-- scaling: weak -->`` by a table of stored measurements (all of them are in
benchmarks/reports/scaling.py). A part that does not exist any more is an error.
Equations become MathML, which browsers draw by themselves: no script, and nothing to
fetch.
"""

import html
import importlib.util
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"
MARKER = re.compile(r"^<!-- (?P<kind>[\w ]+)(?:: (?P<what>.*))? -->$", re.MULTILINE)
EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)

# A bar alone would be taken for an operator between two terms, with space around it.
BAR = re.compile(r'<mo(?: stretchy="false")?>(&#x0007C;)</mo>')


def figures():
    """Paths of the figures of the benchmarks, relative to the repository."""
    found = sorted((ROOT / RESULTS).glob("**/*.png"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def on_files(files, config):
    """Adds the figures to the site, at the paths that the README gives them."""
    for path in figures():
        source = str(ROOT / path)
        files.append(File.generated(config, path, abs_src_path=source))
    return files


def on_page_markdown(markdown, page, **_):
    """Replaces the markers."""

    def part(match):
        kind, what = match["kind"], (match["what"] or "").strip()
        if kind not in PARTS:
            raise PluginError(f"{page.file.src_uri}: unknown marker {match[0]}")
        return PARTS[kind](what.strip('"'))

    return MARKER.sub(part, markdown)


def on_page_content(content, **_):
    """Turns the equations into MathML."""

    def mathml(match):
        display = "block" if match["tag"] == "div" else "inline"
        latex = html.unescape(match["latex"]).strip()
        # The same thing, but the converter knows only the latter.
        latex = latex.replace("{aligned}", "{align*}")
        return BAR.sub(
            r'<mo form="prefix" stretchy="false">\1</mo>',
            convert(latex, display=display),
        )

    return EQUATION.sub(mathml, content)


def readme_section(title):
    """The text under a heading of the README, without the heading."""
    text = (ROOT / "README.md").read_text()
    found = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if not found:
        raise PluginError(f'README.md has no section "{title}".')
    # A folder is no page, and sessions are highlighted as such.
    body = found[1].replace(f"[{RESULTS}]({RESULTS})", f"`{RESULTS}`")
    return body.replace("```python\n>>>", "```pycon\n>>>").strip()


def readme_table(title):
    """The first table in a section of the README."""
    found = re.search(r"(^\|.*\n)+", readme_section(title) + "\n", re.MULTILINE)
    if not found:
        raise PluginError(f'The section "{title}" of README.md has no table.')
    return found[0]


def readme_list(title):
    """The first list in a section of the README."""
    body = readme_section(title) + "\n"
    found = re.search(r"^- .*\n(?:(?:- |  ).*\n)*", body, re.MULTILINE)
    if not found:
        raise PluginError(f'The section "{title}" of README.md has no list.')
    return found[0]


def readme_introduction(_):
    """The README up to its first section, without the title."""
    text = (ROOT / "README.md").read_text()
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


def status_table(_):
    """All status codes with their sentences."""
    import ncg_optax as ncg

    rows = [
        f"| {int(code)} | `{code.name}` | {ncg.explain(code)} |" for code in ncg.Status
    ]
    return "\n".join(["| code | name | meaning |", "|--:|---|---|", *rows])


def changelog(_):
    """The changelog without its title."""
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2]


PARTS = {
    "readme introduction": readme_introduction,
    "readme section": readme_section,
    "readme table": readme_table,
    "readme list": readme_list,
    "figures": figure_gallery,
    "scaling": scaling_part,
    "statuses": status_table,
    "changelog": changelog,
}
