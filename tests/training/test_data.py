"""From pairs to batches: order, views, cache, tokenizer."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import DataError, StoreError
from sightline.training import PairBatches, open_pairs
from sightline.training import cache as caches
from sightline.training.augment import Augment, sample
from sightline.training.batches import Curriculum, Order
from sightline.training.cache import CachedPictures, DecodedPictures, square
from sightline.training.tokenizer import train_tokenizer
from training.stand_ins import COLOURS, in_memory, write_squares


class Words:
    """A tokenizer of whole words."""

    def __call__(self, texts: list[str]) -> dict[str, torch.Tensor]:
        rows = [[sum(map(ord, word)) % 17 for word in text.split()] for text in texts]
        longest = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }


def batches(folder: Path, **more: object) -> PairBatches:
    data = open_pairs(write_squares(folder / "squares"))
    pictures = CachedPictures(data, 23, folder / "cache", quiet=True)
    return PairBatches(
        data, pictures, Words(), batch_size=3, size=19, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), seed=4, **more
    )


def test_an_epoch_shows_everything_once_and_the_next_in_another_order() -> None:
    order = Order(13, 4, seed=3)
    assert order.steps_per_epoch == 3  # one of 13 is left over
    epochs = [np.concatenate([order.numbers(step) for step in range(e * 3, e * 3 + 3)]) for e in range(2)]
    assert all(len(set(e.tolist())) == 12 for e in epochs)
    assert not np.array_equal(*epochs)
    again = Order(13, 4, seed=3)
    assert np.array_equal(again.numbers(5), order.numbers(5))  # without having drawn the steps before
    assert not np.array_equal(Order(13, 4, seed=4).numbers(0), order.numbers(0))


def test_a_curriculum_begins_with_some_of_the_things() -> None:
    things = np.arange(100, 113)  # 13, in batches of 3: 4 steps an epoch
    some, more = [103, 107, 109], [103, 105, 107, 109, 111]
    plan = Curriculum(things, 3, seed=5, phases=[(2, some), (0, [101, 102, 104]), (3, more)])
    assert plan.steps_per_epoch == 4
    for step in range(2):
        assert sorted(plan.numbers(step).tolist()) == some  # all three, every time
    for step in range(2, 5):
        shown = plan.numbers(step)
        assert set(shown.tolist()) < set(more) and len(set(shown.tolist())) == 3
        assert shown.tolist() == [more[n] for n in Order(5, 3, seed=5).numbers(step)]
    for step in range(5, 12):
        assert np.array_equal(plan.numbers(step), things[Order(13, 3, seed=5).numbers(step)])
    assert np.array_equal(Curriculum(range(13), 3, seed=5).numbers(6), Order(13, 3, seed=5).numbers(6))
    few = Curriculum(range(13), 5, seed=5, phases=[(4, [2, 9])])
    assert all(sorted(few.numbers(step).tolist()) == [2, 9] for step in range(4)) and len(few.numbers(4)) == 5


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    ours = batches(tmp_path, augment=Augment(crop=0.5, flip="yes", colour=0.3))
    assert ours.steps_per_epoch == 2  # 7 pictures
    batch = ours.batch(5)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "pixel_values": (3, 3, 19, 19), "input_ids": (3, batch["input_ids"].shape[1]), "lengths": (3,),
        "picture_key": (3,), "caption_key": (3,),
    }  # fmt: skip
    ours.batch(0)
    for name, tensor in ours.batch(5).items():
        assert torch.equal(tensor, batch[name]), name


def test_ranks_cut_the_same_batch(tmp_path: Path) -> None:
    ours = batches(tmp_path, augment=Augment(crop=0.5, flip="words", colour=0.3))
    whole, parts = ours.batch(1), [ours.batch(1, rank, 3) for rank in range(3)]
    for name in ("pixel_values", "picture_key", "caption_key"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name])


def test_equal_captions_have_equal_keys(tmp_path: Path) -> None:
    data = in_memory([("A  red ball",), ("a red ball",), ("a red box",)])

    class Grey:
        side, usable, problems = 5, np.arange(3), list[str]()

        def get(self, numbers: list[int]) -> torch.Tensor:
            return torch.full((len(numbers), 5, 5, 3), 127, dtype=torch.uint8)

    ours = PairBatches(data, Grey(), Words(), batch_size=3, size=5, mean=(0, 0, 0), std=(1, 1, 1))
    batch = ours.batch(0)
    keys = dict(zip(batch["picture_key"].tolist(), batch["caption_key"].tolist(), strict=True))
    assert keys[0] == keys[1] != keys[2]


def test_the_cache_holds_what_the_processor_would_show(tmp_path: Path) -> None:
    from sightline.media import PictureProcessor, read_picture

    rng = np.random.default_rng(0)
    path = tmp_path / "wide.png"
    Image.fromarray(rng.integers(0, 255, (53, 71, 3), dtype=np.uint8)).save(path)
    processor = PictureProcessor(size={"shortest_edge": 29}, crop_size={"height": 29, "width": 29}, do_center_crop=True)
    theirs = processor([read_picture(path)])["pixel_values"][0]
    mean, std = torch.tensor(processor.image_mean).view(3, 1, 1), torch.tensor(processor.image_std).view(3, 1, 1)
    ours = torch.from_numpy(square(path, 29)).permute(2, 0, 1) / 255
    torch.testing.assert_close((ours - mean) / std, theirs, atol=1e-5, rtol=1e-5)


def test_the_cache_lists_what_is_broken_and_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_squares(tmp_path / "squares")
    (tmp_path / "squares" / "pictures" / "green.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    data = open_pairs(pairs)
    cached = CachedPictures(data, 13, tmp_path / "cache", quiet=True)
    assert list(cached.usable) == [0, 2, 3, 4, 5, 6]
    assert len(cached.problems) == 1 and cached.problems[0].startswith("pictures/green.png:")
    assert cached.get([0]).shape == (1, 13, 13, 3)
    assert abs(int(cached.get([2])[0, 12, 6, 2]) - COLOURS["blue"][2]) <= 1
    monkeypatch.setattr(caches, "square", None)  # decoding again would fail
    assert torch.equal(CachedPictures(data, 13, tmp_path / "cache", quiet=True).get([0, 3]), cached.get([0, 3]))


def test_a_cache_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_pairs(write_squares(tmp_path / "squares"))
    monkeypatch.setattr(caches, "BLOCK", 2)
    real, seen = caches.square, []

    def dies(source: Path, side: int) -> np.ndarray:
        if len(seen) == 5:
            raise KeyboardInterrupt
        seen.append(source)
        return real(source, side)

    monkeypatch.setattr(caches, "square", dies)
    with pytest.raises(KeyboardInterrupt):
        CachedPictures(data, 13, tmp_path / "cache", threads=1, quiet=True)
    monkeypatch.setattr(caches, "square", lambda source, side: (seen.append(source), real(source, side))[1])
    whole = CachedPictures(data, 13, tmp_path / "cache", threads=1, quiet=True)
    assert len(seen) == 5 + 3  # blocks of two: four were safe, three were left
    for number in range(7):
        assert np.array_equal(whole.get([number])[0].numpy(), real(data.read(number), 13))


def test_of_two_who_need_the_cache_one_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_pairs(write_squares(tmp_path / "squares"))
    real, seen = caches.square, []
    monkeypatch.setattr(caches, "square", lambda source, side: (seen.append(source), real(source, side))[1])
    with ThreadPoolExecutor(2) as pool:
        two = [pool.submit(CachedPictures, data, 13, tmp_path / "cache", quiet=True) for _ in range(2)]
        assert torch.equal(two[0].result().get([1, 5]), two[1].result().get([1, 5]))
    assert len(seen) == 7


def test_a_cache_without_space_is_said_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    data = open_pairs(write_squares(tmp_path / "squares"))
    with pytest.raises(StoreError, match=r"needs .* GB, which .* lacks; free space or use cache=false"):
        CachedPictures(data, 13, tmp_path / "cache", quiet=True)


def test_nothing_readable_is_an_error_and_decoding_on_the_fly_goes_grey(tmp_path: Path) -> None:
    pairs = write_squares(tmp_path / "squares")
    for path in (tmp_path / "squares" / "pictures").iterdir():
        path.write_bytes(b"no picture")
    data = open_pairs(pairs)
    with pytest.raises(DataError, match="None of the 7 pictures"):
        CachedPictures(data, 13, tmp_path / "cache", quiet=True)
    decoded = DecodedPictures(data, 13)
    assert int(decoded.get([1, 1])[0, 0, 0, 0]) == 127 and len(decoded.problems) == 1


def test_sampling_a_box_by_hand() -> None:
    # 4 × 4 picture whose red is 10·row + column; the right lower quarter at its own size is rows 2, 3, columns 2, 3.
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    picture = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    picture[0, ..., 0] = 10 * rows + columns
    quarter = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    ours = sample(picture, quarter, torch.tensor([False]), 2)[0, 0] * 255
    torch.testing.assert_close(ours, torch.tensor([[22.0, 23.0], [32.0, 33.0]]), atol=1e-3, rtol=0)
    mirrored = sample(picture, quarter, torch.tensor([True]), 2)[0, 0] * 255
    torch.testing.assert_close(mirrored, torch.tensor([[23.0, 22.0], [33.0, 32.0]]), atol=1e-3, rtol=0)
    whole = sample(picture, torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([False]), 4)[0, 0] * 255
    torch.testing.assert_close(whole, picture[0, ..., 0].float())


def test_crops_keep_the_share_they_promise() -> None:
    boxes = Augment(crop=0.4, ratio=1.5)._boxes(torch.rand(500, 8, generator=torch.Generator().manual_seed(0)))
    x0, y0, width, height = boxes.T
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x0 + width <= 1.0001).all() and (y0 + height <= 1.0001).all()
    assert float((width * height).min()) > 0.4 / 1.5  # a stretched box may lose what sticks out
    assert torch.equal(Augment()._boxes(torch.rand(2, 8)), torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 2))


def test_pictures_whose_words_say_left_are_not_mirrored() -> None:
    picture = torch.zeros(64, 2, 2, 3, dtype=torch.uint8)
    picture[:, :, 0] = 200
    captions = ["a cup on the left", "a cup"] * 32
    views = Augment(flip="words").views(picture, captions, 2, 7, slice(0, 64), 64)
    flipped = views[:, 0, 0, 0] < 0.5
    assert not flipped[::2].any() and 8 < int(flipped[1::2].sum()) < 24


def test_the_tokenizer_is_one_that_transformers_reads(tmp_path: Path) -> None:
    captions = ["A red ball lies on the table.", "two green balls, and a café's   table", "the 3 tables"] * 3
    ours = train_tokenizer(captions, vocab_size=600, context_length=11)
    again = train_tokenizer(reversed(captions), vocab_size=600, context_length=11)
    assert ours.backend.to_str() == again.backend.to_str()
    ours.save(tmp_path)
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*captions[:3], "UNSEEN wörds 🙂 <|endoftext|> 12", "", "ball " * 40]
    for text in texts:
        mine = ours([text])["input_ids"][0].tolist()
        assert mine == theirs(text, truncation=True, max_length=11)["input_ids"], text
    assert ours(["table"])["input_ids"].shape[1] == 3  # start, one token for a frequent word, end
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    assert vocab["!"] == 0 and vocab["!</w>"] == 256
    assert vocab["<|endoftext|>"] == len(vocab) - 1 == ours.rules.pad_id
    with pytest.raises(DataError, match="vocab_size=300 cannot hold every byte; use at least 514"):
        train_tokenizer(captions, vocab_size=300)
