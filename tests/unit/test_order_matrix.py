"""The order, the seeds and the bytes are the same however they are loaded, and from wherever a run goes on."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hydrax_gpu import DataGroup, Dataloader, StateMismatch
from tests.loaders import draw

ARRAYS = {"x": ((3,), np.float32, np.float32), "seed": ((2,), np.uint32, np.uint32)}

WHOLE = 3 * (4 + 3) + 7 * 2
"""Batches of the run: three epochs over both groups, and a validation pass after every third training batch."""


def training() -> list[DataGroup[int]]:
    return [
        DataGroup(5, range(23), loader_arrays=ARRAYS, seed=1, shuffle_first=True),
        DataGroup(3, range(100, 107), loader_arrays=ARRAYS, seed=2, shuffle_later="batchwise", remainder="pad"),
    ]


def validation() -> tuple[Any, int, Any]:
    return ("batch", 3, DataGroup(4, range(200, 208), loader_arrays=ARRAYS))


def loader(load: Any = draw, **options: Any) -> Dataloader[int]:
    options = {"executor": "inline", "end_at": ("epoch", 3), "validation": validation()} | options
    return Dataloader(load, options.pop("training", None) or training(), **options)


def digest(batch: Any) -> str:
    """Of everything that a batch holds and says about where it belongs."""
    where = (batch.epoch, batch.epoch_batch, batch.batch_num, batch.seed) if batch.is_training else ()
    seeds = list(batch.seeds) if batch.is_training else None
    hashed = hashlib.sha256(
        repr(
            (
                *(type(batch).__name__, where, batch.group_index, list(batch.indices), list(batch.data), seeds),
                *(list(batch.additional["item"]), list(batch.additional["seed"]), batch.valid.tolist()),
            )
        ).encode()
    )
    for name, array in batch.arrays.items():
        hashed.update(f"{name} {array.shape} {array.dtype}".encode())
        hashed.update(np.asarray(array).tobytes())
    return hashed.hexdigest()


def digests(it: Dataloader[int]) -> list[str]:
    found: list[str] = []
    with it:
        for batch in it:
            found.append(digest(batch))
            del batch
    return found


@pytest.fixture(scope="module")
def reference() -> list[str]:
    return digests(loader())


def test_the_run_is_as_long_as_planned_and_no_two_batches_are_the_same(reference: list[str]) -> None:
    assert len(reference) == WHOLE
    # Validation passes are the same each time, and nothing else is.
    assert len(set(reference)) == 3 * (4 + 3) + 2


MATRIX = [
    *(("inline", 1, depth, True, "auto") for depth in (1, 3)),
    *(("thread", workers, depth, True, "auto") for workers in (1, 2, 4) for depth in (1, 3)),
    *(("process", workers, depth, True, "auto") for workers, depth in ((1, 1), (2, 3), (4, 1), (4, 3))),
    *((executor, 2, 3, True, "alias") for executor in ("thread", "process")),
]


@pytest.mark.parametrize(("executor", "workers", "depth", "deterministic", "delivery"), MATRIX)
def test_the_order_does_not_depend_on_how_it_is_loaded(
    reference: list[str], executor: Any, workers: int, depth: int, deterministic: bool, delivery: Any
) -> None:
    it = loader(executor=executor, loader_count=workers, depth=depth, deterministic=deterministic, delivery=delivery)
    assert digests(it) == reference


@pytest.mark.parametrize(
    ("executor", "workers", "depth"),
    [("inline", 1, 3), *(("thread", workers, depth) for workers in (1, 2, 4) for depth in (1, 3)), ("process", 2, 3)],
)
def test_out_of_order_each_batch_comes_once_and_holds_the_same(
    reference: list[str], executor: Any, workers: int, depth: int
) -> None:
    it = loader(executor=executor, loader_count=workers, depth=depth, deterministic=False)
    assert Counter(digests(it)) == Counter(reference)


@pytest.mark.parametrize("interleave", [True, False])
def test_another_way_to_mix_groups_is_another_order_of_the_same_batches(interleave: bool) -> None:
    one = digests(loader(validation=None, interleave_groups=interleave))
    other = digests(loader(validation=None, interleave_groups=interleave, executor="thread", loader_count=3))
    assert one == other and len(one) == 21


# Going on.


def states_of(it: Dataloader[int], after: Any = None) -> tuple[list[str], list[str]]:
    """The digests of a run and, as JSON, its state before the first and after each batch."""
    found: list[str] = []
    states = [json.dumps(it.state())]
    with it:
        for batch in it:
            found.append(digest(batch))
            states.append(json.dumps(it.state()))
            if after is not None:
                after(len(found))
            del batch
    return found, states


def test_a_run_goes_on_exactly_from_every_step(reference: list[str]) -> None:
    found, states = states_of(loader())
    assert found == reference
    for step, state in enumerate(states):
        assert len(state) < 4096
        rest = loader(start_at=json.loads(state))
        assert rest.state() == json.loads(state), "before its first batch, a resumed run stands where it began"
        assert digests(rest) == reference[step:], f"resumed after {step} batches"


def test_states_are_taken_inside_and_after_the_with_block_and_say_the_same() -> None:
    it = loader()
    with it:
        for _ in range(5):
            next(it)
        inside = it.state()
    assert it.state() == inside
    assert inside is not it.state(), "a caller may change what it got"


def test_a_state_may_be_changed_by_its_owner() -> None:
    it = loader()
    expected = copy.deepcopy(it.state())
    it.state()["fingerprint"]["training"][0]["seed"] = 99
    assert it.state() == expected


def test_batches_that_were_loaded_ahead_do_not_count(reference: list[str]) -> None:
    it = loader(executor="thread", depth=6, loader_count=2)
    with it:
        for _ in range(4):
            next(it)
    assert digests(loader(start_at=it.state())) == reference[4:]


def test_a_run_that_came_out_of_order_goes_on_exactly_from_every_step(reference: list[str]) -> None:
    # One item of the first batch waits until some other batch was handed out. The worker that has it can hold parts of
    # two batches at most, so that of three batches one is always complete.
    free = threading.Event()
    with loader() as probe:
        first = next(probe).data[0]

    def load(item: int, arrays: Any, seed: int | None) -> Any:
        if item == first:
            free.wait()
        return draw(item, arrays, seed)

    it = loader(load, executor="thread", loader_count=2, depth=3, deterministic=False)
    found, states = states_of(it, after=lambda count: free.set())
    assert Counter(found) == Counter(reference)
    assert found[0] != reference[0], "the batch that waits comes later"
    assert json.loads(states[1])["ahead"], "its successor was handed out before its turn"
    for step, state in enumerate(states):
        assert len(state) < 4096
        rest = Counter(reference) - Counter(found[:step])
        for deterministic in (True, False):
            resumed = loader(start_at=json.loads(state), deterministic=deterministic)
            assert Counter(digests(resumed)) == rest, f"resumed after {step} batches"


def test_a_run_may_be_resumed_again_and_again(reference: list[str]) -> None:
    found: list[str] = []
    state: Any = (0, 0)
    while len(found) < WHOLE:
        it = loader(start_at=state)
        with it:
            for batch, _ in zip(it, range(4), strict=False):
                found.append(digest(batch))
                state = json.loads(json.dumps(it.state()))
                if len(found) % 4 == 0:
                    break
    assert found == reference


def test_a_run_at_its_end_goes_on_with_nothing_or_with_more(reference: list[str]) -> None:
    it = loader()
    digests(it)
    assert digests(loader(start_at=it.state())) == []
    more = digests(loader(start_at=it.state(), end_at=("epoch", 4)))
    assert reference + more == digests(loader(end_at=("epoch", 4))) and more


def test_a_state_is_the_same_for_other_workers_depth_and_end(reference: list[str]) -> None:
    it = loader(executor="thread", loader_count=3, depth=5, end_at=None)
    with it:
        for _ in range(9):
            next(it)
    assert digests(loader(start_at=it.state(), depth=1)) == reference[9:]


# Going on with something else.


def group(**options: Any) -> DataGroup[int]:
    options = {"seed": 1, "shuffle_first": True} | options
    return DataGroup(options.pop("size", 5), options.pop("data", range(23)), loader_arrays=ARRAYS, **options)


def saved() -> dict[str, Any]:
    return loader(training=[group(), group(seed=2)]).state()


@pytest.mark.parametrize(
    ("options", "field", "before", "now"),
    [
        ({"training": [group(size=4), group(seed=2)]}, "training[0].batch_size", 5, 4),
        ({"training": [group(), group(seed=3)]}, "training[1].seed", 2, 3),
        ({"training": [group(data=range(24)), group(seed=2)]}, "training[0].length", 23, 24),
        ({"training": [group(shuffle_first=False), group(seed=2)]}, "training[0].shuffle_first", True, False),
        (
            {"training": [group(), group(seed=2, shuffle_later="repeat")]},
            "training[1].shuffle_later", "itemwise", "repeat",
        ),
        ({"training": [group(), group(seed=2, remainder="pad")]}, "training[1].remainder", "drop", "pad"),
        ({"training": [group(weight=1), group(seed=2, weight=3)]}, "training[0].weight", None, "1/4"),
        ({"training": [group()]}, "number of training groups", 2, 1),
        ({"interleave_groups": False}, "interleave", True, False),
        ({"validation": None}, "validation", "present", None),
        ({"validation": ("epoch", 3, validation()[2])}, "validation.mode", "batch", "epoch"),
        ({"validation": ("batch", 4, validation()[2])}, "validation.interval", 3, 4),
        (
            {"validation": ("batch", 3, DataGroup(2, range(8), loader_arrays=ARRAYS))},
            "validation.groups[0].batch_size", 4, 2,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_state_of_another_order_is_refused_and_names_the_difference(
    options: dict[str, Any], field: str, before: object, now: object
) -> None:
    options = {"training": [group(), group(seed=2)]} | options
    with pytest.raises(StateMismatch) as caught:
        loader(start_at=saved(), **options)
    error = caught.value
    assert (error.field, error.saved, error.current) == (field, before, now)
    assert str(error).startswith(
        f"the saved state does not fit this loader: {field} was {before!r} in it and is {now!r} now."
    )


def test_what_does_not_change_the_order_may_change() -> None:
    other = DataGroup(5, range(23), loader_arrays=ARRAYS | {"y": ((), "u1", "u1")}, seed=1, shuffle_first=True)
    it = loader(start_at=saved(), training=[other, group(seed=2)], depth=7, loader_count=3, end_at=None)
    assert it.first_batch == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("epoch"), "the state lacks 'epoch'"),
        (lambda state: state.update(version=99), "the state has version 99, but this release reads version 1"),
        (lambda state: state.update(batch=-1), "the state's 'batch' must hold integers of at least 0, got -1"),
        (lambda state: state.update(batch=10**6), "the state's 'batch' must be below 8"),
        (lambda state: state.update(ahead=3), "the state's 'ahead' must be a list of integers, got 3"),
        (lambda state: state.update(fingerprint=None), "the state's 'fingerprint' must be a dict as it was saved"),
        (lambda state: state.clear(), "the state lacks 'version'"),
    ],
)
def test_a_damaged_state_is_refused(change: Any, text: str) -> None:
    state = saved()
    change(state)
    with pytest.raises(ValueError) as caught:
        loader(start_at=state, training=[group(), group(seed=2)])
    assert text in str(caught.value)
    assert not isinstance(caught.value, StateMismatch)
