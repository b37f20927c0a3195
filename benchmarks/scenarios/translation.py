"""Portuguese to English: a small transformer, taught with a few thousand sentences."""

import functools
import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import datasets
from benchmarks.scenarios import _base as base
from benchmarks.scenarios import _seq2seq as seq2seq_
from benchmarks.scenarios._pretraining import Pretraining, pretrained

UNKNOWN, BEGIN, END = 1, 2, 3  # symbols, besides PAD, that stand for no text
SYMBOLS = 2000
LENGTH = 16  # symbols of a sentence, with the one that ends it
WORDS = range(4, 21)  # of a sentence, in both languages
PAIRS = 6144  # to train on
WIDTH, HIDDEN, LAYERS, HEADS, DROPOUT = 128, 256, 2, 4, 0.1
EXAMINED, SHOWN = 200, 5  # held-out sentences that are translated, and written down
BEAM = 4  # width of the search
ADAM = Pretraining(learning_rate=10**-2.5, batch=64, epochs=10)

Pair = tuple[str, str]
Tokenizer = Any  # a `sentencepiece.SentencePieceProcessor`


class Corpus(NamedTuple):
    """Sentences that are short enough, and how they are cut into symbols."""

    train: list[Pair]
    held_out: list[Pair]
    tokenizer: Tokenizer
    note: str


@functools.cache
def corpus(read: Callable[[], datasets.translation.Pairs]) -> Corpus:
    """Reads pairs, learns a vocabulary from those for training, and picks some."""
    pairs = read()

    def short(text: str) -> bool:
        return len(text.split()) in WORDS

    sentences = [pair for pair in pairs.train if all(map(short, pair))]
    tokenizer = learn_symbols([text for pair in sentences for text in pair])

    def fits(text: str) -> bool:
        return short(text) and len(tokenizer.encode(text)) < LENGTH

    train, held_out = (
        [pair for pair in part if all(map(fits, pair))]
        for part in (sentences, pairs.test)
    )
    order = np.random.default_rng(0).permutation(len(train))[:PAIRS]
    return Corpus([train[i] for i in order], held_out, tokenizer, pairs.note)


def learn_symbols(texts: Sequence[str]) -> Tokenizer:
    """A vocabulary of words and pieces of words, both languages in one."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=SYMBOLS,
        hard_vocab_limit=False,  # a tiny corpus makes do with fewer
        character_coverage=1.0,
        normalization_rule_name="identity",  # so that decoding gives the text back
        pad_id=seq2seq_.PAD,
        unk_id=UNKNOWN,
        bos_id=BEGIN,
        eos_id=END,
        minloglevel=2,
    )
    return SentencePieceProcessor(model_proto=model.getvalue())


def load(read: Callable[[], datasets.translation.Pairs]) -> base.Dataset:
    found = corpus(read)
    parts = (encode(found.tokenizer, part) for part in (found.train, found.held_out))
    return base.split(*(array for part in parts for array in part))._replace(
        note=found.note
    )


def encode(
    tokenizer: Tokenizer, pairs: Sequence[Pair]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs (sources, and targets one place later) and targets."""
    source, target = (
        _rows(tokenizer.encode([pair[language] for pair in pairs]))
        for language in (0, 1)
    )
    begin = np.full((len(target), 1), BEGIN)
    later = np.concatenate([begin, target[:, :-1]], axis=1)
    return {"source": source, "target": later}, target


def _rows(sentences: Sequence[Sequence[int]]) -> np.ndarray:
    rows = np.full((len(sentences), LENGTH), seq2seq_.PAD)
    for row, symbols in zip(rows, sentences, strict=True):
        row[: len(symbols) + 1] = [*symbols, END]
    return rows


def init(seed: int) -> base.Params:
    return seq2seq_.init_seq2seq(seed, SYMBOLS, LENGTH, WIDTH, HIDDEN, LAYERS)


def model(params: base.Params, x: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    return seq2seq_.seq2seq(params, x, HEADS, seq2seq_.dropout(key, DROPOUT))


def predict(
    params: base.Params, x: dict[str, jax.Array], context: base.Batch
) -> jax.Array:
    """The network without dropout."""
    return seq2seq_.seq2seq(params, x, HEADS, seq2seq_.keep)


def cross_entropy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The mean over the symbols of all targets, without padding."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return _mean_of_real(losses, y)


def accuracy(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """The share of symbols that are guessed right from what is before them."""
    return _mean_of_real(jnp.argmax(outputs, axis=-1) == y, y)


def _mean_of_real(values: jax.Array, y: jax.Array) -> jax.Array:
    real = y != seq2seq_.PAD
    return jnp.sum(values * real) / jnp.sum(real)


def translate(
    params: base.Params, tokenizer: Tokenizer, source: jax.Array, width: int
) -> list[str]:
    """Translations of rows of Portuguese symbols, by a search of this width."""

    @jax.jit
    def search(params, source):
        return seq2seq_.beam_search(
            params,
            source,
            begin=BEGIN,
            end=END,
            length=LENGTH,
            heads=HEADS,
            width=width,
        )

    rows = np.asarray(search(params, source)).tolist()
    return tokenizer.decode(
        [row[: row.index(END)] if END in row else row for row in rows]
    )


def bleu(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of a corpus by sacrebleu, in percent."""
    from sacrebleu.metrics import BLEU

    def score(order: int) -> float:
        metric = BLEU(max_ngram_order=order)
        return metric.corpus_score(list(translations), [list(references)]).score

    return {f"BLEU-{order}": score(order) for order in (1, 2, 3, 4)}


def examine(
    read: Callable[[], datasets.translation.Pairs],
    params: base.Params,
    data: base.Dataset,
    stem: pathlib.Path,
) -> dict[str, float]:
    """Translates held-out sentences, scores them, and writes down a few.

    The scores are those of greedy decoding, and BLEU-4 of beam search.
    """
    found = corpus(read)
    pairs = found.held_out[:EXAMINED]
    source = data.held_out["x"]["source"][:EXAMINED]
    greedy, beam = (
        [text.strip() for text in translate(params, found.tokenizer, source, width)]
        for width in (1, BEAM)
    )
    rows = [(*pair, text) for pair, text in zip(pairs, beam, strict=True)]
    header = [("Portuguese", "English", "translation"), ("---",) * 3]
    table = [" | ".join(cells) for cells in (*header, *rows[:SHOWN])]
    stem.parent.mkdir(parents=True, exist_ok=True)
    path = stem.with_name(f"{stem.name}_translations.md")
    path.write_text("\n".join([found.note, "", *table]) + "\n", encoding="utf8")
    references = [en for _, en in pairs]
    of_beam = {"BLEU-4 (beam)": bleu(beam, references)["BLEU-4"]}
    return bleu(greedy, references) | of_beam


def read_help() -> datasets.translation.Pairs:
    return datasets.translation.translation_pairs()


def read_ted() -> datasets.translation.Pairs:
    return datasets.translation.ted_pairs()


@functools.cache
def checkpoint() -> base.Params:
    """The parameters of the first seed after training with `ADAM`."""
    return pretrained(SCENARIO, load(read_help).train, ADAM)


def load_continued() -> base.Dataset:
    checkpoint()  # trained now if need be, while nothing is timed
    return load(read_help)


def init_continued(seed: int) -> base.Params:
    """The same for every seed: runs differ by the order of the batches and dropout.

    It can be traced once the data are loaded, as the checkpoint is at hand then.
    """
    return jax.tree.map(jnp.asarray, checkpoint())


SCENARIO = base.Scenario(
    name="translation",
    description="LibreOffice's help, Portuguese to English, transformer of width 128 "
    "with 2 + 2 layers, dropout",
    load=functools.partial(load, read_help),
    init=init,
    model=model,
    loss=cross_entropy,
    metric=accuracy,
    metric_name="token accuracy",
    budget=10.0,
    seeds=2,
    batch_sizes=(64,),
    terms=LENGTH,
    full_batch=False,
    curve_examples=512,
    random=True,
    predict=predict,
    examine=functools.partial(examine, read_help),
    schedules=("noam", "cosine"),
    poster=base.PosterSettings(learning_rate=1e-2, damping=10.0, batch=64),
)
CONTINUED = SCENARIO._replace(
    name="translation_continued",
    description=f"`translation`, continued after {ADAM.epochs} epochs of Adam",
    load=load_continued,
    init=init_continued,
)
TED = SCENARIO._replace(
    name="translation_ted",
    description="TED talks, Portuguese to English, the transformer of `translation`",
    load=functools.partial(load, read_ted),
    examine=functools.partial(examine, read_ted),
)
