"""RGB-D input: aligned pairs, and folders in the 7-Scenes and TUM layouts with bad frames in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import GeometryError, PictureError
from sightline.media import Camera
from sightline.media.aligned import read_aligned, read_posed_folder, resized_depth


def depth_png(path: Path, size: tuple[int, int] = (7, 5), value: int = 2000) -> None:
    steps = np.full(size[::-1], value, np.uint16)
    steps[0, 0], steps[0, 1] = 0, 65535
    Image.fromarray(steps).save(path)


def test_an_aligned_pair(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    depth_png(tmp_path / "d.png")
    view = read_aligned(tmp_path / "a.png", tmp_path / "d.png", 5000, Camera.from_fov(70, 50, 60))
    assert np.isnan(view.depth.values[0, :2]).all() and view.depth.values[4, 6] == pytest.approx(0.4)
    assert view.depth.camera is not None and view.depth.camera.width == 7
    with pytest.raises(GeometryError, match="another shape"):
        read_aligned(tmp_path / "a.png", tmp_path / "d.png", camera=Camera.from_fov(50, 50, 60))


def test_depth_of_another_size(tmp_path: Path) -> None:
    Image.new("RGB", (14, 10)).save(tmp_path / "a.png")
    depth_png(tmp_path / "d.png")
    with pytest.raises(GeometryError, match="resize=True"):
        read_aligned(tmp_path / "a.png", tmp_path / "d.png")
    view = read_aligned(tmp_path / "a.png", tmp_path / "d.png", resize=True)
    assert view.depth.values.shape == (10, 14)
    assert np.isnan(view.depth.values[:2, :4]).all() and view.depth.values[2, 0] == 2  # one pixel became 2×2
    depth_png(tmp_path / "square.png", (7, 7))
    with pytest.raises(GeometryError, match="not aligned"):
        read_aligned(tmp_path / "a.png", tmp_path / "square.png", resize=True)
    whole = read_aligned(tmp_path / "a.png", tmp_path / "d.png", camera=Camera.from_fov(7, 5, 60), resize=True)
    assert whole.depth.camera == resized_depth(whole.depth, 14, 10).camera


def seven(folder: Path, name: str, pose: np.ndarray | str, color: bool = True, depth: bool = True) -> None:
    if isinstance(pose, str):
        (folder / f"{name}.pose.txt").write_text(pose)
    else:
        np.savetxt(folder / f"{name}.pose.txt", pose)
    if color:
        Image.new("RGB", (7, 5)).save(folder / f"{name}.color.png")
    if depth:
        depth_png(folder / f"{name}.depth.png")


def test_seven_scenes_with_bad_frames(tmp_path: Path) -> None:
    seven(tmp_path, "frame-000000", np.eye(4))
    seven(tmp_path, "frame-000001", 2 * np.eye(4))
    seven(tmp_path, "frame-000002", "a b c")
    seven(tmp_path, "frame-000003", np.full((4, 4), np.nan))
    seven(tmp_path, "frame-000004", np.eye(4), depth=False)
    seven(tmp_path, "frame-000005", np.eye(4))
    (tmp_path / "frame-000005.depth.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    folder = read_posed_folder(tmp_path)
    assert folder.layout == "7scenes" and [f.name for f in folder.frames] == ["frame-000000", "frame-000005"]
    assert [p.source[-1] for p in folder.problems] == ["1", "2", "3", "4"]
    views = list(folder.views())
    assert [v.name for v in views] == ["frame-000000"] and folder.problems[-1].source == "frame-000005"
    camera = views[0].depth.camera
    assert camera is not None and camera.K[0, 0] == 585 and camera.assumption.startswith("Assumed")
    np.savetxt(tmp_path / "camera-intrinsics.txt", [[6.0, 0, 3], [0, 6, 2], [0, 0, 1]])
    known = read_posed_folder(tmp_path).frames[0].read_depth().camera
    assert known is not None and known.K[0, 0] == 6 and known.assumption == ""


def test_tum_pairs_by_time_and_stays_in_its_folder(tmp_path: Path) -> None:
    Image.new("RGB", (7, 5)).save(tmp_path / "c.png")
    depth_png(tmp_path / "d.png", value=5000)
    (tmp_path / "rgb.txt").write_text(
        "# time file\n1.00 c.png\n2.00 c.png\n3.0 ../../etc/passwd\nnonsense\n4.0 c.png\n"
    )
    (tmp_path / "depth.txt").write_text("4.001 d.png\n1.015 d.png\n")
    turn = np.sqrt(0.5)
    (tmp_path / "groundtruth.txt").write_text(f"# t\n0.99 1 2 3 0 0 {turn} {turn}\n4.0 0 0 0 0 0 0 5\n7 7\n")
    folder = read_posed_folder(tmp_path)
    assert folder.layout == "tum" and len(folder) == 1
    reasons = " ".join(p.reason for p in folder.problems)
    for words in ("leads out of the folder", "no timestamp", "No depth picture", "no rotation"):
        assert words in reasons
    view = next(folder.views())
    camera = view.depth.camera
    assert camera is not None and view.depth.values[4, 6] == 1
    np.testing.assert_allclose(camera.pose[:3], [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]], atol=1e-12)


def test_a_folder_without_frames(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="no posed frames"):
        read_posed_folder(tmp_path)
    with pytest.raises(PictureError, match="is no folder"):
        read_posed_folder(tmp_path / "nowhere")
