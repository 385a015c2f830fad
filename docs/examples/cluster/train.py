"""Train on any number of processes, save as you go, and go on with any other number of them.

    srun python train.py --workdir /shared/run                    under SLURM, as docs/cluster.md shows
    mpirun -n 8 python train.py --workdir /shared/run             under Open MPI
    python train.py --workdir run                                 alone
    python train.py --workdir run --coordinator host:1234 --processes 2 --process 0     and the same with --process 1

Run the same command again after it was stopped, by whatever, and it goes on from its last checkpoint: with fewer or
more processes, if you like. On the same number of devices, the losses are the same to the last bit.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from data import ARRAYS, FEATURES, ITEMS, load
from jax.sharding import NamedSharding, PartitionSpec

from hydrax_gpu import DataGroup, Dataloader, checkpoint

BATCH = 64  # of all devices together
RATE = 1 / 2  # a power of two: the product is exact, whether or not a compiler fuses it with the subtraction
STOPPED = 75  # exit status (EX_TEMPFAIL): run me again


def new_model(sharding):
    """A small network, the same on every device."""
    one, two = jax.random.split(jax.random.key(0))
    model = {
        "hidden": jax.random.normal(one, (FEATURES, 8)) / FEATURES**0.5,
        "out": jax.random.normal(two, (8,)) / 8**0.5,
    }
    return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda at: leaf[at]), model)


def error(model, x, y):
    return jnp.mean((jnp.tanh(x @ model["hidden"]) @ model["out"] - y) ** 2)


def mean_over_devices(tree, axis):
    """The mean over all devices, to the same bits whatever the network adds first.

    Sums of floats depend on the order of the additions, which is another one for every way to spread the devices over
    processes. Sums of integers do not: 20 bits after the point are enough here. `jax.lax.pmean` is the usual way, if
    you can do without the last bit.
    """

    def mean(leaf):
        fixed = jnp.round(jnp.clip(leaf, -100, 100) * 2**20).astype(jnp.int32)
        return jax.lax.psum(fixed, axis).astype(jnp.float32) / (2**20 * jax.lax.axis_size(axis))

    return jax.tree.map(mean, tree)


def new_step(mesh):
    """One step of data-parallel training: each device with its rows, then the mean of the gradients."""

    def step(model, x, y):
        # marked as each device's own, or shard_map would add the gradients up by itself, in floats
        own = jax.lax.pcast(model, "data", to="varying")
        loss, gradients = mean_over_devices(jax.value_and_grad(error)(own, x, y), "data")
        return jax.tree.map(lambda leaf, gradient: leaf - RATE * gradient, model, gradients), loss

    rows, whole = PartitionSpec("data"), PartitionSpec()
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(whole, rows, rows), out_specs=(whole, whole)))


def several_processes():
    """Whether SLURM, Open MPI or Kubernetes (a Job with indices) has started this as one of several."""
    tasks = os.environ.get("SLURM_NTASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or 1
    return int(tasks) > 1 or {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= os.environ.keys()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True, help="on a file system that all processes share")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="only where the scheduler is not one that jax knows")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    options = parser.parse_args()

    # before anything else of jax, which finds out by itself who the others are where it knows the scheduler
    if options.coordinator:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    elif several_processes():
        jax.distributed.initialize()

    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    model = new_model(NamedSharding(mesh, PartitionSpec()))
    workdir = options.workdir.absolute()
    saver = ocp.CheckpointManager(workdir / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2))
    start_at = (0, 0)
    if saver.latest_step() is not None:
        restored = saver.restore(
            saver.latest_step(),
            args=ocp.args.Composite(model=ocp.args.StandardRestore(model), data=checkpoint.Restore()),
        )
        model, start_at = restored.model, restored.data

    loader = Dataloader(
        load,
        DataGroup(BATCH, range(ITEMS), loader_arrays=ARRAYS, seed=1, shuffle_first=True),
        sharding=NamedSharding(mesh, PartitionSpec("data")),  # each process loads the rows of its own devices
        start_at=start_at,
        end_at=("epoch", options.epochs),
        sigterm=True,  # a pre-emption ends the loop below after the same step on every process
    )

    def save(done):
        saver.save(
            done, args=ocp.args.Composite(model=ocp.args.StandardSave(model), data=checkpoint.Save(loader)), force=True
        )

    step, done, curve = new_step(mesh), loader.first_batch, None
    if jax.process_index() == 0:
        curve = (workdir / "losses.jsonl").open("a")
    with loader:
        for batch in loader:
            model, loss = step(model, batch.arrays["x"], batch.arrays["y"])
            done = batch.batch_num + 1
            del batch
            if curve is not None:
                print(json.dumps([done, float(loss).hex()]), file=curve, flush=True)
            if done % options.save_every == 0:
                save(done)
    if saver.latest_step() != done:
        save(done)
    saver.close()  # waits until it is on the disk
    if curve is not None:
        curve.close()
    return STOPPED if loader.interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
