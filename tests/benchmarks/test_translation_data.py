"""Pairs of sentences: read from packages written here, split, and told apart."""

import sys
import types

import pytest
from archive_files import deb, tar

from benchmarks import datasets

ROOT = "./usr/share/libreoffice/help"


def page(*texts, kind="p"):
    return "".join(
        f'<{kind} class="x" id="par_{i}" dir="auto">{text}</{kind}>\n'
        for i, text in enumerate(texts)
    ).encode()


def store_help(folder, pages, names=("4%3a7.5.1-2", "4%3a7.5.1-2")):
    """Both packages, with pages of (Portuguese, English) texts, as apt names them."""
    for language, column, name in zip(("pt-BR", "en-US"), (0, 1), names, strict=True):
        files = {
            f"{ROOT}/{language}/text/{file}.html": page(
                *(pair[column] for pair in pairs)
            )
            for file, pairs in pages.items()
        }
        files[f"{ROOT}/{language}/noscript.html"] = page(
            "Ligue o JavaScript agora mesmo"
        )
        path = folder / "data" / f"libreoffice-help-{language.lower()}_{name}_all.deb"
        path.write_bytes(deb(tar(files, mode="w:xz")))


def test_the_pages_of_two_debian_packages_are_paired(folder):
    pages = {
        f"sbasic/{i}": [(f"esta é a página {i}", f"this is page {i}")]
        for i in range(40)
    }
    store_help(folder, pages)
    train, validation, test, note = datasets.translation.translation_pairs()
    assert note == "LibreOffice help 7.5.1-2, Portuguese to English"
    assert (len(train), len(validation), len(test)) == (36, 2, 2)
    expected = {pair for pairs in pages.values() for pair in pairs}
    assert set(train + validation + test) == expected


def test_both_versions_are_named_where_they_differ(folder):
    store_help(folder, {"a": []}, ("7.6.0-1", "4%3a7.5.1-2"))
    note = datasets.translation.translation_pairs().note
    assert "7.5.1-2 and 7.6.0-1" in note


def test_sentences_of_other_lengths_are_left_out(folder):
    texts = [
        (n * "uma ", m * "one ") for n, m in [(3, 4), (4, 3), (4, 6), (7, 6), (6, 7)]
    ]
    store_help(folder, {"a": texts})
    parts = datasets.translation.translation_pairs(min_words=4, max_words=6)[:3]
    assert [pair for part in parts for pair in part] == [
        ("uma uma uma uma", "one " * 5 + "one")
    ]


def test_a_missing_help_package_says_which_and_how(folder):
    with pytest.raises(FileNotFoundError) as caught:
        datasets.translation.translation_pairs()
    message = str(caught.value)
    assert "apt-get download libreoffice-help-pt-br" in message
    assert "put libreoffice-help-pt-br_*_all.deb into the directory" in message


def test_elements_are_matched_by_id_and_cleaned():
    pt = page("<b>Abra</b> &amp; feche\n o  menu", "Writer", "", "sem par")
    en = page("<i>Open</i> &amp; close the menu", "Writer", "not empty")
    other = '<p id="x_9">fora</p><h2 id="hd_1">Título</h2>'
    found = datasets.translation.help_pairs(
        pt.decode() + other, en.decode() + other.replace("í", "i")
    )
    assert found == [
        ("Abra & feche o menu", "Open & close the menu"),
        ("Título", "Titulo"),
    ]


def test_a_split_keeps_files_whole_and_sources_apart():
    pairs = {
        f"file {i}": [(f"frase {i}.{j}", f"sentence {i}.{j}") for j in range(3)]
        + [("para todos", f"for everyone {i}"), (f"só {i % 5}", "alone")]
        for i in range(30)
    }
    parts = datasets.translation.split_by_file(pairs, seed=3, share=0.2)
    sources = [{pt for pt, _ in part} for part in parts]
    assert not (sources[0] & sources[1] or sources[0] & sources[2])
    assert not sources[1] & sources[2]
    files = [
        {s.split(".")[0] for s in part if s.startswith("frase")} for part in sources
    ]
    assert [len(part) for part in files] == [18, 6, 6]
    assert all(len(part) == len(set(part)) for part in parts)  # every pair once
    assert len(sources[0] & {f"só {i}" for i in range(5)}) == 5
    assert parts == datasets.translation.split_by_file(pairs, seed=3, share=0.2)
    assert parts != datasets.translation.split_by_file(pairs, seed=4, share=0.2)


@pytest.fixture
def installed(monkeypatch):
    """No package that reads TED, and a function that installs a false one."""
    for name in ("tensorflow_datasets", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)

    def install(name, **attributes):
        module = types.ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return install


def test_ted_is_read_by_tensorflow_datasets(installed):
    def load(name, split, as_supervised):
        assert name == "ted_hrlr_translate/pt_to_en" and as_supervised
        return [("é " + split).encode(), split.encode()], [b"b", b"c"]

    installed("tensorflow_datasets", load=load, as_numpy=list)
    pairs = datasets.translation.ted_pairs()
    assert pairs.train == [("é train", "train"), ("b", "c")]
    assert pairs.test[0] == ("é test", "test")
    assert pairs.validation[0][1] == "validation" and "TED" in pairs.note


def test_ted_is_read_by_hugging_face(installed):
    def load_dataset(name, data_dir, revision, split):
        assert (name, data_dir) == ("neulab/ted_hrlr", "pt_to_en")
        return [{"translation": {"en": split, "pt": "é " + split}}]

    installed("datasets", load_dataset=load_dataset)
    pairs = datasets.translation.ted_pairs()
    assert pairs.train == [("é train", "train")]
    assert pairs.validation == [("é validation", "validation")]


def test_ted_without_a_package_that_reads_it_says_which(installed):
    with pytest.raises(FileNotFoundError, match="pip install tensorflow-datasets"):
        datasets.translation.ted_pairs()
