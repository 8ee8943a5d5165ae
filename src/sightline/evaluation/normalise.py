"""When are two short answers the same? The rules of the VQA challenge (Antol et al. 2015, arXiv:1505.00468).

"The Dogs!" → "dogs"; "two" → "2"; "dont" → "don't"; "1,000" → "1000"; "red/blue" → "red blue"

The tables are those of the challenge's own evaluator, slips included, so that scores compare. Two things differ: it
applies here to answers and truths alike (there, truths keep their articles and number words), and a text of which
nothing would remain ("a", "?") stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
MARKS = ';/[]"{}()=+\\_-><@`,?!'  # apostrophe, colon and full stop are not among them

# Each is also written with any one of its apostrophes left out. Forms that would then be another word (he'll, she'd,
# it's, we're) are not in the challenge's table, nor are those with a capital, which it can never meet.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    form[: mark.start()] + form[mark.end() :]: form for form in _CONTRACTED.split() for mark in re.finditer("'", form)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # turned round in the challenge's table


@lru_cache(maxsize=1 << 16)
def normalise(answer: str) -> str:
    """The form in which answers are compared: marks, articles and case gone, numbers in digits."""
    text = answer.replace("’", "'").replace("\n", " ").replace("\t", " ").strip()
    numeral = re.search(r"\d,\d", text) is not None
    plain = text
    for mark in MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or numeral else " ")
    plain = re.sub(r"\.(?!\d)", "", plain)
    words = [NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES) or text.lower()
