"""Sentences in Portuguese and English."""

import html
import importlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.datasets.archives import Archive, find, members

Pair = tuple[str, str]


class Pairs(NamedTuple):
    """Pairs of a Portuguese and an English sentence, and which corpus they are of."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    note: str


def _help(language: str, sha256: str) -> Archive:
    package = f"libreoffice-help-{language}"
    name = f"{package}_7.4.7-1+deb12u14_all.deb"
    pool = "https://deb.debian.org/debian/pool/main/libr/libreoffice/"
    client, others = f"apt-get download {package}", f"{package}_*_all.deb"
    return Archive(name, pool + name, sha256, client, others)


HELP_PT = _help(
    "pt-br", "600d4294e52a6534be923521aff7b1b9eb7e6ddb7e30b2598ad04b2fe9cf8278"
)
HELP_EN = _help(
    "en-us", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712"
)
ELEMENT = re.compile(
    r'<(p|h\d|td|li)\b[^>]*\bid="((?:par|hd|bm|tit)_[^"]+)"[^>]*>(.*?)</\1>', re.DOTALL
)
TED = "ted_hrlr_translate/pt_to_en"  # in TensorFlow Datasets
TED_HUB = "neulab/ted_hrlr"  # in that of Hugging Face


def translation_pairs(
    min_words: int = 4, max_words: int = 40, seed: int = 0, share: float = 0.05
) -> Pairs:
    """The help of LibreOffice in Brazilian Portuguese and in English.

    Technical prose. The versions of Debian differ in some sentences, so the note says
    which ones were read. ``share`` is that of the files for validation, and of those
    for testing.
    """
    portuguese, english = (
        {
            name.split("/text/")[1]: content.decode()
            for name, content in members(archive, r"/text/.*\.html$").items()
        }
        for archive in (HELP_PT, HELP_EN)
    )
    pairs = {
        name: [
            pair
            for pair in help_pairs(portuguese[name], english[name])
            if all(min_words <= len(text.split()) <= max_words for text in pair)
        ]
        for name in sorted(portuguese.keys() & english.keys())
    }
    names = (find(archive).name for archive in (HELP_PT, HELP_EN))
    versions = {re.search(r"_(?:\d+%3a)?([^_]+)_all\.deb$", name)[1] for name in names}
    note = f"LibreOffice help {' and '.join(sorted(versions))}, Portuguese to English"
    return Pairs(*split_by_file(pairs, seed, share), note)


def ted_pairs() -> Pairs:
    """Talks of TED, with the split of ``ted_hrlr``.

    Raises:
        FileNotFoundError: without ``tensorflow_datasets`` and ``datasets``.
    """
    for package, read in ("tensorflow_datasets", _ted_tfds), ("datasets", _ted_hub):
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        parts = (list(read(module, part)) for part in ("train", "validation", "test"))
        return Pairs(*parts, "TED talks, Portuguese to English (ted_hrlr)")
    raise FileNotFoundError(
        "the pairs of TED are read by a package that is not installed here: "
        f"`pip install tensorflow-datasets tensorflow` (it downloads {TED}) or "
        f"`pip install datasets` (it downloads {TED_HUB})."
    )


def help_pairs(portuguese: str, english: str) -> list[Pair]:
    """The texts of two pages whose elements have the same id, if they differ."""
    source, target = _elements(portuguese), _elements(english)
    both = [(source[key], target[key]) for key in target if key in source]
    return [(pt, en) for pt, en in both if pt and en and pt != en]


def split_by_file(
    pairs: Mapping[str, Iterable[Pair]], seed: int = 0, share: float = 0.05
) -> tuple[list[Pair], list[Pair], list[Pair]]:
    """Splits pairs for training, validation and testing, whole files at a time.

    Every pair occurs once, and each source in one part only: help pages repeat
    themselves. ``share`` is that of the files for validation, and of those for testing.
    """
    names = np.random.default_rng(seed).permutation(sorted(pairs))
    count = max(1, round(share * len(names)))
    test, validation, train = np.split(names, [count, 2 * count])
    known: set[str] = set()
    parts = []
    for part in (train, validation, test):
        found = dict.fromkeys(pair for name in part for pair in pairs[name])
        parts.append([pair for pair in found if pair[0] not in known])
        known.update(source for source, _ in found)
    return tuple(parts)


def _elements(page: str) -> dict[str, str]:
    """The texts of the elements that have an id, without markup."""
    found = {
        key: re.sub(r"<[^>]+>", "", text) for _, key, text in ELEMENT.findall(page)
    }
    return {key: " ".join(html.unescape(text).split()) for key, text in found.items()}


def _ted_tfds(tfds, part: str) -> Iterable[Pair]:
    rows = tfds.as_numpy(tfds.load(TED, split=part, as_supervised=True))
    return ((pt.decode(), en.decode()) for pt, en in rows)


def _ted_hub(hub, part: str) -> Iterable[Pair]:
    rows = hub.load_dataset(  # the branch that needs no code of the data set
        TED_HUB, data_dir="pt_to_en", revision="refs/convert/parquet", split=part
    )
    return ((row["translation"]["pt"], row["translation"]["en"]) for row in rows)
