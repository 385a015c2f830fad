"""What a user's graph is called with: `Sample`, whose fields and random draws are nodes of a DALI graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, cast, final

import numpy as np
import numpy.typing as npt

from hydrax_gpu.loaders._dali_random import Choice, CoinFlip, Draw, Normal, Uniform

__all__ = ["Node", "Random", "Sample", "asks_for_device", "input_names"]

Node: TypeAlias = Any
"""A `nvidia.dali.pipeline.DataNode`."""

MakeInput: TypeAlias = Callable[[str], Node]
"""Makes the node of an input of the graph, given a name for it."""

Shape: TypeAlias = int | Sequence[int]


@final
class Random:
    """Draws random numbers for a graph, one draw an item, from the item's seed.

    Each call is a node of the graph, and a place of its own to draw from: its numbers depend on the item's seed and on
    how many calls came before it when the graph was built, and on nothing else. `hydrax_gpu.loaders._dali_random` has
    the formulas. DALI's own `fn.random` draws in the order in which samples happen to come.

    A validation graph has no seeds, and calling any of these in it is a `RuntimeError`: ask `sample.training` first.
    """

    def __init__(self, make_input: MakeInput, training: bool) -> None:
        self._make_input = make_input
        self._training = training
        self._draws: dict[str, Draw] = {}

    def uniform(
        self,
        range: tuple[float, float] = (-1.0, 1.0),
        *,
        values: Sequence[float] | None = None,
        shape: Shape = (),
        dtype: npt.DTypeLike = np.float32,
    ) -> Node:
        """Numbers from `[range[0], range[1])`, or each of `values` with the same probability.

        Args:
            range: two finite numbers, the first one less.
            values: what to choose from, in place of a range.
            shape: of one item's draw.
            dtype: a floating-point type, or with `values` any.

        Raises:
            ValueError, TypeError: an argument is not valid.
            RuntimeError: this is a validation graph.
        """
        if values is not None:
            return self._choice("uniform", "values", values, None, shape, dtype)
        low, high = (float(bound) for bound in range)
        kind = np.dtype(dtype)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"sample.random.uniform: got range {range!r}, wanted (low, high) with low < high")
        if kind.kind != "f":
            raise ValueError(
                f"sample.random.uniform: got dtype {kind.name}, wanted a floating-point type; whole numbers are drawn "
                "by sample.random.choice(n)"
            )
        return self._node("uniform", Uniform(self._site, _shape("uniform", shape), kind, low, high))

    def coin_flip(self, probability: float = 0.5, *, shape: Shape = (), dtype: npt.DTypeLike = np.int32) -> Node:
        """1 with the given probability, otherwise 0.

        Raises:
            ValueError: the probability is not one.
            RuntimeError: this is a validation graph.
        """
        if not 0 <= probability <= 1:
            raise ValueError(f"sample.random.coin_flip: got probability {probability!r}, wanted 0 to 1")
        flip = CoinFlip(self._site, _shape("coin_flip", shape), np.dtype(dtype), float(probability))
        return self._node("coin_flip", flip)

    def normal(
        self, mean: float = 0.0, stddev: float = 1.0, *, shape: Shape = (), dtype: npt.DTypeLike = np.float32
    ) -> Node:
        """Normally distributed numbers, at most 8.6 standard deviations from the mean.

        Raises:
            ValueError: `mean` or `stddev` is not finite, or `stddev` is negative, or the dtype no floating-point one.
            RuntimeError: this is a validation graph.
        """
        if not (math.isfinite(mean) and math.isfinite(stddev) and stddev >= 0):
            raise ValueError(f"sample.random.normal: got mean {mean!r} and stddev {stddev!r}, wanted finite numbers")
        kind = np.dtype(dtype)
        if kind.kind != "f":
            raise ValueError(f"sample.random.normal: got dtype {kind.name}, wanted a floating-point type")
        return self._node("normal", Normal(self._site, _shape("normal", shape), kind, float(mean), float(stddev)))

    def choice(
        self,
        a: int | Sequence[Any] | npt.NDArray[Any],
        *,
        p: Sequence[float] | None = None,
        shape: Shape = (),
        dtype: npt.DTypeLike | None = None,
    ) -> Node:
        """One of `a`'s elements, or of `0 .. a - 1`, with replacement.

        Args:
            a: a number, or a one-dimensional sequence of numbers.
            p: the probability of each; all the same by default.
            shape: of one item's draw.
            dtype: that of `a` by default, int64 for a number.

        Raises:
            ValueError: there is nothing to choose from, or `p` does not fit or does not sum up to 1.
            RuntimeError: this is a validation graph.
        """
        return self._choice("choice", "a", a, p, shape, dtype)

    @property
    def _site(self) -> int:
        return len(self._draws)

    def _choice(
        self, name: str, argument: str, a: Any, p: Sequence[float] | None, shape: Shape, dtype: npt.DTypeLike | None
    ) -> Node:
        values: npt.NDArray[Any] = np.arange(int(cast("int", a))) if np.ndim(a) == 0 else np.asarray(a)
        if values.ndim != 1 or not len(values) or values.dtype.kind not in "biuf":
            raise ValueError(
                f"sample.random.{name}: got {argument}={a!r}, wanted a positive number or a sequence of numbers"
            )
        cumulative = None
        if p is not None:
            weights = np.asarray(p, np.float64)
            if weights.shape != values.shape or not (weights >= 0).all() or abs(weights.sum() - 1) > 1e-6:
                raise ValueError(
                    f"sample.random.{name}: got p={p!r}, wanted {len(values)} probabilities that sum up to 1"
                )
            cumulative = np.cumsum(weights)
        kind = values.dtype if dtype is None else np.dtype(dtype)
        return self._node(name, Choice(self._site, _shape(name, shape), kind, values, cumulative))

    def _node(self, name: str, draw: Draw) -> Node:
        if not self._training:
            raise RuntimeError(
                f"sample.random.{name}() was called for validation, whose items have no seed to draw from. Write\n\n"
                f"    if sample.training:\n        x = sample.random.{name}(...)\n    else:\n        x = ..."
            )
        source = f"random_{draw.site}"
        self._draws[source] = draw
        return self._make_input(source)


@final
class Sample:
    """One item in a graph: `sample.NAME`, or `sample["NAME"]`, is the node of the field `NAME` of its descriptor.

    The node of a file or of bytes is a one-dimensional uint8 array of its contents.
    """

    training: bool
    """Whether the graph is for training; it is built anew for validation. A Python bool: use it in plain `if`s."""
    random: Random
    """Random numbers for the item."""

    def __init__(
        self, names: Sequence[str], make_input: MakeInput, training: bool, device: Literal["cpu", "gpu"] = "cpu"
    ) -> None:
        self.training = training
        self._device: Literal["cpu", "gpu"] = device
        self._asked = False
        self.random = Random(make_input, training)
        self._names = tuple(names)
        self._make_input = make_input
        self._nodes: dict[str, Node] = {}

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """What the graph is built for: `"gpu"` where a GPU runs it (see `DaliLoader`), otherwise `"cpu"`.

        For operators that take nothing that is on the GPU yet: `fn.copy(sample.data, device=sample.device)`. All that
        comes of what is there is there, too.
        """
        self._asked = True
        return self._device

    @property
    def mixed(self) -> Literal["cpu", "mixed"]:
        """The same for decoders of images, which DALI has `"mixed"` where their output is on the GPU.

        `fn.decoders.image(sample.image, device=sample.mixed)`
        """
        return "cpu" if self.device == "cpu" else "mixed"

    def __getitem__(self, name: str) -> Node:
        """The node of a field.

        Raises:
            KeyError: the descriptors have no such field.
        """
        if name not in self._names:
            raise KeyError(f"the items have no field {name!r}; they have {', '.join(map(repr, self._names))}")
        if name not in self._nodes:
            self._nodes[name] = self._make_input(f"field_{self._names.index(name)}")
        return self._nodes[name]

    def __getattr__(self, name: str) -> Node:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"{error.args[0]}. Is `fields=` of the DaliLoader right?") from None


def input_names(sample: Sample) -> tuple[dict[str, str], dict[str, Draw]]:
    """The inputs that a graph has asked its sample for.

    Returns:
        For each input that is a field the field's name, and for each that is random the draw.
    """
    names = cast("Sequence[str]", sample._names)  # pyright: ignore[reportPrivateUsage]
    nodes = cast("Mapping[str, Node]", sample._nodes)  # pyright: ignore[reportPrivateUsage]
    draws = cast("Mapping[str, Draw]", sample.random._draws)  # pyright: ignore[reportPrivateUsage]
    return {f"field_{names.index(name)}": name for name in nodes}, dict(draws)


def asks_for_device(sample: Sample) -> bool:
    """Whether a graph has asked its sample what it is built for."""
    return sample._asked  # pyright: ignore[reportPrivateUsage]


def _shape(name: str, shape: Shape) -> tuple[int, ...]:
    dims = (shape,) if isinstance(shape, int) else tuple(int(dim) for dim in shape)
    if any(dim < 1 for dim in dims):
        raise ValueError(f"sample.random.{name}: got shape {shape!r}, wanted dimensions of at least 1")
    return dims
