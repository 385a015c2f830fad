"""`RowData`: the rows of a pandas `DataFrame` as the data of a group. Needs the `pandas` extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast, final, overload

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["RowData"]

Series: TypeAlias = pd.Series


@final
class RowData(Sequence[Series]):
    """The rows of a `DataFrame`, each a `Series` with the columns as its index: `DataGroup(64, RowData(frame), ...)`.

    Rows are counted from 0, whatever the frame's own index is; a row's label is the `name` of its series. The frame is
    not copied, and must not be changed while a loader runs.

    A row whose columns have different dtypes is a series of Python objects, as pandas has it, and each is pickled on
    its way to a worker process. Frames of a million rows are better kept in a Parquet or an Arrow file, see
    `hydrax_gpu.sources`.

    Args:
        dataframe: the frame.
    """

    __slots__ = ("_dataframe",)

    def __init__(self, dataframe: pd.DataFrame) -> None:
        if not isinstance(dataframe, pd.DataFrame):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"dataframe: got {type(dataframe).__name__}, wanted a pandas DataFrame")
        self._dataframe = dataframe

    @property
    def dataframe(self) -> pd.DataFrame:
        """The frame itself."""
        return self._dataframe

    def __len__(self) -> int:
        return len(self._dataframe.index)

    @overload
    def __getitem__(self, key: int) -> Series: ...
    @overload
    def __getitem__(self, key: slice) -> RowData: ...
    def __getitem__(self, key: int | slice) -> Series | RowData:
        if isinstance(key, slice):
            return RowData(self._dataframe.iloc[key])
        if isinstance(key, bool) or not isinstance(key, int | np.integer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"got a key of type {type(key).__name__}, wanted the number of a row or a slice")
        if not -len(self) <= key < len(self):
            raise IndexError(f"got row {key}, but the frame has {len(self)}")
        return cast("Series", self._dataframe.iloc[int(key)])

    def __repr__(self) -> str:
        return f"RowData({len(self)} rows of {', '.join(map(str, self._dataframe.columns))})"
