"""`ImageLoader` as its users see it: what a row holds, for which seed, whatever the executor."""

from __future__ import annotations

import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from hydrax_gpu import DataGroup, Dataloader, ImageError
from hydrax_gpu._decode import chain, draws
from hydrax_gpu._decode.geometry import TURNS
from hydrax_gpu._kernels.host import load as load_library
from hydrax_gpu._kernels.resize_crop_flip_normalize import Resize
from hydrax_gpu._plan.philox import philox4x32
from hydrax_gpu.loaders import CenterCrop, ImageLoader, RandomResizedCrop
from hydrax_gpu.loaders.images import draw
from tests import image_files as pictures
from tests.image_files import load, psnr, rows

LABELS = {"label": ((), np.int32, np.int32)}


def box_of(loader: ImageLoader, seed: int | None, width: int, height: int) -> tuple[float, float, float, float]:
    box, _ = draw(loader.declaration, seed, width, height)
    x, y, w, h = (value / 8 for value in box)
    return x, y, w, h


# What a row holds.


@pytest.mark.parametrize("decoder", chain.DECODERS)
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4", "4:1:1"])
def test_a_row_is_the_reference_for_every_crop(decoder: str, subsampling: str) -> None:
    data = pictures.encoded(pictures.photograph(), subsampling=subsampling)
    stored = pictures.decoded(data)
    loader = ImageLoader((40, 48), decoders=[decoder])
    errors: list[float] = []
    for seed in range(40):
        got = load(loader, data, seed)
        box, mirrored = draw(loader.declaration, seed, *stored.size)
        wanted = pictures.reference(stored, tuple(value / 8 for value in box), 40, 48)  # type: ignore[arg-type]
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert psnr(got, wanted) > 50
        difference = got.astype(int) - wanted
        errors += [difference[0].mean(), difference[-1].mean(), difference[:, 0].mean(), difference[:, -1].mean()]
    assert loader.take_counts() is None
    assert abs(np.mean(errors)) < 0.05, "rows and columns at the border of a crop are as right as the others"


def test_parts_that_are_decoded_alone_equal_those_of_the_whole_picture() -> None:
    # what is decoded is compared, before any filter could hide a difference
    from hydrax_gpu._decode.contract import Buffer
    from hydrax_gpu._decode.geometry import Pixels
    from hydrax_gpu._decode.jpeg import scan
    from hydrax_gpu._decode.turbo import Turbo, open_turbo

    turbo = Turbo(open_turbo(_host()), Buffer())
    rng = np.random.default_rng(0)
    for subsampling in ("4:2:0", "4:2:2", "4:4:4", "4:1:1"):
        for progressive in (False, True):
            data = pictures.encoded(pictures.photograph(163, 121), subsampling=subsampling, progressive=progressive)
            header = scan(data)
            assert header is not None
            for eighths in (8, 4, 2, 1):
                size = -(-163 * eighths // 8), -(-121 * eighths // 8)
                array = np.frombuffer(data, np.uint8)
                whole = turbo.decode(array, header, Pixels(0, 0, *size), eighths, gray=False).pixels.copy()
                for _ in range(60):
                    x, y = (int(rng.integers(0, extent)) for extent in size)
                    w, h = int(rng.integers(1, size[0] - x + 1)), int(rng.integers(1, size[1] - y + 1))
                    part = turbo.decode(array, header, Pixels(x, y, w, h), eighths, gray=False)
                    got = part.pixels[y - part.y : y - part.y + h, x - part.x : x - part.x + w]
                    np.testing.assert_array_equal(got, whole[y : y + h, x : x + w])


def test_fewer_pixels_are_decoded_than_the_picture_has(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    original = Resize.__call__

    def resize(self: Resize, picture: Any, *rest: Any, **options: Any) -> None:
        decoded.append(picture.shape[0] * picture.shape[1])
        original(self, picture, *rest, **options)

    monkeypatch.setattr(Resize, "__call__", resize)
    data = pictures.encoded(pictures.photograph())
    _host()
    loader = ImageLoader(16, crop=RandomResizedCrop(scale=(0.1, 0.1)))
    for seed in range(10):
        load(loader, data, seed)
    assert max(decoded) < 0.45 * 160 * 120  # a tenth, and what blocks of 16 × 16 pixels add to it at the left
    decoded.clear()
    load(ImageLoader(20, crop=None), data)  # 8 times smaller across and 6 times down: at half of the size
    assert decoded == [80 * 60]


@pytest.mark.parametrize("size", [8, 16, 20, 24, 30, 36, 42])
def test_pictures_that_are_decoded_smaller_stay_within_the_tolerance(size: int) -> None:
    for seed in range(6):
        data = pictures.encoded(pictures.sharp(400, 300, seed))
        stored = pictures.decoded(data)
        got = load(ImageLoader(size, crop=None, flip=0), data)
        assert psnr(got, pictures.reference(stored, (0, 0, 400, 300), size, size)) > 40


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_exif_orientation_is_honoured(orientation: int, flip: float, layout: Any) -> None:
    stored = pictures.photograph()
    turned = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [4], 7: [6], 8: [2]}[orientation]
    data = pictures.oriented(stored, orientation, subsampling="4:4:4", quality=98)
    upright = pictures.decoded(data)
    for step in turned:  # Pillow's names for them, as its own ImageOps has it
        upright = upright.transpose(Image.Transpose(step))
    loader = ImageLoader((30, 44), flip=flip, layout=layout)
    for seed in range(8):
        got = load(loader, data, seed)
        wanted = pictures.reference(upright, box_of(loader, seed, *upright.size), 30, 44)
        wanted = wanted[:, ::-1] if flip else wanted
        assert psnr(got if layout == "HWC" else got.transpose(1, 2, 0), wanted) > 45


def test_turns_are_those_of_pillow() -> None:
    from PIL import ImageOps

    small = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    for orientation, turn in enumerate(TURNS, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        small.save(file, "PNG", exif=exif.tobytes())
        upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
        values = np.asarray(small)[:: -1 if turn.mirror_y else 1, :: -1 if turn.mirror_x else 1]
        np.testing.assert_array_equal(values.T if turn.swap else values, upright)


def test_orientation_of_other_formats_is_honoured() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = pictures.photograph(40, 30)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = pictures.encoded(stored, kind, exif=exif.tobytes(), **options)
        got = load(ImageLoader((40, 30), crop=None, flip=0), data)
        np.testing.assert_array_equal(got, np.asarray(stored.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", ["HWC", "CHW"])
def test_floats_are_normalised_by_channel(dtype: Any, layout: Any) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data = pictures.encoded(pictures.photograph(64, 64), "PNG")
    loader = ImageLoader(64, crop=None, flip=0, dtype=dtype, mean=mean, std=std, layout=layout)
    got = load(loader, data)
    assert got.dtype == dtype
    wanted = (np.asarray(pictures.photograph(64, 64)) / 255 - mean) / std
    got = got.astype(np.float64) if layout == "HWC" else got.astype(np.float64).transpose(1, 2, 0)
    np.testing.assert_allclose(got, wanted, atol={2: 0.02, 4: 1e-5}[np.dtype(dtype).itemsize])


def test_gray_rows_are_the_luma_of_a_colour_picture() -> None:
    stored = pictures.photograph(64, 48)
    for data in (pictures.encoded(stored, subsampling="4:4:4"), pictures.encoded(stored, "PNG")):
        got = load(ImageLoader((48, 64), crop=None, flip=0, color="gray"), data)
        assert got.shape == (48, 64, 1)
        wanted = np.asarray(pictures.decoded(data).convert("L"))
        assert np.abs(got[..., 0].astype(int) - wanted).mean() < 0.5  # where colours are clipped, luma is not


def test_a_centre_crop_is_the_middle_of_the_resized_picture() -> None:
    stored = pictures.photograph(200, 150)
    loader = ImageLoader(56, crop=CenterCrop(75))  # exactly half the size: pixels 44 to 156 across, 19 to 131 down
    got = load(loader, pictures.encoded(stored, "PNG"))
    assert box_of(loader, None, 200, 150) == (44.0, 19.0, 112.0, 112.0)
    assert psnr(got, pictures.reference(stored, (44, 19, 112, 112), 56, 56)) > 50


def test_by_default_a_validation_item_is_the_centre_crop_and_never_mirrored() -> None:
    data = pictures.encoded(pictures.photograph())
    loader = ImageLoader(28, flip=1.0)
    np.testing.assert_array_equal(load(loader, data, None), load(ImageLoader(28, crop=CenterCrop(32)), data, None))


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg 4:2:2", "jpeg gray", "jpeg rgb", "jpeg restart markers"])
@pytest.mark.parametrize("color", ["RGB", "gray"])
def test_the_quick_way_gives_the_same_as_the_chain_of_decoders(kind: str, color: Any, tmp_path: Path) -> None:
    _host()
    crops = (RandomResizedCrop(), RandomResizedCrop((0.9, 1), (3, 4)), CenterCrop(13), CenterCrop(40), None)
    for (width, height), crop in itertools.product([(48, 36), (211, 317), (9, 400), (3, 2)], crops):
        data = pictures.kinds(width, height)[kind]
        path = tmp_path / f"{width}.jpg"
        path.write_bytes(data)
        quick = ImageLoader((13, 11), crop=crop, color=color, flip=0.3)
        slow = ImageLoader((13, 11), crop=crop, color=color, flip=0.3)
        load(slow, data)
        slow._threads.worker._quick = None
        for seed in (None, *range(12)):
            arguments = {"scale": crop.scale, "ratio": crop.ratio} if isinstance(crop, RandomResizedCrop) else {}
            wanted = load(slow, data, seed)
            np.testing.assert_array_equal(load(quick, str(path), seed), wanted)
            np.testing.assert_array_equal(load(quick, data, seed), wanted)
            if seed is not None and arguments:
                found = quick._threads.worker._quick.load(data, seed, 1, **arguments)
                assert found is not None, "this picture is an ordinary one"
                assert found.flip == draws.flipped(seed, 0.3)


def test_draws_and_boxes_of_the_quick_way_are_those_of_python() -> None:
    _host()
    data = pictures.kinds(333, 257)["jpeg gray"]
    loader = ImageLoader(300)
    load(loader, data)
    quick = loader._threads.worker._quick
    for seed in range(3000):
        found = quick.load(data, seed, 1, scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
        box = draws.random_box(seed, 333, 257, (0.08, 1.0), (0.75, 4 / 3))
        assert found.box[2:] == box[2:]
        assert found.box.x % 8 == 0 == found.box.y
        assert found.flip == draws.flipped(seed, 0.5)


def test_what_is_not_ordinary_is_left_to_the_chain() -> None:
    _host()
    for kind in ("jpeg progressive", "jpeg cmyk", "png rgb"):
        loader = ImageLoader(8)
        load(loader, pictures.kinds()[kind])
        assert loader._threads.worker._quick.load(pictures.kinds()[kind], 1, 0) is None
    turned = pictures.oriented(pictures.photograph(), 6)
    assert loader._threads.worker._quick.load(turned, 1, 0) is None


# Draws.


def test_the_random_words_are_those_of_philox() -> None:
    rng = np.random.default_rng(0)
    for seed in (0, 1, 2**63 - 1, *map(int, rng.integers(0, 2**63, 20))):
        for attempt in (0, 1, 10):
            wanted = philox4x32((attempt, 0, 0, draws.PURPOSE), seed)
            assert draws.words(attempt, seed) == tuple(wanted.ravel().tolist())
            assert draws.host_words(load_library(_host()))(attempt, seed) == draws.words(attempt, seed)


def test_the_draws_stay_what_they_are() -> None:
    # golden values: with other ones, every run with pictures would change
    crop = RandomResizedCrop()
    found = [
        (*(value // 8 for value in draws.random_box(seed, 500, 375, crop.scale, crop.ratio)), draws.flipped(seed, 0.5))
        for seed in (0, 1, 2, 3, 12345678901234567890 % 2**63)
    ]
    assert found == GOLDEN


GOLDEN = [
    (226, 53, 156, 123, True),
    (175, 24, 238, 305, True),
    (55, 31, 332, 299, True),
    (188, 75, 236, 293, False),
    (10, 13, 262, 341, True),
]


def test_boxes_have_the_areas_and_ratios_that_were_asked_for() -> None:
    boxes = np.array([draws.random_box(seed, 500, 375, (0.08, 1), (3 / 4, 4 / 3)) for seed in range(4000)]) / 8
    x, y, w, h = boxes.T
    assert (x >= 0).all()
    assert (y >= 0).all()
    assert (x + w <= 500).all()
    assert (y + h <= 375).all()
    area, ratio = w * h / (500 * 375), w / h
    assert area.min() > 0.075
    assert area.max() <= 1
    assert 0.73 < ratio.min() < 0.77
    assert 1.30 < ratio.max() < 1.36
    small = area < 0.5  # these always fit, so that nothing is rejected: uniform area, uniform logarithm of the ratio
    assert abs(np.mean(area[small]) - 0.29) < 0.01
    assert abs(np.mean(np.log(ratio[small]))) < 0.02
    assert abs(np.mean((x / (500 - w))[w < 500]) - 0.5) < 0.02
    assert abs(np.mean([draws.flipped(seed, 0.3) for seed in range(4000)]) - 0.3) < 0.03


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 10000)])
def test_a_box_is_found_in_a_picture_of_any_shape(size: tuple[int, int]) -> None:
    for seed in range(50):
        x, y, w, h = draws.random_box(seed, *size, (0.08, 1), (3 / 4, 4 / 3))
        assert w >= 8
        assert h >= 8
        assert 0 <= x <= 8 * size[0] - w
        assert 0 <= y <= 8 * size[1] - h


# What it reads.


def test_every_kind_of_descriptor_is_read(tmp_path: Path) -> None:
    data = pictures.encoded(pictures.photograph(40, 30))
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    plain = ImageLoader(8, flip=0)
    wanted = load(plain, data)
    for item in (path, str(path), bytearray(data), memoryview(data), (path,), {"image": data, "unused": 1}):
        np.testing.assert_array_equal(load(plain, item), wanted)
    labelled = ImageLoader(8, labels=LABELS)
    for item in ((path, 3), {"label": 3, "image": path}, [data, np.int64(3)]):
        arrays = rows(labelled)
        labelled(item, arrays, None)
        assert arrays["label"] == 3
        np.testing.assert_array_equal(arrays["image"], wanted)
    own = ImageLoader(8, labels=LABELS, image="picture", read=lambda number: (data, number * 2))
    arrays = rows(own)
    own(21, arrays, None)
    assert arrays["label"] == 42
    np.testing.assert_array_equal(arrays["picture"], wanted)


@pytest.mark.parametrize("item", [("x.jpg", 1), 17, ("x.jpg", 1, 2), [], None])
def test_a_descriptor_of_another_kind_is_an_error_that_says_what_was_wanted(item: Any) -> None:
    with pytest.raises(ValueError, match=r"wanted"):
        load(ImageLoader(8), item)


def test_an_array_that_was_declared_otherwise_is_refused() -> None:
    loader = ImageLoader(8)
    for wrong in (np.zeros((9, 8, 3), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match=r"declare it by the loader's own arrays\(\)"):
            loader(pictures.encoded(pictures.photograph()), {"image": wrong}, None)


def test_what_it_declares_is_what_a_group_wants() -> None:
    loader = ImageLoader((5, 6), layout="CHW", dtype=np.float32, labels=LABELS)
    group = DataGroup(2, ["a", "b"], loader_arrays=loader.arrays("bfloat16"))
    layouts = {name: layout[:3] for name, layout in group.loader_layouts.items()}
    assert layouts["image"] == ((2, 3, 5, 6), np.float32, ml_dtypes.bfloat16)
    assert layouts["label"][0] == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size"),
        ({"size": (1, 2, 3)}, "height, width"),
        ({"crop": CenterCrop(7)}, "resize of at least 8"),
        ({"validation_crop": RandomResizedCrop()}, "no seed"),
        ({"flip": 1.5}, "chance"),
        ({"layout": "WHC"}, "'HWC', 'CHW'"),
        ({"dtype": np.int32}, "uint8, float16"),
        ({"mean": 0.5}, "uint8"),
        ({"dtype": np.float32, "std": (1, 2)}, "3 channels"),
        ({"dtype": np.float32, "std": 0}, "above 0"),
        ({"color": "BGR"}, "gray"),
        ({"background": (1, 2)}, "red, green, blue"),
        ({"max_pixels": 0}, "at least 1"),
        ({"decoders": ["libjpg"]}, "libjpeg-turbo"),
        ({"labels": {"image": ((), int, int)}}, "name of the pictures' array"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageLoader(**({"size": 8} | options))


def test_crops_that_make_no_sense_are_refused() -> None:
    for scale in ((0, 1), (0.5, 0.4), (0.5, 1.1)):
        with pytest.raises(ValueError, match="scale"):
            RandomResizedCrop(scale=scale)
    with pytest.raises(ValueError, match="ratio"):
        RandomResizedCrop(ratio=(2, 1))
    with pytest.raises(TypeError, match="two numbers"):
        RandomResizedCrop(ratio=1)  # type: ignore[arg-type]


# Wherever it runs.


def test_it_is_pickled_without_what_belongs_to_a_thread() -> None:
    data = pictures.encoded(pictures.photograph())
    loader = ImageLoader(16)
    wanted = load(loader, data, 5)
    copy = pickle.loads(pickle.dumps(loader))
    assert copy.declaration == loader.declaration
    np.testing.assert_array_equal(load(copy, data, 5), wanted)


def test_pixels_do_not_depend_on_the_executor_nor_on_who_does_the_kernels_work(tmp_path: Path) -> None:
    paths: list[Any] = []
    for number, kind in enumerate(("jpeg 4:2:0", "png rgb", "jpeg gray", "webp", "jpeg progressive", "jpeg cmyk") * 2):
        path = tmp_path / f"{number}"
        path.write_bytes(pictures.kinds()[kind])
        paths.append((path, number))
    loader = ImageLoader((20, 24), labels=LABELS)
    twin = ImageLoader((20, 24), labels=LABELS)
    twin._begin(None)  # as where there is no compiler
    runs: list[dict[int, Any]] = []
    for each, executor in itertools.product((loader, twin), ("inline", "thread", "process")):
        group = DataGroup(4, paths, loader_arrays=each.arrays(), seed=3, shuffle_first=True)
        found: dict[int, Any] = {}
        it = Dataloader(each, group, executor=executor, loader_count=2, end_at=("epoch", 1))
        with it:
            for batch in it:
                for label, row in zip(batch.arrays["label"].tolist(), np.array(batch.arrays["image"]), strict=True):
                    found[label] = row
                del batch
        assert len(found) == 12
        runs.append(found)
        fallbacks = it.report().fallbacks
        if each is loader and loader._host is not None:
            assert [count for line, count in fallbacks.items() if "Pillow decoded" in line] == [2]
            assert "fallback" in str(it.report())
        if each is twin:
            assert sum(count for line, count in fallbacks.items() if "libjpeg-turbo cannot be used" in line) == 8
    for other in runs[1:]:
        for label, row in runs[0].items():
            np.testing.assert_array_equal(other[label], row)


def test_a_bad_file_is_an_item_error_that_the_policy_deals_with(tmp_path: Path) -> None:
    paths: list[Path] = []
    for number in range(8):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(pictures.encoded(pictures.photograph(40, 30, number)))
        paths.append(path)
    paths[5].write_bytes(paths[5].read_bytes()[:700])
    loader = ImageLoader(8)
    it = Dataloader(
        loader, DataGroup(2, paths, loader_arrays=loader.arrays()), executor="process", loader_count=1,
        on_error="replace", end_at=("epoch", 1),
    )  # fmt: skip
    with it:
        assert sum(1 for _ in it) == 4
    (bad,) = it.report().bad
    assert bad.item == 5
    assert str(paths[5]) in bad.error
    assert "ImageError" in bad.error


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "it is empty")))
    assert (error.source, error.reason, str(error)) == ("a.jpg", "it is empty", "a.jpg: it is empty")


def _host() -> str:
    from tests.kernels import host

    return host().path
