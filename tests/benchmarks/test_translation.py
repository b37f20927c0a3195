"""Translation: network, loss, vocabulary, decoding, scores, checkpoint."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import datasets
from benchmarks.peers import COMPETITORS
from benchmarks.scenarios import SCENARIOS, _pretraining, _seq2seq, translation
from benchmarks.scenarios._base import Scenario, dataset
from benchmarks.scenarios._pretraining import Pretraining, pretrained
from benchmarks.scenarios._seq2seq import PAD, init_seq2seq, seq2seq
from benchmarks.scenarios.translation import BEGIN, END

NAMES = ("translation", "translation_continued", "translation_ted")
WORDS = {"abra": "open", "feche": "close", "salve": "save", "o": "the", "novo": "new"}
THINGS = {"arquivo": "file", "texto": "text", "botão": "button", "menu": "menu"}
SHORT = [
    (f"{verb} o novo {thing}.", f"{WORDS[verb]} the new {THINGS[thing]}.")
    for verb in ("abra", "feche", "salve")
    for thing in THINGS
]
LONG = (" ".join(["abra"] * 30), " ".join(["open"] * 30))
SPELT = ("qwertyuiopasdfghjklzxcvbnmqazwsxedcrfvtgbyhnujmikolp a b c", "a b c d")
TINY = {"symbols": 12, "length": 6, "width": 16, "hidden": 32, "layers": 1}


def read_little():
    """Stands in for the corpora; `ç` is in the test part alone."""
    return datasets.translation.Pairs(
        [*SHORT[2:], LONG, SPELT, ("um", "one")],
        [],
        [*SHORT[:2], ("ç " * 4, "a b c d")],
        ".",
    )


@pytest.fixture(scope="module")
def little():
    with pytest.MonkeyPatch.context() as patch:
        # Pieces learnt from so little text are short, and sentences have many.
        patch.setattr(translation, "LENGTH", 40)
        yield translation.corpus(read_little)


@pytest.fixture(scope="module")
def tiny():
    """A network that has learnt six sentences by heart, and the sentences."""
    symbols = np.random.default_rng(0).integers(4, 12, (6, 2, 4))
    source, y = (
        translation_rows(part, lengths=(4, 3, 2, 4, 3, 4))
        for part in (symbols[:, 0], symbols[:, 1])
    )
    begin = np.full((6, 1), BEGIN)
    x = {"source": source, "target": np.concatenate([begin, y[:, :-1]], axis=1)}
    tx = optax.adam(1e-2)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(
            lambda p: translation.cross_entropy(seq2seq(p, x, heads=2), y)
        )(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train():
        params = init_seq2seq(0, **TINY)
        return jax.lax.scan(step, (params, tx.init(params)), length=200)[0][0]

    return train(), x, jnp.asarray(y)


def translation_rows(symbols, lengths):
    rows = np.full((len(symbols), TINY["length"]), PAD)
    for row, sentence, length in zip(rows, symbols, lengths, strict=True):
        row[: length + 1] = [*sentence[:length], END]
    return rows


def test_the_decoder_does_not_look_ahead_but_sees_the_whole_source(tiny):
    params, x, _ = tiny
    logits = jax.jit(lambda x: seq2seq(params, x, heads=2))
    before = logits(x)
    changed = x["target"].copy()
    changed[:, 3] = 11
    after = logits(x | {"target": changed})
    np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-5)
    assert jnp.abs(before[:, 3] - after[:, 3]).max() > 1e-2
    source = x["source"].copy()
    source[0, 3] = source[0, 3] % 8 + 4  # another symbol of the first sentence
    after = logits(x | {"source": source})
    assert jnp.abs(before[0, 0] - after[0, 0]).max() > 1e-3
    np.testing.assert_allclose(before[1:], after[1:], atol=1e-5)


def test_padding_does_not_change_the_loss(tiny):
    params, x, y = tiny
    rows = np.array([1, 2, 4])  # their sentences have at most three symbols, and an end

    def loss(params, columns):
        cut = {name: part[rows, :columns] for name, part in x.items()}
        logits = seq2seq(params, cut, heads=2) / 10  # of sentences not so certain
        return translation.cross_entropy(logits, y[rows, :columns])

    short, long = jax.jit(lambda p: [loss(p, columns) for columns in (4, 6)])(params)
    assert short > 0.1
    assert long == pytest.approx(float(short), rel=1e-5)


def test_loss_and_accuracy_count_real_symbols_alone():
    y = jnp.array([[5, 3, 0, 0], [4, 4, 3, 0]])
    logits = jnp.zeros((2, 4, 6)).at[0, 0, 5].set(50.0).at[:, :, 0].set(-50.0)
    # One symbol is certain, the four others are one of five; argmax guesses 1 there.
    assert translation.cross_entropy(logits, y) == pytest.approx(0.8 * np.log(5))
    assert translation.accuracy(logits, y) == pytest.approx(1 / 5)
    part = slice(0, 1)
    assert translation.cross_entropy(logits[part], y[part]) == pytest.approx(
        0.5 * np.log(5)
    )


def search(params, source, width, length=6, penalty=0.6):
    return jax.jit(
        lambda p, rows: _seq2seq.beam_search(
            p,
            rows,
            begin=BEGIN,
            end=END,
            length=length,
            heads=2,
            width=width,
            penalty=penalty,
        )
    )(params, source)


@pytest.mark.parametrize("width", [1, 4])
def test_decoding_gives_back_what_was_learnt_by_heart(tiny, width):
    params, x, y = tiny
    np.testing.assert_array_equal(search(params, x["source"], width), y)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 4.0])
def test_a_wide_beam_finds_the_best_of_all_translations(penalty):
    symbols, length = 5, 3
    sizes = TINY | {"symbols": symbols, "length": length}
    params = init_seq2seq(0, **sizes)
    # Far from certain, and it hardly ever ends at once.
    params["out"]["w"] *= 30.0
    params["out"]["b"] = jnp.zeros(symbols).at[END].set(-1.0)
    source = jnp.array([[4, 1, END], [2, END, PAD]])
    found = search(params, source, 100, length, penalty)
    every = np.array(list(itertools.product(range(symbols), repeat=length)))
    begins = np.full((len(every), 1), BEGIN)
    x = {"target": np.concatenate([begins, every[:, :-1]], axis=1)}
    ended = np.cumsum(every == END, axis=1)
    real = ended - (every == END) == 0  # until the end, and with it
    count = real.sum(axis=1)
    for row, best in zip(source, found, strict=True):
        logits = seq2seq(params, x | {"source": jnp.tile(row, (len(every), 1))}, 2)
        logs = jax.nn.log_softmax(logits)
        logs = np.take_along_axis(np.asarray(logs), every[..., None], 2)[..., 0]
        ranks = (logs * real).sum(axis=1) / ((5 + count) / 6) ** penalty
        k = np.argmax(ranks)
        np.testing.assert_array_equal(best, np.where(real[k], every[k], PAD))


def test_dropout_is_fixed_within_a_step_and_absent_from_predictions():
    scenario = SCENARIOS["translation"]
    assert scenario.random

    @jax.jit
    def outputs(seed):
        params = init_seq2seq(0, **TINY)
        x = {name: jnp.full((3, 4), 5) for name in ("source", "target")}
        key = jax.random.key(seed)
        return (
            scenario.model(params, x, key),
            scenario.predict(params, x, {"key": key}),
        )

    (first, predicted), (again, _), (other, anew) = map(outputs, (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert jnp.abs(first - other).max() > 1e-3
    np.testing.assert_array_equal(predicted, anew)
    assert jnp.abs(first - predicted).max() > 1e-3
    drop = _seq2seq.dropout(jax.random.key(0), 0.1)
    dropped = drop(jnp.ones(20_000))
    assert jnp.mean(dropped == 0) == pytest.approx(0.1, abs=0.01)
    assert jnp.mean(dropped) == pytest.approx(1.0, abs=0.01)


def test_symbols_spell_every_training_sentence(little):
    tokenizer = little.tokenizer
    for pair in SHORT[2:]:
        for text in pair:
            symbols = tokenizer.encode(text)
            assert tokenizer.decode(symbols) == text
            assert min(symbols) > END and max(symbols) < translation.SYMBOLS
    # What is held out takes no part in the vocabulary.
    assert translation.UNKNOWN in tokenizer.encode("ç")


def test_corpus_takes_sentences_of_the_right_length(little):
    assert sorted(little.train) == sorted(SHORT[2:])  # none of the others
    assert little.held_out[:2] == SHORT[:2]


def test_targets_are_one_symbol_ahead_of_the_decoders_input(little):
    data = translation.load(read_little)
    assert data.note == "."
    x, y = data.train["x"], data.train["y"]
    assert x["source"].shape == x["target"].shape == y.shape
    assert y.shape == (len(SHORT) - 2, translation.LENGTH)
    np.testing.assert_array_equal(x["target"][:, 0], BEGIN)
    np.testing.assert_array_equal(x["target"][:, 1:], y[:, :-1])
    for (pt, en), source, target in zip(little.train, x["source"], y, strict=True):
        for text, row in ((pt, source.tolist()), (en, target.tolist())):
            end = row.index(END)
            assert little.tokenizer.decode(row[:end]) == text
            assert set(row[end + 1 :]) == {PAD}


def test_bleu_counts_words_and_their_order():
    references = ["the cat is on the mat", "there is a new file in here"]
    same = translation.bleu(references, references)
    assert list(same.values()) == pytest.approx([100.0] * 4)
    # Of four words three are right; of three pairs of words one.
    scores = translation.bleu(["open a new file"], ["open the new file"])
    assert scores["BLEU-1"] == pytest.approx(75.0)
    assert scores["BLEU-2"] == pytest.approx(100 * (3 / 4 * 1 / 3) ** 0.5)


def test_examine_compares_each_translation_with_its_own_reference(
    little, tmp_path, monkeypatch
):
    data = translation.load(read_little)
    known = dict(little.held_out)

    def translate(params, tokenizer, source, width):
        if width == 1:
            return ["open"] * len(source)
        ends = [row.index(END) for row in source.tolist()]
        texts = tokenizer.decode(
            [r[:e] for r, e in zip(source.tolist(), ends, strict=True)]
        )
        return [known.get(text, "a b c d") for text in texts]

    monkeypatch.setattr(translation, "translate", translate)
    stem = tmp_path / "new" / "adam"
    scores = translation.examine(read_little, None, data, stem)
    assert scores["BLEU-4 (beam)"] == pytest.approx(100.0)
    assert scores["BLEU-4"] < 50
    lines = (tmp_path / "new" / "adam_translations.md").read_text("utf8").splitlines()
    assert len(lines) <= 10
    assert lines[4] == " | ".join((*SHORT[0], SHORT[0][1]))


def test_translate_stops_at_the_end(little, monkeypatch):
    open_, end = little.tokenizer.encode("abra o novo menu."), END
    rows = jnp.array([[*open_, end, 7, 7], [*open_, *open_[:3]]])
    monkeypatch.setattr(
        _seq2seq, "beam_search", lambda params, source, **_: rows + source
    )
    first, second = translation.translate({}, little.tokenizer, jnp.zeros((), int), 4)
    assert first == "abra o novo menu."
    assert second.startswith(first) and second != first


def line(params, x, key):
    return params["w"] * x + 0.01 * jax.random.normal(key, x.shape)


LINE = Scenario(
    name="line",
    description="a line",
    load=lambda: dataset(np.linspace(-1, 1, 40), 3 * np.linspace(-1, 1, 40)),
    init=lambda seed: {"w": jnp.zeros(()), "unused": [jnp.ones(2)]},
    model=line,
    loss=lambda outputs, y: jnp.mean((outputs - y) ** 2),
    metric=lambda outputs, y: jnp.zeros(()),
    metric_name="none",
    random=True,
)


def test_a_checkpoint_is_trained_once_for_each_setting(folder, monkeypatch):
    data = LINE.load().train
    setting = Pretraining(learning_rate=0.3, batch=8, epochs=20)
    trained = pretrained(LINE, data, setting)
    assert trained["w"] == pytest.approx(3.0, abs=0.2)
    assert len(list((folder / "cache").glob("line-adam-*.npz"))) == 1

    runs = []

    def track(rounds, _):
        runs.append(len(rounds))
        return rounds

    monkeypatch.setattr(_pretraining, "track", track)
    again = pretrained(LINE, data, setting)
    jax.tree.map(np.testing.assert_array_equal, trained, again)
    assert runs == []
    pretrained(LINE, data, setting._replace(epochs=1))
    pretrained(LINE, data | {"y": 2 * data["y"]}, setting)
    steeper = LINE._replace(loss=lambda outputs, y: 2 * LINE.loss(outputs, y))
    pretrained(steeper, data, setting)
    pretrained(LINE, data, setting)
    assert runs == [1, 20, 20]
    assert len(list((folder / "cache").iterdir())) == 4


def test_continued_runs_begin_at_the_checkpoint(folder, monkeypatch):
    monkeypatch.setattr(translation, "SCENARIO", LINE)
    monkeypatch.setattr(translation, "load", lambda read: LINE.load())
    monkeypatch.setattr(translation, "ADAM", Pretraining(0.3, batch=8, epochs=20))
    translation.checkpoint.cache_clear()
    try:
        assert translation.load_continued().train["x"].shape == (32,)
        params = jax.jit(translation.init_continued)(1)
        assert params["w"] == pytest.approx(3.0, abs=0.2)
        shapes = jax.eval_shape(translation.init_continued, 0)
        assert jax.tree.structure(shapes) == jax.tree.structure(LINE.init(0))
    finally:
        translation.checkpoint.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_mini_batch_methods_and_the_posters_take_part(name):
    fitting = {n for n, c in COMPETITORS.items() if c.fits(SCENARIOS[name])}
    expected = {n for n, c in COMPETITORS.items() if c.minibatch} | {"poster"}
    assert fitting == expected


def test_scenarios_read_their_own_corpus(monkeypatch):
    for name in ("translation_pairs", "ted_pairs"):
        pairs = read_little()._replace(note=name)
        monkeypatch.setattr(datasets.translation, name, lambda pairs=pairs: pairs)
    translation.corpus.cache_clear()
    try:
        assert SCENARIOS["translation"].load().note == "translation_pairs"
        data = SCENARIOS["translation_ted"].load()
    finally:
        translation.corpus.cache_clear()
    assert data.note == "ted_pairs"
    scenario = SCENARIOS["translation"]
    batch = scenario.with_key(data.train, jax.random.key(0))
    loss = jax.eval_shape(lambda s: scenario.value(scenario.init(s), **batch), 0)
    assert loss.shape == () and loss.dtype == jnp.float32
