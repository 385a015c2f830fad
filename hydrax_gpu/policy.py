"""What is to become of items that cannot be loaded: `ErrorPolicy`; and what became of them: `BadItem`, `BadItems`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast, final, get_args, overload

from hydrax_gpu._arguments import at_least, choice

__all__ = ["BadItem", "BadItems", "BadLedger", "ErrorPolicy", "ItemKey", "Mode", "bad_from_state"]

Mode: TypeAlias = Literal["drop", "replace", "raise"]
_MODES: tuple[Mode, ...] = get_args(Mode)

_FILE_VERSION = 1
_TRACEBACKS = 1000
_TEXTS = 16
_TEXT_LENGTH = 80


class ItemKey(NamedTuple):
    """Names an item among all groups of a loader."""

    validation: bool
    group: int
    item: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BadItem:
    """An item that could not be loaded."""

    item: int
    """Index of the item in its group."""
    group: int = 0
    """Index of its group among the training (or validation) groups."""
    validation: bool = False
    """Whether that is a validation group."""
    epoch: int = 0
    """Pass over the group in which it failed first."""
    error: str = ""
    """Type and text of the exception that it failed with first."""
    traceback: str = ""
    """The worker's traceback of that."""
    count: int = 0
    """How often it failed, retries not counted; 0 for one that is only known from a skip list."""
    lethal: bool = False
    """Whether it was found bad because its worker died each time. Such an item is not tried again."""

    @property
    def key(self) -> ItemKey:
        """What tells it from the others."""
        return ItemKey(self.validation, self.group, self.item)


@final
class BadItems(Sequence[BadItem]):
    """Bad items, each once, in the order in which they were found.

    `save` writes them to a file that `ErrorPolicy(skip=...)` takes.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[BadItem] = ()) -> None:
        """The first of several with the same group and index is kept.

        Raises:
            TypeError: something else is among the items.
        """
        kept: dict[ItemKey, BadItem] = {}
        for item in items:
            if not isinstance(item, BadItem):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"bad items: got {item!r}, wanted BadItem(item=index, group=..., validation=...)")
            kept.setdefault(item.key, item)
        self._items = tuple(kept.values())

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> BadItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BadItem]: ...
    def __getitem__(self, index: int | slice) -> BadItem | Sequence[BadItem]:
        return self._items[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BadItems):
            return self._items == other._items
        return self._items == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"BadItems({list(self._items)!r})"

    def items(self, group: int = 0, *, validation: bool = False) -> list[int]:
        """The indices of the bad items of one group, ascending."""
        return sorted(bad.item for bad in self if bad.group == group and bad.validation == validation)

    def to_json(self) -> dict[str, Any]:
        """All of it as a dict for `json.dump`."""
        fields = BadItem.__dataclass_fields__
        return {"version": _FILE_VERSION, "bad": [{name: getattr(bad, name) for name in fields} for bad in self]}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> BadItems:
        """What `to_json` returned.

        Raises:
            ValueError: it is not that; the message says what was wrong.
        """
        if not isinstance(value, Mapping) or value.get("version") != _FILE_VERSION:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"not a list of bad items: got {_shown(value)}, wanted a dict with version {_FILE_VERSION}, as "
                "report().bad.save() writes it"
            )
        entries = value.get("bad")
        if not isinstance(entries, list):
            raise ValueError(f"the list of bad items has no list under 'bad', but {_shown(entries)}")
        return BadItems(_parse(entry) for entry in cast("list[object]", entries))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes them to a JSON file, in place of an older one in one step."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> BadItems:
        """Reads a file that `save` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file.
        """
        try:
            return BadItems.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


def _parse(entry: object) -> BadItem:
    fields, shown = BadItem.__dataclass_fields__, _shown(entry)
    values: dict[str, Any] = dict(cast("Mapping[str, Any]", entry)) if isinstance(entry, Mapping) else {}
    if "item" not in values:
        raise ValueError(f"a bad item must be a dict with its index under 'item', got {shown}")
    unknown: list[str] = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"a bad item has the fields {', '.join(fields)}, got {', '.join(unknown)}")
    types: dict[str, type] = {"item": int, "group": int, "epoch": int, "count": int, "error": str, "traceback": str}
    for name, value in values.items():
        wanted = types.get(name, bool)
        if type(value) is not wanted or (wanted is int and value < 0):
            raise ValueError(f"{name!r} of a bad item must be {_NAMES[wanted]}, got {_shown(value)}")
    return BadItem(**values)


_ADVICE = "The state is damaged, or not one of this loader: pass on unchanged what was saved."
_NAMES = {int: "an integer of at least 0", str: "a string", bool: "true or false"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@final
class BadLedger:
    """Bad items as they are found: each once, with how often."""

    def __init__(self, known: Iterable[BadItem] = ()) -> None:
        self._items: dict[ItemKey, BadItem] = {bad.key: bad for bad in known}

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: ItemKey) -> bool:
        return key in self._items

    def add(self, bad: BadItem) -> bool:
        """Counts an item; returns whether it is a new one."""
        before = self._items.get(bad.key)
        if before is None:
            # Text enough to find the fault in; a month of bad items must not fill the memory.
            self._items[bad.key] = bad if len(self._items) < _TRACEBACKS else replace(bad, traceback="")
            return True
        first = before if before.count else bad  # one from a skip list has nothing to tell yet
        lethal = before.lethal or bad.lethal
        self._items[bad.key] = replace(first, count=before.count + bad.count, lethal=lethal)
        return before.count == 0

    def snapshot(self) -> BadItems:
        """All of them now."""
        return BadItems(self._items.values())

    def to_state(self) -> list[list[Any]]:
        """What a saved state keeps of them: `[validation, group, item, epoch, count, lethal, error]` each.

        The text is there for the first few only, and short: a state is a small thing.
        """
        return [
            [*map(int, bad.key), bad.epoch, bad.count, int(bad.lethal), bad.error[:_TEXT_LENGTH] if i < _TEXTS else ""]
            for i, bad in enumerate(self._items.values())
        ]


def _list(value: object) -> list[Any]:
    return list(cast("Sequence[Any]", value)) if isinstance(value, list | tuple) else []


def bad_from_state(entries: object) -> list[BadItem]:
    """What `BadLedger.to_state` returned.

    Raises:
        ValueError: it is not that.
    """
    found: list[BadItem] = []
    if not isinstance(entries, list | tuple):
        raise ValueError(f"the state's 'bad' must be a list, got {_shown(entries)}. {_ADVICE}")
    for entry in _list(cast("object", entries)):
        fields = _list(entry)
        if (
            len(fields) != 7
            or not all(type(number) is int and number >= 0 for number in fields[:6])
            or type(fields[6]) is not str
        ):
            raise ValueError(
                f"the state's 'bad' must hold lists of six integers and a text, got {_shown(entry)}. {_ADVICE}"
            )
        validation, group, item, epoch, count, lethal, error = fields
        found.append(
            BadItem(
                item=item, group=group, validation=bool(validation), epoch=epoch, count=count, lethal=bool(lethal),
                error=error,
            )
        )  # fmt: skip
    return found


@final
@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What a `Dataloader` does about items that cannot be loaded. Whatever it does is in `report()` and is logged.

    An item is bad when the loader function raised for it (and did so again at each retry), when its descriptor could
    not be had or sent to a worker, when what the function returned could not be sent back, or when its worker process
    died over it three times.

    Attributes:
        mode: `"drop"` leaves out the whole batch that a bad item is in. `"replace"` puts another item of the same group
            in its place, chosen as a pure function of the group's seed, the epoch and the item, and marked in
            `Batch.replaced`. `"raise"` ends the iteration with a `LoaderError` at the item's batch.
        retries: how often an item whose loading raised is tried again, in its worker, before it is bad.
        backoff: seconds before the first retry; each further one waits twice as long as the one before.
        budget: how many different items may be bad before the iteration ends with `TooManyBadItems`: a count, or as a
            float between 0 and 1 a fraction of all items of all groups. None: as many as may be. In any case a run of
            which nothing is left ends so: when all batches of a whole epoch in a row were dropped, or the first 64
            of a run, or all there were.
        skip: items that are known to be bad, and are not even tried: what `report().bad` of another run was, or the
            path of a file that `report().bad.save(path)` wrote. They are dropped or replaced as the mode says
            (replaced with `"raise"`), and do not count for the budget.
        restarts: how many deaths of worker processes are mended, by redoing what they had to do and starting others in
            their place, before the iteration ends with `WorkerDied`. Deaths for which an item is found guilty do not
            count, and every 1000 batches that were loaded make up for one. With 0, the first death is an error.

    Raises:
        ValueError, TypeError: an argument is not valid.
    """

    mode: Mode = "drop"
    retries: int = 0
    backoff: float = 0.1
    budget: int | float | None = None
    skip: Iterable[BadItem] | str | os.PathLike[str] = ()
    restarts: int = 16

    def __post_init__(self) -> None:
        choice("on_error mode", self.mode, _MODES)
        at_least("on_error retries", self.retries, 0)
        at_least("on_error restarts", self.restarts, 0)
        backoff: Any = self.backoff
        if isinstance(backoff, bool) or not isinstance(backoff, int | float):
            raise TypeError(f"on_error backoff: got {backoff!r}, wanted seconds")
        if not 0 <= backoff < math.inf:
            raise ValueError(f"on_error backoff: got {backoff!r}, wanted seconds, at least 0 and finite")
        budget: Any = self.budget
        if isinstance(budget, float):
            if not 0 <= budget <= 1:
                raise ValueError(f"on_error budget: got {budget!r}, wanted a count (an int) or a fraction from 0 to 1")
        elif budget is not None:
            at_least("on_error budget", budget, 0)
        skip = self.skip
        bad = BadItems.load(skip) if isinstance(skip, str | os.PathLike) else BadItems(skip)
        object.__setattr__(self, "skip", bad)

    @property
    def skipped(self) -> BadItems:
        """The items of `skip`."""
        return cast("BadItems", self.skip)

    def limit(self, items: int) -> int | None:
        """How many different items of `items` may be bad; None for all."""
        budget = self.budget
        return math.floor(budget * items) if isinstance(budget, float) else budget

    @staticmethod
    def of(value: Any) -> ErrorPolicy:
        """A policy, or one that has the mode `value`.

        Raises:
            TypeError, ValueError: it is neither.
        """
        if isinstance(value, ErrorPolicy):
            return value
        if isinstance(value, str):
            return ErrorPolicy(mode=cast("Mode", value))
        raise TypeError(f"on_error: got {value!r}, wanted an ErrorPolicy, or one of {', '.join(map(repr, _MODES))}")
