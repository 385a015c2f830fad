"""Calling a loader that takes several rows at a time, and telling what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

__all__ = ["LoadRows", "Outcome", "load_rows", "runs"]

LoadRows: TypeAlias = Callable[[Sequence[Any], Sequence[Any], Sequence["int | None"]], Any]
Outcome: TypeAlias = "dict[str, Any] | BaseException | None"
"""Additional data, or nothing of that, or what is wrong with the row."""


def load_rows(
    loader: LoadRows,
    items: Sequence[Any],
    arrays: Sequence[Any],
    seeds: Sequence[int | None],
    catch: tuple[type[BaseException], ...],
) -> list[Outcome]:
    """What became of each row, however the loader told it.

    A call that raises does not say because of which row, so the rows are loaded again, each alone.

    Args:
        loader: the `load_rows` of a `RowsLoader`.
        items: descriptors, one a row.
        arrays: mappings of views, one a row.
        seeds: one a row.
        catch: what the loader may raise without more harm than bad items.
    """
    count = len(items)
    try:
        result = loader(items, arrays, seeds)
    except catch as error:
        if count == 1:
            return [error]
    else:
        return _outcomes(result, count)
    return [
        load_rows(loader, items[row : row + 1], arrays[row : row + 1], seeds[row : row + 1], catch)[0]
        for row in range(count)
    ]


def _outcomes(result: Any, count: int) -> list[Outcome]:
    if result is None:
        return [None] * count
    if not isinstance(result, list | tuple):
        return [_unfit(f"a {type(result).__name__}")] * count
    outcomes: list[Outcome] = [*result]
    if len(outcomes) != count:
        return [_unfit(f"{len(outcomes)} outcomes for {count} rows")] * count
    for row, outcome in enumerate(outcomes):
        if outcome and not isinstance(outcome, dict | BaseException):  # pyright: ignore[reportUnnecessaryIsInstance]
            outcomes[row] = _unfit(f"a {type(outcome).__name__} as the outcome of a row")
        elif not outcome and not isinstance(outcome, BaseException):
            outcomes[row] = None
    return outcomes


def _unfit(got: str) -> TypeError:
    return TypeError(
        f"load_rows returned {got}, wanted None, or a list with one outcome a row: a dict of additional data, None, or "
        "the exception that says what is wrong with that row (arrays are filled in place, not returned)"
    )


def runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as `(begin, end)` of their runs."""
    begin = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield rows[begin], rows[i - 1] + 1
            begin = i
