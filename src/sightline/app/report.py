"""Reports: one HTML file with everything inlined, to be opened anywhere, printed, or sent on.

Every text that comes from outside (paths, captions, labels, errors) is escaped; pictures are small JPEGs in data URIs.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from sightline.errors import PictureError
from sightline.media import Picture, read_picture

THUMBNAIL = 224  # pixels on the longer side
STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """A picture with what is said about it. badge: a short word; good: its colour (True green, False grey)."""

    picture: Any
    title: str
    lines: Sequence[str] = ()
    badge: str = ""
    good: bool = True


class Report:
    """Sections added one after another, then `write`."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self.sections: list[str] = []
        self._thumbnails: dict[str, str] = {}

    def heading(self, text: str, note: str = "") -> None:
        """Starts a section."""
        extra = f'<p class="note">{escape(note)}</p>' if note else ""
        self.sections.append(f"<h2>{escape(text)}</h2>{extra}")

    def paragraph(self, text: str) -> None:
        self.sections.append(f"<p>{escape(text)}</p>")

    def figures(self, figures: Sequence[tuple[str, str]]) -> None:
        """Numbers in a row: (number, what it counts)."""
        cells = "".join(f"<div><b>{escape(number)}</b><span>{escape(what)}</span></div>" for number, what in figures)
        self.sections.append(f'<div class="figures">{cells}</div>')

    def query(self, text: str, verdict: str, good: bool, note: str = "", picture: Any = None) -> None:
        """A question and its verdict (match, no match), above the cards that answer it."""
        shown = f'<img src="{self.thumbnail(picture)}" alt="">' if picture is not None else ""
        more = f'<span class="note">{escape(note)}</span>' if note else ""
        self.sections.append(f'<div class="query">{shown}<h3>{escape(text)}</h3>{badge(verdict, good)}{more}</div>')

    def cards(self, cards: Sequence[Card]) -> None:
        self.sections.append(f'<div class="cards">{"".join(self._card(card) for card in cards)}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        head = "".join(f"<th>{escape(c)}</th>" for c in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        self.sections.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def failures(self, failed: Sequence[Any]) -> None:
        """What was left out, each with its reason; nothing when nothing was."""
        if failed:
            self.heading(f"Left out ({len(failed)})", "Everything else was done.")
            self.table(("source", "reason"), [(f.source, f.reason) for f in failed])

    def manifest(self, manifest: dict[str, Any]) -> None:
        """The model behind the numbers, folded away."""
        rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in manifest.items())
        self.sections.append(f"<details><summary>Model manifest</summary><table>{rows}</table></details>")

    def write(self, path: str | Path) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = datetime.now().strftime("%Y-%m-%d %H:%M")
        page = (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head><body><main>"
            f'<header><h1>{escape(self.title)}</h1><p class="note">{escape(self.subtitle)}</p></header>'
            + "\n".join(self.sections)
            + f'<footer class="note">Made by Sightline on {made}.</footer></main></body></html>\n'
        )
        path.write_text(page, encoding="utf-8", errors="replace")
        return path

    def _card(self, card: Card) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in card.lines)
        mark = badge(card.badge, card.good) if card.badge else ""
        return (
            f'<figure><img src="{self.thumbnail(card.picture)}" alt="{escape(card.title)}" loading="lazy">'
            f"<figcaption><h4>{escape(card.title)}</h4>{lines}{mark}</figcaption></figure>"
        )

    def thumbnail(self, picture: Any) -> str:
        """A data URI; a picture that cannot be read any more becomes a grey square."""
        key = str(picture) if isinstance(picture, (str, Path)) else f"{id(picture)}"
        if key not in self._thumbnails:
            self._thumbnails[key] = _data_uri(picture)
        return self._thumbnails[key]


def badge(text: str, good: bool) -> str:
    return f'<span class="badge {"good" if good else "poor"}">{escape(text)}</span>'


def escape(value: Any) -> str:
    """Text for HTML, attributes included; stray bytes of file names become replacement characters."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)


def _data_uri(picture: Any) -> str:
    try:
        if isinstance(picture, (str, Path)):
            pixels = read_picture(picture, shortest=THUMBNAIL).pixels
        else:
            pixels = picture.pixels if isinstance(picture, Picture) else picture
        small = Image.fromarray(pixels)
    except PictureError:
        small = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (160, 160, 160))
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
