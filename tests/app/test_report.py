"""Reports: what comes from outside stays text, and a picture that has gone leaves the page whole."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from sightline.app.report import Card, Report

EVIL = "<script>alert(1)</script>\"' onerror=x &amp; \udce9"


class Tags(HTMLParser):
    """Every tag of a page, and what its attributes say."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def page_of(tmp_path: Path) -> str:
    Image.fromarray(np.full((30, 50, 3), 90, np.uint8)).save(tmp_path / "ok.png")
    page = Report(EVIL, EVIL)
    page.heading(EVIL, EVIL)
    page.paragraph(EVIL)
    page.figures([(EVIL, EVIL)])
    page.query(EVIL, EVIL, True, EVIL, picture=tmp_path / "ok.png")
    page.cards([Card(tmp_path / "ok.png", EVIL, [EVIL], EVIL), Card(tmp_path / "gone.png", "gone")])
    page.table([EVIL], [[EVIL]])
    page.failures([SimpleNamespace(source=EVIL, reason=EVIL)])
    page.manifest({EVIL: EVIL})
    return page.write(tmp_path / "page.html").read_text(encoding="utf-8")


def test_nothing_from_outside_becomes_markup(tmp_path: Path) -> None:
    text = page_of(tmp_path)
    tags = Tags()
    tags.feed(text)
    assert "script" not in {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert text.count("&lt;script&gt;alert(1)") >= 15  # each place shows it, as text


def test_all_pictures_travel_with_the_page(tmp_path: Path) -> None:
    tags = Tags()
    tags.feed(page_of(tmp_path))
    sources = [attributes["src"] or "" for tag, attributes in tags.seen if tag == "img"]
    assert len(sources) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in sources)
