"""Newton-CG on any number of devices and processes, with checkpoints.

One process, all of its devices:

    python data_parallel.py

Several processes: see launch.sh (one machine) and launch.sbatch (SLURM). A run that
finds a checkpoint goes on from there, with as many processes as it likes.
"""

import argparse
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
from jax.sharding import NamedSharding, PartitionSpec

import ncg_optax as ncg


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="in this run")
    parser.add_argument("--batch", type=int, default=64, help="rows of all processes")
    parser.add_argument("--seed", type=int, default=0, help="of the optimizer")
    parser.add_argument("--checkpoint", type=pathlib.Path, help="folder, to go on from")
    parser.add_argument("--save-every", type=int, default=0, help="0: at the end alone")
    parser.add_argument("--coordinator", help="host:port of process 0")
    parser.add_argument("--processes", type=int, default=1, help="how many there are")
    parser.add_argument("--process", type=int, default=0, help="number of this one")
    parser.add_argument("--slurm", action="store_true", help="ask SLURM for all that")
    return parser.parse_args()


def connect(args):
    """Before anything else touches a device."""
    if args.slurm:
        jax.distributed.initialize()
    elif args.processes > 1:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)


def rows_of_this_process(rows):
    """Its part of the batch. In earnest it would read no other."""
    x = np.random.default_rng(1).normal(size=(rows, 3))
    batch = {"x": x, "y": np.sin(2 * x[:, :2])}
    each = rows // jax.process_count()
    mine = slice(jax.process_index() * each, (jax.process_index() + 1) * each)
    return {name: array[mine] for name, array in batch.items()}


def start():
    """The first parameters, the same in every process."""
    keys = jax.random.split(jax.random.key(0))
    return {
        "w1": 0.5 * jax.random.normal(keys[0], (3, 16)),
        "b1": jnp.zeros(16),
        "w2": 0.5 * jax.random.normal(keys[1], (16, 2)),
        "b2": jnp.zeros(2),
    }


def model(params, x):
    """A small network."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def squared_error(outputs, y):
    """Averaged over the examples."""
    return jnp.mean((outputs - y) ** 2)


def restored(folder, like, mesh):
    """The latest checkpoint in ``folder``, spread over the devices of this run."""
    # A run that is killed while it saves leaves a folder 8.orbax-checkpoint-tmp.
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal())
    if not steps:
        return like, 0
    everywhere = NamedSharding(mesh, PartitionSpec())
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like
    )
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / str(steps[-1]), target), steps[-1]


def save(folder, step, tree):
    """Every process takes part in this."""
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / str(step), tree)


def main():
    """Trains, and goes on from a checkpoint if there is one."""
    args = arguments()
    connect(args)
    tx = ncg.hessian_free(seed=args.seed)
    train_step = ncg.make_train_step(ncg.CompositeLoss(model, squared_error), tx)
    params = start()
    carry, done = (params, tx.init(params)), 0
    if args.checkpoint:
        folder = args.checkpoint.resolve()
        carry, done = restored(folder, carry, train_step.mesh)
    batch = rows_of_this_process(args.batch)
    last = done + args.steps
    for step in range(done + 1, last + 1):
        *carry, metrics = train_step(*carry, batch)
        if jax.process_index() == 0:
            print(f"step {step}: loss {float(metrics.loss):.17e}", flush=True)
        due = step == last or (args.save_every and step % args.save_every == 0)
        if args.checkpoint and due:
            save(folder, step, tuple(carry))


if __name__ == "__main__":
    try:
        main()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        print(
            f"Process {jax.process_index()} stops: another process has ended or cannot "
            "be reached. With --save-every the same command goes on from the last "
            f"checkpoint. ({error})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # an ordinary end waits for the other processes
