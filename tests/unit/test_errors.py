"""The text of every error of our own: what was got, what was wanted, what to do."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from hydrax_gpu import BadItem, BadItems, errors

BAD = BadItems(
    [
        BadItem(
            item=7, error="ValueError: no such file", traceback="Traceback ...\nValueError: no such file\n", count=1
        ),
        BadItem(item=2, group=1, validation=True, epoch=3, error="OSError: gone", count=1),
        BadItem(item=9),
    ]
)

TEXTS: list[tuple[Exception, str]] = [
    (
        errors.BatchTimeoutError("no batch has been produced for 3 seconds (timeout_sec).", [4], {0: "stack"}),
        "no batch has been produced for 3 seconds (timeout_sec).",
    ),
    (
        errors.LoaderError(
            item_index=7,
            group_index=1,
            validation=False,
            seed=12,
            epoch=3,
            error="ValueError: no such file",
            worker_traceback="Traceback ...\n",
        ),
        "item 7 of training group 1 (epoch 3, seed 12) could not be loaded: ValueError: no such file.\n\n"
        "Traceback of the worker:\nTraceback ...\n",
    ),
    (
        errors.LoaderError(
            item_index=7,
            group_index=0,
            validation=True,
            seed=None,
            epoch=0,
            error="ValueError: Seed must be between 0 and 2**32 - 1",
            worker_traceback="",
        ),
        "item 7 of validation group 0 (epoch 0, seed None) could not be loaded: "
        "ValueError: Seed must be between 0 and 2**32 - 1.\nSeeds have 63 bits. Use numpy.random.default_rng(seed), or "
        "for the legacy generators numpy.random.RandomState(seed % 2**32).",
    ),
    (
        errors.NotEnoughMemory("3 slots of 4,096 bytes", 12288, 100, "memory of this machine", "end other programs"),
        "3 slots of 4,096 bytes need 12,288 bytes, but the memory of this machine leaves 100. Lower depth or "
        "batch_size, make the arrays smaller, or end other programs.",
    ),
    (errors.PlacementError("placement_func raised ValueError: no"), "placement_func raised ValueError: no"),
    (
        errors.StateMismatch("training[0].batch_size", 8, 4),
        "the saved state does not fit this loader: training[0].batch_size was 8 in it and is 4 now. Resume with the "
        "same batch_size, or start anew without the state.",
    ),
    (
        errors.TooManyBadItems("more items are bad than the budget of the ErrorPolicy allows (2).", BAD),
        "more items are bad than the budget of the ErrorPolicy allows (2). Bad items so far: 3.\n"
        "  item 7 of training group 0 (epoch 0): ValueError: no such file\n"
        "  item 2 of validation group 1 (epoch 3): OSError: gone\n"
        "  item 9 of training group 0 (epoch 0): known from a skip list\n"
        "\nTraceback of the first:\nTraceback ...\nValueError: no such file\n",
    ),
    (
        errors.WorkerDied(4711, -9, [1, 2]),
        "loader process 4711 was ended by signal 9 (SIGKILL) while it held items [1, 2]. Signal 9 is what the kernel "
        "sends when memory runs out: see dmesg, lower loader_count or depth.",
    ),
    (
        errors.WorkerDied(4711, -11, list(range(20)), "Fatal Python error: Segmentation fault", 17),
        "loader process 4711 was ended by signal 11 (SIGSEGV) while it held items [0, 1, 2, 3, 4, 5, 6, 7, ...]. "
        "17 deaths are more than the ErrorPolicy allows (restarts). A native library that the loader function calls "
        "has crashed; executor='inline' shows where.\n\nFatal Python error: Segmentation fault",
    ),
    (
        errors.WorkerDied(4711, 3, []),
        "loader process 4711 exited with status 3 while it held no items.",
    ),
    (
        errors.WorkerDied(4711, None, [5]),
        "loader process 4711 ended for an unknown reason while it held items [5].",
    ),
    (
        errors.WorkerStartError("a worker could not start: OSError: no such licence server"),
        "a worker could not start: OSError: no such licence server",
    ),
    (
        errors.CacheDamaged("latents", "training group 0", [3, 5]),
        "the entries of items 3, 5 in the cache of training group 0, latents, are damaged or gone, and all processes "
        "had agreed to read them. Other processes have the same rows, so that this one cannot replace them alone. Run "
        "`hydrax-gpu cache repair latents`, which takes out what is damaged, and start the job again from its last "
        "state.",
    ),
    (
        errors.CacheError("there is no cache in latents"),
        "there is no cache in latents",
    ),
    (
        errors.CacheMismatch("latents", "seed", 1, 2, "Set it as it was, or use another cache_location."),
        "the cache in latents does not fit: its seed is 1, and 2 is wanted here. Set it as it was, or use another "
        "cache_location.",
    ),
    (
        errors.CacheWriteError("nothing more is written to the cache in latents: No space left on device.", 28),
        "nothing more is written to the cache in latents: No space left on device.",
    ),
    (
        errors.UnsafeCache("additional data in latents is pickled"),
        "additional data in latents is pickled",
    ),
    (
        errors.ImageError("photos/1.jpg", "it is empty (0 bytes)"),
        "photos/1.jpg: it is empty (0 bytes)",
    ),
    (
        errors.DecodeError("array 'tokens': its row splits are not sound"),
        "array 'tokens': its row splits are not sound",
    ),
    (
        errors.StatesDiffer("batch", 3, 4, 2),
        "the processes' states differ: batch is 3 on process 0 and 4 on process 2. All processes of a job must take "
        "the same batches and save after the same one. Look for a loop that ends at another step on one of them, and "
        "save the states of loaders that have nothing to do with each other one by one, each under its own name.",
    ),
    (
        errors.StatesDiffer("fingerprint.training[0].seed", 5, 6, 1),
        "the processes' states differ: fingerprint.training[0].seed is 5 on process 0 and 6 on process 1. All "
        "processes of a job need the same groups: the same data, batch sizes, seeds and options.",
    ),
    (errors.SourceError("train.tar: a/1.jpg", "it ends in the middle"), "train.tar: a/1.jpg: it ends in the middle"),
    (errors.SourceChanged("train.tar", "it was 5 bytes long"), "train.tar: it was 5 bytes long"),
]


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_an_error_says_what_was_got_and_what_to_do(error: Exception, text: str) -> None:
    assert str(error) == text


def test_no_error_class_is_left_out() -> None:
    assert {type(error).__name__ for error, _ in TEXTS} == set(errors.__all__)


def test_a_long_list_of_bad_items_is_cut() -> None:
    text = str(errors.TooManyBadItems("too many.", BadItems(BadItem(item=i, error="E") for i in range(100))))
    assert "Bad items so far: 100." in text and text.count("\n") == 9 and text.endswith("and 92 more")


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (TEXTS[0][0], {"items": (4,), "stacks": {0: "stack"}}),
        (TEXTS[3][0], {"needed": 12288, "free": 100, "limit": "memory of this machine"}),
        (TEXTS[5][0], {"field": "training[0].batch_size", "saved": 8, "current": 4}),
        (TEXTS[6][0], {"bad": BAD}),
        (TEXTS[7][0], {"pid": 4711, "exitcode": -9, "items": [1, 2], "stack": ""}),
    ],
)
def test_what_an_error_says_can_be_had_from_its_attributes(error: Exception, attributes: dict[str, Any]) -> None:
    assert {name: getattr(error, name) for name in attributes} == attributes


@pytest.mark.parametrize(("error", "text"), TEXTS, ids=lambda value: type(value).__name__)
def test_errors_can_be_sent_to_another_process(error: Exception, text: str) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == text and vars(copy) == vars(error)
