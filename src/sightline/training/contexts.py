"""What a language model that sees no picture is told of one, and asked to write: the instruction data of LLaVA.

context   captions, one per line; boxes, one per line: `person: [0.681, 0.242, 0.774, 0.694]`, left, top, right, bottom
          as parts of the picture's width and height, three decimals
asked     a conversation ("Question:\\n…\\n===\\nAnswer:\\n…"), a detailed description, or a question that needs reasoning

Source: Liu et al. 2023, arXiv:2304.08485, §3 and its table 1; the prompts here are our own words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import DataError
from sightline.training.conversations import IMAGE, Messages, told

STYLES = ("conversation", "detail", "reasoning")
SOURCES = re.compile(r"\b(captions?|bounding box(es)?|coordinates?|sentences? (above|given)|the text)\b", re.I)
LONGEST = 4000  # characters of one answer
MOST = 20  # questions of one conversation
_SEE = (
    "You are looking at one picture. What it shows is given to you as text: sentences that describe it{boxes}. "
    "Write as if you saw the picture itself, and do not mention the sentences{and_boxes} as your source. "
)
ASKS = {
    "conversation": _SEE + (
        "Write a conversation between a person who asks about the picture and an assistant who sees it. Ask only what "
        "can be answered with certainty from what is given, or be sure that it cannot be told: kinds of things, their "
        "number, what they do, where they are, how they stand to one another. Three to six questions. Format:\n"
        "Question:\n<question>\n===\nAnswer:\n<answer>\n===\nQuestion:\n…"
    ),
    "detail": _SEE + (
        "Describe the picture in detail, in one or two paragraphs: what there is, how many, where, and how things stand "
        "to one another. Say nothing that is not given. Write the description only."
    ),
    "reasoning": _SEE + (
        "Write one question about the picture whose answer takes more than looking: a reason, a likely intention, what "
        "may come next, what one should beware of. Then answer it step by step from what is given. Format:\n"
        "Question:\n<question>\n===\nAnswer:\n<answer>"
    ),
}  # fmt: skip
DETAIL = (
    "Describe the following image in detail.", "Provide a detailed description of the given image.",
    "What do you see in this picture? Go into detail.", "Write a detailed description of the photograph.",
)  # fmt: skip


@dataclass(frozen=True)
class Context:
    """One picture as text. boxes: name and xyxy as parts of width and height, 0…1."""

    picture: str
    captions: tuple[str, ...] = ()
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()

    def text(self) -> str:
        """Captions, an empty line, boxes with three decimals."""
        listed = [f"{name}: [{', '.join(f'{v:.3f}' for v in box)}]" for name, box in self.boxes]
        return "\n\n".join(part for part in ("\n".join(self.captions), "\n".join(listed)) if part)

    def messages(self, style: str) -> list[dict[str, str]]:
        """What an endpoint is sent. As in the paper, a conversation is written from captions alone where there are
        some; the other styles get the boxes too."""
        shown = Context(self.picture, self.captions) if style == "conversation" and self.captions else self
        has = bool(shown.boxes)
        boxes = ", and boxes of things as name: [left, top, right, bottom], each from 0 to 1" if has else ""
        system = ASKS[style].replace("{boxes}", boxes).replace("{and_boxes}", " or the boxes" if has else "")
        return [{"role": "system", "content": system}, {"role": "user", "content": shown.text()}]


def read_contexts(captions: Path | None, boxes: Path | None) -> list[Context]:
    """Contexts from COCO's captions_*.json, instances_*.json or both; pictures that have neither are left out.

    Raises DataError for a file that is not of that kind.
    """
    names: dict[int, str] = {}
    sizes: dict[int, tuple[float, float]] = {}
    said: dict[int, list[str]] = {}
    seen: dict[int, list[tuple[str, tuple[float, float, float, float]]]] = {}
    for path in (p for p in (captions, boxes) if p is not None):
        data = _json(path)
        try:
            kinds = {int(c["id"]): str(c["name"]) for c in data.get("categories", ())}
            for image in data["images"]:
                names[int(image["id"])] = str(image["file_name"])
                if "width" in image:
                    sizes[int(image["id"])] = (float(image["width"]), float(image["height"]))
            for one in data["annotations"]:
                number = int(one["image_id"])
                if path == captions and "caption" in one:
                    said.setdefault(number, []).append(" ".join(str(one["caption"]).split()))
                elif path == boxes and "bbox" in one:
                    x, y, width, height = (float(v) for v in one["bbox"])
                    across, down = sizes[number]
                    corners = (x / across, y / down, (x + width) / across, (y + height) / down)
                    seen.setdefault(number, []).append((kinds[int(one["category_id"])], _inside(corners)))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(
                f"{path} is not a COCO file ({type(error).__name__}: {error}); expected images (id, file_name, width, "
                "height), categories, and annotations with caption or bbox and category_id."
            ) from None
    found = [Context(names[n], tuple(said.get(n, ())), tuple(seen.get(n, ()))) for n in names if n in said or n in seen]
    if not found:
        raise DataError(f"{captions or boxes} describes no picture: it has neither captions nor boxes.")
    return found


def read_answer(text: str, style: str, number: int = 0) -> Messages:
    """What an endpoint wrote, as a conversation about the picture. number: chooses the question of a description.

    Raises DataError that says what is wrong: empty, of another format, cut off, much too long, or a text that speaks of
    captions or boxes as its source.
    """
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise DataError("the answer is empty")
    if style == "detail":
        turns = [(DETAIL[number % len(DETAIL)], text)]
    else:
        turns = _turns(text)
        if style == "reasoning" and len(turns) != 1:
            raise DataError(f"the answer holds {len(turns)} questions; expected 1")
    for question, answer in turns:
        for part, what in ((question, "question"), (answer, "answer")):
            if not part:
                raise DataError(f"a {what} is blank")
            if len(part) > LONGEST:
                raise DataError(f"a {what} has {len(part):,} characters; at most {LONGEST:,} are kept")
            if IMAGE in part or "===" in part:
                raise DataError(f"a {what} holds {IMAGE if IMAGE in part else '==='}")
            found = SOURCES.search(part)
            if found:
                raise DataError(f'a {what} speaks of its source ("{found[0]}")')
    return told(turns)


def _turns(text: str) -> list[tuple[str, str]]:
    pieces = [piece.strip() for piece in re.split(r"^\s*={3,}\s*$", text, flags=re.M)]
    pieces = [piece for piece in pieces if piece]
    if not pieces or len(pieces) % 2 or len(pieces) > 2 * MOST:
        raise DataError(f"the answer has {len(pieces)} parts between ===; expected questions and answers in turn")
    turns = []
    for question, answer in zip(pieces[::2], pieces[1::2], strict=True):
        asked, said = (re.fullmatch(rf"{word}:\s*(.*)", piece, re.S | re.I) for word, piece in
                       (("question", question), ("answer", answer)))  # fmt: skip
        if asked is None or said is None:
            raise DataError('the answer is not of the form "Question: … === Answer: …"')
        turns.append((asked[1].strip(), said[1].strip()))
    return turns


def llava_entry(name: str, picture: str, messages: Messages) -> dict[str, Any]:
    """One entry of LLaVA's JSON."""
    said: list[Mapping[str, str]] = []
    for message in messages:
        text = " ".join(item["text"] for item in message["content"] if item["type"] == "text")
        pictures = sum(item["type"] == "image" for item in message["content"])
        who = "human" if message["role"] == "user" else "gpt"
        said.append({"from": who, "value": f"{IMAGE}\n" * pictures + text})
    return {"id": name, "image": picture, "conversations": said}


def _inside(corners: Iterable[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (min(1.0, max(0.0, value)) for value in corners)
    return left, top, right, bottom


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from None
    if not isinstance(data, dict):
        raise DataError(f"{path} is not a COCO file; expected an object with images and annotations.")
    return data
