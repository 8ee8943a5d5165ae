"""Ferret's region sampler by hand, against a slow twin, and in a language model; its texts at 12 sizes."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from sightline.errors import ConfigError, DataError, UsageError
from sightline.media import Boxes
from sightline.models.bridges.regions import (
    GeometricBlock,
    RegionSampler,
    farthest,
    nearest,
    points_inside,
    read_at,
    reading_order,
)
from sightline.models.language.llama import Llama, LlamaConfig
from sightline.models.vlm.ferret_places import SLOT, Region, parse, units_of
from sightline.models.vlm.fusion import fuse

SIZES = [
    (224, 224), (640, 480), (480, 640), (1920, 1080), (333, 777), (4000, 3000), (97, 53), (2000, 31), (13, 1201), (768, 1024),
    (101, 103), (1, 1),
]  # width, height  # fmt: skip


def sampler(**changes):
    torch.manual_seed(0)
    sizes = {"points": 23, "anchors": (11, 5), "neighbours": (7, 3), **changes}
    return RegionSampler(6, 10, **sizes).eval()


def masks(*shapes):
    """Boxes [top, left, bottom, right] in a picture of 19 × 29 pixels."""
    made = torch.zeros(len(shapes), 19, 29, dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(made, shapes, strict=True):
        mask[top:bottom, left:right] = True
    return made


def test_points_by_hand():
    """Three pixels of a mask of 2 × 4: (x, y) = column / 4, row / 2; spread evenly, repeated where there are few."""
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    assert points_inside(mask, 3, None).tolist() == [[0.25, 0], [0.75, 0], [0, 0.5]]
    assert points_inside(mask, 6, None).tolist() == [[0.25, 0]] * 2 + [[0.75, 0]] * 2 + [[0, 0.5]] * 2
    assert points_inside(mask, 2, None).tolist() == [[0.25, 0], [0.75, 0]]
    draw = torch.Generator().manual_seed(0)
    assert {tuple(p) for p in points_inside(mask, 5, draw).tolist()} == {(0.25, 0), (0.75, 0), (0, 0.5)}
    assert len({tuple(p) for p in points_inside(mask, 2, draw).tolist()}) == 2  # none twice


def test_reading_a_map_by_hand():
    """Cells 0 1 2 / 10 11 12: 0 is the middle of the first, 1 of the last, halves lie between."""
    cells = torch.tensor([[[[0.0, 1, 2], [10, 11, 12]]]])
    points = torch.tensor([[[0.0, 0], [1, 1], [0.5, 0], [0.25, 0.5]]])
    assert read_at(cells, points)[0, :, 0].tolist() == [0, 12, 1, 5.5]


def test_farthest_nearest_and_order_by_hand():
    """On a line 0, 1, 2, 9: from 1 the farthest is 9, then 0 (1 away from 1) and 2 (1 away too), the first of them."""
    points = torch.tensor([[[0.0, 0], [1, 0], [2, 0], [9, 0]]])
    assert farthest(points, 3, torch.tensor([1])).tolist() == [[1, 3, 0]]
    found = nearest(points, points[:, [3, 1]], 3).sort(dim=-1).values
    assert found.tolist() == [[[1, 2, 3], [0, 1, 2]]]
    mixed = torch.tensor([[[0.5, 0.5], [0.1, 0.5], [0.9, 0.0]]])
    assert reading_order(mixed).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("pool, want", [("max", [1, 0]), ("mean", [0.5, -0.5])])
def test_a_block_by_hand(pool, want):
    """Points (0, 0) with (1, 0) and (1, 0) with (3, 2). From the first, they differ by 0 and by (2, 2, 1, 0). Channels
    kept: the first feature and x, so (0, 0) and (2, 1); normed (0, 0) and (1, −1)."""
    block = GeometricBlock(2, 1, 2, pool)
    with torch.no_grad():
        block.difference.weight.copy_(torch.eye(4))
        block.gather.weight.zero_()
        block.gather.weight[0, 0] = block.gather.weight[1, 2] = 1
        block.difference.bias.zero_()
        block.gather.bias.zero_()
        points, features = block(
            torch.tensor([[[0.0, 0], [1, 0]]]), torch.tensor([[[1.0, 0], [3, 2]]]), torch.tensor([0])
        )
    assert points.tolist() == [[[0, 0]]]
    assert torch.allclose(features, torch.tensor([[want]]).float(), atol=1e-4)


def slow(made, points, features):
    """The same with loops over points."""
    for block in made.blocks:
        kept = [0]
        while len(kept) < block.anchors:
            gaps = [min(float((p - points[k]).square().sum()) for k in kept) for p in points]
            kept.append(gaps.index(max(gaps)))
        rows = []
        for k in kept:
            gaps = [float((p - points[k]).square().sum()) for p in points]
            near = sorted(range(len(points)), key=lambda i: gaps[i])[: block.neighbours]
            own = torch.cat([features[k], points[k]])
            told = []
            for i in near:
                other = torch.cat([features[i], points[i]])
                told.append(block.norm(torch.relu(block.gather(torch.cat([block.difference(other - own), own])))))
            rows.append(torch.stack(told).amax(0))
        points, features = points[kept], torch.stack(rows)
    return made.leave(made.flatten(features.flatten()))


def test_it_equals_its_slow_twin_and_the_order_of_points_does_not_matter():
    made = sampler()
    choose = torch.Generator().manual_seed(1)
    points, features = torch.rand(3, 23, 2, generator=choose), torch.randn(3, 23, 6, generator=choose)
    with torch.no_grad():
        got = made.pooled(points, features)
        for row in range(3):
            order = points[row, :, 1].argsort()
            assert torch.allclose(got[row], slow(made, points[row, order], features[row, order]), atol=1e-5)
        shuffled = torch.randperm(23, generator=choose)
        assert torch.equal(made.pooled(points[:, shuffled], features[:, shuffled]), got)
        drawn = [made.pooled(points, features, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_constant_map_tells_nothing_but_the_place():
    """Every point reads the constant; without the two place channels every region gives the same token."""
    made = sampler()
    tokens = torch.full((1, 24, 6), 0.7)
    whole = read_at(torch.full((1, 6, 4, 6), 0.7), points_inside(masks((0, 0, 19, 29))[0], 23, None)[None])
    assert torch.allclose(whole, torch.tensor(0.7))
    regions = [masks((0, 0, 19, 29), (3, 4, 9, 20))]
    with torch.no_grad():
        placed = made.regions(tokens, regions, (4, 6))[0]
        assert not torch.allclose(placed[0], placed[1])
        for block in made.blocks:
            block.difference.weight[:, 6:] = 0
            block.gather.weight[:, 14:] = 0
        same = made.regions(tokens, regions, (4, 6))[0]
        assert torch.allclose(same[0], same[1], atol=1e-6)


def test_regions_of_several_pictures():
    made, tokens = sampler(), torch.randn(3, 24, 6)
    own = [masks((0, 0, 5, 7), (2, 3, 18, 20)), torch.zeros(0, 19, 29, dtype=torch.bool), masks((4, 4, 12, 29))]
    with torch.no_grad():
        got = made.regions(tokens, own, (4, 6))
        assert [tuple(rows.shape) for rows in got] == [(2, 10), (0, 10), (1, 10)]
        alone = made.regions(tokens[2:], own[2:], (4, 6))[0]
        assert torch.allclose(got[2], alone, atol=1e-5)
        moved = tokens.clone()
        moved[0, 12:] += 5  # the lower half of the grid; the first region lies in the upper third
        after = made.regions(moved, own, (4, 6))[0]
        assert torch.allclose(after[0], got[0][0], atol=1e-5) and not torch.allclose(after[1], got[0][1], atol=1e-2)
        assert [len(rows) for rows in made.regions(tokens, [own[1]] * 3, (4, 6))] == [0, 0, 0]


def test_as_a_bridge_a_picture_is_one_region():
    made, tokens = sampler(), torch.randn(2, 25, 6)
    padding = torch.ones(2, 25, dtype=torch.long)
    padding[:, 20:] = 0
    with torch.no_grad():
        assert made(tokens).shape == (2, 1, 10) and made.tokens_out((5, 5)) == 1
        full = torch.ones(1, 5, 5, dtype=torch.bool)
        assert torch.equal(made(tokens)[:, 0], torch.cat(made.regions(tokens, [full, full])))
        upper = full.clone()
        upper[0, 4] = False
        assert torch.equal(made(tokens, None, padding)[:, 0], torch.cat(made.regions(tokens, [upper, upper])))


def test_one_pixel_is_a_region_and_none_is_not():
    """All points are one: nothing differs, and the token is finite and has a gradient."""
    made, tokens = sampler(), torch.randn(1, 24, 6, requires_grad=True)
    token = made.regions(tokens, [masks((7, 11, 8, 12))], (4, 6))[0]
    token.sum().backward()
    assert token.isfinite().all() and tokens.grad is not None and tokens.grad.isfinite().all()
    read = tokens.grad[0].abs().sum(-1).nonzero().flatten().tolist()
    # x = 11/29 of 5 steps between 6 columns = 1.9, y = 7/19 of 3 steps between 4 rows = 1.1: cells around (1.9, 1.1)
    assert read == [7, 8, 13, 14]
    with pytest.raises(UsageError, match="region 1 of picture 0 is empty"):
        made.regions(tokens, [masks((0, 0, 2, 2), (3, 3, 3, 3))], (4, 6))


def test_gradients_reach_every_parameter():
    made, tokens = sampler(pool="mean"), torch.randn(2, 24, 6)
    draw = torch.Generator().manual_seed(0)
    both = [masks((0, 0, 19, 29)), masks((3, 4, 9, 20), (0, 0, 2, 2))]
    torch.cat(made.regions(tokens, both, (4, 6), generator=draw)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_mirrored_reads_the_other_side_of_the_diagonal():
    """With square maps and masks, mirrored on a map equals the plain one on the transposed map."""
    plain, mirrored = sampler(), sampler(mirrored=True)
    tokens = torch.randn(1, 25, 6)
    turned = torch.unflatten(tokens, 1, (5, 5)).transpose(1, 2).flatten(1, 2)
    region = [masks((3, 4, 9, 20))]
    with torch.no_grad():
        assert torch.allclose(mirrored.regions(tokens, region)[0], plain.regions(turned, region)[0], atol=1e-5)


def test_published_size_without_weights():
    """Two blocks of (1026² + 1026) + (2052 · 1024 + 1024) + 2 · 1024, then 32 · 1024² + 1024, then 1024 · 4096 + 4096."""
    with torch.device("meta"):
        made = RegionSampler(1024, 4096)
    block = 1026**2 + 1026 + 2052 * 1024 + 1024 + 2 * 1024
    want = 2 * block + 32 * 1024**2 + 1024 + 1024 * 4096 + 4096
    assert sum(p.numel() for p in made.parameters()) == want == 44_069_900


def test_sizes_that_do_not_fit_are_named():
    for changes in (
        {"anchors": (24, 5)},
        {"neighbours": (7, 12)},
        {"anchors": (5,)},
        {"anchors": (), "neighbours": ()},
    ):
        with pytest.raises(ConfigError, match="cannot become"):
            sampler(**changes)
    with pytest.raises(ConfigError, match="no square grid"):
        sampler().regions(torch.randn(1, 24, 6), [masks((0, 0, 2, 2))])
    with pytest.raises(UsageError, match="masks for 2 pictures and 1"):
        sampler().regions(torch.randn(1, 25, 6), [masks((0, 0, 2, 2))] * 2)


def test_a_language_model_reads_a_region_behind_its_coordinates():
    """The slot's vector is replaced; the logits after it follow the region, and learning reaches the sampler."""
    made, slot = sampler(), 7
    torch.manual_seed(0)
    sizes = {"hidden_size": 10, "intermediate_size": 17, "num_hidden_layers": 1, "num_attention_heads": 5}
    speaks = Llama(LlamaConfig(vocab_size=31, max_position_embeddings=29, **sizes))
    ids = torch.tensor([[3, 4, slot, 5, slot, 6], [9, slot, 8, 2, 2, 2]])
    tokens = torch.randn(2, 24, 6)

    def logits(*regions):
        rows = torch.cat(made.regions(tokens, list(regions), (4, 6)))
        return speaks(inputs_embeds=fuse(speaks.embed(ids), ids == slot, rows[:, None], SLOT)).logits

    one, other = masks((0, 0, 5, 7), (2, 3, 18, 20)), masks((0, 0, 5, 7), (10, 15, 18, 20))
    a, b = logits(one, masks((1, 1, 9, 9))), logits(other, masks((1, 1, 9, 9)))
    assert torch.allclose(a[0, :4], b[0, :4], atol=1e-5) and torch.allclose(a[1], b[1], atol=1e-5)
    assert not torch.allclose(a[0, 4:], b[0, 4:], atol=1e-3)
    a.square().mean().backward()
    assert made.blocks[0].difference.weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match=SLOT):
        logits(one, one)


# ---- texts


def test_references_by_hand():
    assert Region.of_box("a cat", (30, 45, 84, 155.4), 200, 200).text() == "a cat [150, 225, 420, 777] <region_fea>"
    assert Region.of_box("a cat", (-5, -5, 999, 999), 200, 100).text(slot=False) == "a cat [0, 0, 1000, 1000]"
    point = Region.of_point("a button", 5, 3.1, 10, 100, reach=2)
    assert point.text() == "a button [500, 31] <region_fea>"
    rows, columns = np.nonzero(point.mask)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 5, 3, 7)
    mask = np.zeros((50, 100), bool)
    mask[10:21, 30] = mask[15, 20:40] = True
    free = Region.of_mask("a cross", mask)
    assert free.place == (20, 10, 40, 21) and free.text() == "a cross [200, 200, 400, 420] <region_fea>"
    assert Region.of_box("", (1.5, 2, 2.5, 3), 9, 9).mask.nonzero()[1].tolist() == [1, 2]  # touched pixels count


def test_what_is_no_region_is_named():
    for make, message in (
        (lambda: Region.of_box("a cat", (5, 5, 5, 9), 20, 20), "no area"),
        (lambda: Region.of_box("a cat", (5, 5, 9), 20, 20), "four numbers"),
        (lambda: Region.of_box("a cat", (5, float("nan"), 9, 9), 20, 20), "four numbers"),
        (lambda: Region.of_point("a cat", 20, 5, 20, 20), "outside"),
        (lambda: Region.of_mask("a cat", np.zeros((3, 5), bool)), "empty"),
        (lambda: parse("", 0, 5), "0×5"),
    ):
        with pytest.raises(DataError, match=message):
            make()


def test_answers_by_hand():
    found = parse(
        "A cat [100, 200, 300, 400] on a mat [0,0,1000,500], and two mugs [1, 1, 2, 2][3, 3, 4, 4].", 200, 100
    )
    assert found.text == "A cat on a mat , and two mugs ." and not found.malformed
    assert found.boxes.names == ["A cat", "on a mat", "and two mugs", "and two mugs"]
    assert found.boxes.xyxy[:2].tolist() == [[20, 20, 60, 40], [0, 0, 200, 50]]
    broken = parse("x [300, 400, 100, 200] y [1, 2, 3, 1001] z [1, 2, 3] [a, b, c, d]", 1000, 1000)
    assert broken.boxes.xyxy.tolist() == [[100, 200, 300, 400]] and len(broken.problems) == 2
    assert broken.text == "x y z [1, 2, 3] [a, b, c, d]"


@pytest.mark.parametrize("size", SIZES)
def test_rectangles_come_back(size):
    """Half a unit at most on each side: with sides of 100 units and more, the IoU is at least (99 / 100)² = 0.98."""
    choose = np.random.default_rng(0)
    low = choose.uniform(0, 0.85, (100, 2))
    high = np.minimum(low + choose.uniform(0.1, 0.9, (100, 2)), 1)
    rows = (np.concatenate([low, high], axis=1) * np.array([*size, *size])).astype(np.float32)
    text = " ".join(f"[{', '.join(map(str, units_of(row, *size)))}]" for row in rows.astype(float).tolist())
    found = parse(text, *size).boxes
    ours = Boxes(rows, np.zeros(100, np.int64), np.ones(100, np.float32), ("",), *size)
    assert len(found) == 100 and np.diagonal(found.iou(ours)).min() >= 0.98
    assert (np.abs(found.xyxy - rows) <= 0.501 / 1000 * np.array([*size, *size])).all()


HOSTILE = {
    "brackets": "[" * 1_000_000,
    "digits": "[" + "1" * 1_000_000,
    "numbers": "[1, " * 250_000,
    "boxes": "[1, 2, 3, 4]" * 83_000,
    "swapped": "a [4, 3, 2, 1] " * 66_000,
    "spaces": "[1," + " " * 1_000_000,
    "words": "a " * 500_000 + "[1, 2, 3, 4]",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_megabyte_of_hostile_text_takes_less_than_a_second(kind):
    taken = []
    for _ in range(3):  # half a second by itself; beside other tests the collector may come in between
        start = time.process_time()
        parse(HOSTILE[kind], 640, 480)
        taken.append(time.process_time() - start)
    assert min(taken) < 1
