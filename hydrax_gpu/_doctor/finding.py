"""One line of the page."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

__all__ = ["Finding", "State"]

State: TypeAlias = Literal["ok", "limited", "absent", "failed"]
"""It works; it works less well than it could; it is not there; looking at it has failed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found out about one thing.

    Attributes:
        name: of the thing.
        state: see `State`.
        text: what there is, in one line.
        fix: what to do about it; not empty unless `state` is "ok".
        data: the same for programs; numbers have their unit in their name.
    """

    name: str
    state: State
    text: str
    fix: str = ""
    data: dict[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if bool(self.fix) == (self.state == "ok"):
            raise ValueError(f"{self.name}: a finding has a fix if and only if it is not ok, got {self!r}")

    def as_json(self) -> dict[str, Any]:
        """A dict for `json.dumps`."""
        return asdict(self)
