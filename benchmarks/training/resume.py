"""Long work that can be stopped at any time: what is done lies on disk.

A `Journal` keeps the finished pieces of a competitor's work, a cell of the tuning or a
seed, each a value of JSON. A `Checkpoint` keeps the run under way.
"""

import json
import pathlib
import re
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

INTERVAL = 60.0  # seconds from one checkpoint of a run to the next

Say = Callable[[str], None]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a file so that whoever reads it finds all of the old or of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf8")
    draft.replace(path)


class Checkpoint:
    """The latest state of a run, kept by orbax in a folder, if there is one."""

    def __init__(self, folder: pathlib.Path | None, say: Say = lambda text: None):
        self._folder, self._say = folder, say
        self._saved_at = time.monotonic()

    def restore(self, arrays: Any, numbers: Any) -> tuple[Any, Any]:
        """The state that was saved last, or the arguments, with which a run begins.

        ``arrays`` is a pytree of arrays and typed keys, ``numbers`` a value of JSON.
        """
        if self._folder is None or not self._folder.exists():
            return arrays, numbers
        try:
            stored = self._read(arrays)
        # Whatever is wrong with a checkpoint, the run can begin anew.
        except Exception as error:
            self._say(f"its checkpoint cannot be read, it begins anew ({error})")
            shutil.rmtree(self._folder, ignore_errors=True)
            return arrays, numbers
        self._say("goes on from its checkpoint")
        return stored

    def offer(self, arrays: Any, numbers: Any) -> None:
        """Saves the state of a run, if the last time was `INTERVAL` seconds ago."""
        if self._folder is None or time.monotonic() < self._saved_at + INTERVAL:
            return
        try:
            self._write(arrays, numbers)
        # No failure to keep a run may end it.
        except Exception as error:
            self._say(f"its state cannot be stored, it will not resume ({error})")
            self.remove()
            self._folder = None
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Forgets the run."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, arrays: Any) -> tuple[Any, Any]:
        import orbax.checkpoint as orbax

        leaves, structure = jax.tree.flatten(arrays)
        args = orbax.args.Composite(
            arrays=orbax.args.StandardRestore(_storable(leaves)),
            numbers=orbax.args.JsonRestore(),
        )
        with self._manager() as manager:
            stored = manager.restore(manager.latest_step(), args=args)
        found = iter(stored.arrays)
        leaves = [_like(leaf, next(found)) if leaf.size else leaf for leaf in leaves]
        return jax.tree.unflatten(structure, leaves), stored.numbers

    def _write(self, arrays: Any, numbers: Any) -> None:
        import orbax.checkpoint as orbax

        args = orbax.args.Composite(
            arrays=orbax.args.StandardSave(_storable(jax.tree.leaves(arrays))),
            numbers=orbax.args.JsonSave(numbers),
        )
        with self._manager() as manager:
            manager.save((manager.latest_step() or 0) + 1, args=args)

    def _manager(self) -> Any:
        import orbax.checkpoint as orbax

        # It removes the old checkpoint when the new one is complete, not before. All in
        # this thread: others would run on the clock of the next steps.
        options = orbax.CheckpointManagerOptions(
            max_to_keep=1, enable_async_checkpointing=False
        )
        return orbax.CheckpointManager(self._folder.resolve(), options=options)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: jax.Array) -> np.ndarray:
    """An array as NumPy has it, which keeps float64 in threads without x64 as well."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _storable(leaves: list[jax.Array]) -> list[np.ndarray]:
    """Those with something in them: orbax refuses arrays of size zero."""
    return [_plain(leaf) for leaf in leaves if leaf.size]


def _like(leaf: jax.Array, stored: np.ndarray) -> jax.Array:
    """A stored array as what it was."""
    expected = _plain(leaf).shape
    if stored.shape != expected:
        raise ValueError(f"a shape is {expected}, the stored one {stored.shape}")
    if _is_key(leaf):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(leaf))
    return jnp.asarray(stored, leaf.dtype)


class Journal:
    """The finished pieces of some work, in a folder, until the whole is finished.

    ``identity`` is everything that the pieces depend on, as JSON has it. Pieces with
    another identity are removed; with ``fresh`` all are.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        identity: dict[str, Any],
        fresh: bool = False,
        say: Say = lambda text: None,
    ):
        self._folder, self._say = folder, say
        self._identity = json.loads(json.dumps(identity))
        self._pieces: dict[str, Any] = {}
        stored = None if fresh else self._load()
        one, other = stored["identity"] if stored else {}, self._identity
        different = [n for n in {**one, **other} if one.get(n) != other.get(n)]
        if stored and not different:
            self._pieces = stored["pieces"]
            for latest in list(self._pieces)[-1:]:
                say(f"goes on where it was stopped, after {latest}")
            return
        if stored:
            what = ", ".join(different)
            say(f"begins anew: the partial record is of another {what}")
        self.remove()
        self._store()

    def once(self, name: str, work: Callable[[Checkpoint], Any]) -> Any:
        """The piece of that name, from the disk or else from ``work``."""
        if name not in self._pieces:
            folder = self._folder / re.sub(r"[^\w.+-]+", "_", name)
            checkpoint = Checkpoint(folder, lambda text: self._say(f"{name} {text}"))
            self._pieces[name] = work(checkpoint)
            self._store()
            checkpoint.remove()
        return self._pieces[name]

    def remove(self) -> None:
        """Forgets the work: it is finished, or not wanted any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _path(self) -> pathlib.Path:
        return self._folder / "pieces.json"

    def _load(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        return json.loads(self._path.read_text(encoding="utf8"))

    def _store(self) -> None:
        # All digits, and infinities, which Python's JSON has: the pieces go on to be
        # compared.
        stored = {"identity": self._identity, "pieces": self._pieces}
        write_atomically(self._path, json.dumps(stored))
