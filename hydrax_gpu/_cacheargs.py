"""Checks of what `Batch.cache` is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydrax_gpu._place import jaxio
from hydrax_gpu._spec import Layout

__all__ = ["checked_arrays", "checked_columns"]


def checked_arrays(arrays: object, layout: Layout, rows: int, shardings: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a cached batch, in the order of their declaration.

    Args:
        arrays: what was given.
        layout: what was declared.
        rows: of the batch, in all processes.
        shardings: that they have to have, by name; empty where any will do.

    Raises:
        TypeError, ValueError: they are not as declared.
    """
    if not isinstance(arrays, Mapping):
        raise TypeError(f"arrays: got {type(arrays).__name__}, wanted a dict of jax.Arrays by name")
    given = cast("Mapping[str, Any]", arrays)
    names = [array.name for array in layout.arrays]
    if set(given) != set(names):
        raise ValueError(f"arrays: got {sorted(map(str, given))}, wanted the group's cache_arrays, {names}")
    kind = jaxio.jax().Array
    for declared in layout.arrays:
        array, name = given[declared.name], declared.name
        if not isinstance(array, kind):
            raise TypeError(f"array {name!r}: got {type(array).__name__}, wanted a jax.Array (jnp.asarray makes one)")
        if isinstance(array, jaxio.jax().core.Tracer):
            raise TypeError(f"array {name!r}: got a tracer; call Batch.cache outside of jax.jit, with its results")
        wanted = (rows, *declared.item_shape)
        if array.shape != wanted:
            raise ValueError(f"array {name!r}: got shape {array.shape}, wanted {wanted}")
        dtype = jaxio.canonical(declared.jax_dtype)
        if array.dtype != dtype:
            raise ValueError(f"array {name!r}: got dtype {array.dtype}, wanted {dtype}; array.astype({dtype}) converts")
        if array.is_deleted():
            raise ValueError(f"array {name!r}: it was deleted, or donated to a jitted function; give it to cache first")
        if shardings:
            if not array.sharding.is_equivalent_to(shardings[name], array.ndim):
                # with another, a step would be compiled for either; and somebody might have none of the rows he writes
                raise ValueError(
                    f"array {name!r}: got {array.sharding}, wanted {shardings[name]}, which the Dataloader was given "
                    "for it, so that batches are the same before and after. jax.lax.with_sharding_constraint in what "
                    "computes it, or jax.jit(..., out_shardings=...), gives it that"
                )
        elif not array.is_fully_addressable:
            raise ValueError(
                f"array {name!r}: parts of it are in other processes, wanted an array of this process's rows "
                "(each process caches the rows that it has loaded)"
            )
    return {name: given[name] for name in names}


def checked_columns(additional: object, rows: int) -> dict[str, list[Any]]:
    """Additional data by columns.

    Raises:
        TypeError, ValueError: they are none, or are not of the batch's length.
    """
    if not isinstance(additional, Mapping):
        raise TypeError(f"additional: got {type(additional).__name__}, wanted a dict of lists")
    given: dict[str, list[Any]] = {}
    for key, values in cast("Mapping[Any, Any]", additional).items():
        if not isinstance(key, str):
            raise TypeError(f"additional: got the key {key!r}, wanted strings")
        if isinstance(values, str | bytes) or not isinstance(values, Sequence):
            raise TypeError(f"additional[{key!r}]: got {type(values).__name__}, wanted a list with one value a row")
        if len(cast("Sequence[Any]", values)) != rows:
            raise ValueError(
                f"additional[{key!r}]: got {len(cast('Sequence[Any]', values))} values, wanted {rows}, one a row"
            )
        given[key] = list(cast("Sequence[Any]", values))
    return given
