"""Texts that tokenizers are compared on: scripts, code, spaces, emoji, marks, control characters, broken UTF-8."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import TypeVar

Chosen = TypeVar("Chosen")

SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux; c’est-à-dire: aujourd'hui!",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren, heißt es.",
    "Wszyscy ludzie rodzą się wolni, żółć gęślą jaźń.",
    "Bütün insanlar hür doğar; İstanbul'da ışık, IĞDIR.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng.",
    "Все люди рождаются свободными и равными, ёж и Й.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι, ΣΊΣΥΦΟΣ;",
    "يولد جميع الناس أحرارًا متساوين في الكرامة، ١٢٣٤.",
    "כל בני האדם נולדו בני חורין ושווים, שָׁלוֹם.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। १२३",
    "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে।",
    "மனிதப் பிறவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน ๑๒๓",
    "人人生而自由，在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、カタカナ、ﾊﾝｶｸｶﾞ。",
    "모든 인간은 태어날 때부터 자유로우며 동등하다.",
    "ყველა ადამიანი იბადება თავისუფალი.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։",
    "የሰው ልጅ ሁሉ ሲወለድ ነጻ ነው።",
    "មនុស្សទាំងអស់កើតមកមានសេរីភាព",
    "สวัสดี Hello 你好 Привет مرحبا",
)
CODE = (
    "def f(x: int) -> int:\n    return x**2  # squared\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i] >> 3;\n}\n",
    "SELECT * FROM t WHERE a >= 10.5e-3 AND b != 'it''s';",
    '<div class="x"><p>It\'s &amp; done</p>\r\n</div>',
    "https://example.org/a/b?c=1&d=%20#e",
    "x = {'a': [1, 22, 333, 4444, 1234567], \"b\": None}\n\n\n",
    "I'LL we've DON'T she'd 'tis they're o'clock I'm 's",
    "\\frac{a_{1}}{b^2} $\\approx$ 3.14159",
    "camelCaseWord HTTPServer snake_case_word XMLHttpRequest2",
)
SPACES = (
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    " \n ",
    "\u00a0",
    "\u3000",
    "\u2003",
    "\u2028",
    "\x85",
    "\u200b",
)
EMOJI = (
    "👩‍👩‍👧‍👦",
    "🏳️‍🌈",
    "👍🏽",
    "🇩🇪🇫🇷",
    "1️⃣",
    "☺️",
    "🫠",
    "🫩",
    "✈",
    "🧑🏿‍🚀",
)
MARKS = (
    "e\u0301",
    "a\u0300\u0316",
    "Z\u0351\u036b\u0343",
    "\u0301",
    "ก็",
    "ो",
    "ñ",
    "n\u0303",
    "가",
    "\u1100\u1161",
    "Å",
    "ﬁ",
    "½",
)
CONTROLS = (
    "\x00",
    "\x01",
    "\x07",
    "\x08",
    "\x0b",
    "\x0c",
    "\x1b[0m",
    "\x1f",
    "\x7f",
    "\xad",
    "\ufeff",
    "\u200d",
    "\u202e",
    "\ue000",
)
SPECIAL = (
    *("<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<0x41>", "<0xE2>", "[CLS]", "[SEP]", "[MASK]", "[UNK]"),
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<unused7>", "[INST]"),
    *(
        "<|assistant|>",
        "<|end|>",
        "[PAD32011]",
        "▁",
        "▁▁",
        "Ġ",
        "##ing",
        "<extra>",
        "<extra>x",
        "<extr",
        "</s",
        "< s >",
    ),
)
NUMBERS = ("0", "7", "42", "123", "2024", "1,234,567.89", "1e10", "٣٤", "½", "²", "Ⅻ", "①", "1234567890123")
COUNT = 2400
_KINDS = (SENTENCES, CODE, SPACES, EMOJI, MARKS, CONTROLS, SPECIAL, NUMBERS)


class Dice:
    """Choices that are the same in every version of Python: only ``random()`` is promised to be."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def below(self, bound: int) -> int:
        return int(self._random.random() * bound)

    def one(self, of: Sequence[Chosen]) -> Chosen:
        return of[self.below(len(of))]


@cache
def strings() -> tuple[str, ...]:
    """COUNT different texts of some ten to a hundred characters; all can be encoded in UTF-8."""
    dice = Dice(7)
    demo = (Path(__file__).parents[3] / "harness" / "text" / "data" / "demo.txt").read_text(encoding="utf-8")
    found: dict[str, None] = dict.fromkeys(
        ("", " ", "  ", "The capital of France is", *(one for of in _KINDS for one in of))
    )
    makers = (_words, _mixture, _mixture, _spaced, _broken, _anywhere)
    while len(found) < COUNT:
        if dice.below(7) == 0:
            start = dice.below(len(demo))
            found[demo[start : start + 10 + dice.below(90)]] = None
        else:
            found[dice.one(makers)(dice)] = None
    return tuple(found)


def _words(dice: Dice) -> str:
    """A part of a sentence, its letters now and then large or decomposed."""
    text = dice.one(SENTENCES)
    start = dice.below(len(text))
    part = text[start : start + 5 + dice.below(40)]
    return dice.one((part, part, part.upper(), part.title(), unicodedata.normalize("NFD", part)))


def _mixture(dice: Dice) -> str:
    parts = []
    for _ in range(2 + dice.below(5)):
        text = dice.one(dice.one(_KINDS))
        start = dice.below(max(1, len(text) - 8))
        parts.append(text if len(text) < 16 else text[start : start + 4 + dice.below(16)])
    return dice.one(("", "", " ")).join(parts)


def _spaced(dice: Dice) -> str:
    """Words of a sentence with white space of all kinds between them, around them, or alone."""
    words = dice.one(SENTENCES + CODE).split()
    runs = ["".join(dice.one(SPACES[:6] if dice.below(3) else SPACES) for _ in range(dice.below(5))) for _ in range(4)]
    runs.append(dice.one((" ", "\n", "\t")) * dice.below(40))
    return "".join(dice.one(runs) + dice.one((*words, "")) for _ in range(1 + dice.below(5))) + dice.one(runs)


def _broken(dice: Dice) -> str:
    """Bytes that were cut or spoiled, as ``errors="replace"`` reads them."""
    content = bytearray(dice.one(SENTENCES + EMOJI).encode()[: 4 + dice.below(40)])
    for _ in range(dice.below(4)):
        content[dice.below(len(content))] = dice.below(256)
    return bytes(content).decode("utf-8", errors="replace")


def _anywhere(dice: Dice) -> str:
    """Characters from all of Unicode, the unassigned among them, between letters, digits and spaces."""
    parts = []
    for _ in range(1 + dice.below(8)):
        bound = dice.one((0x100, 0x600, 0x3000, 0x10000, 0x1FFFF, 0x110000))
        character = chr(dice.below(bound))
        parts.append("" if 0xD800 <= ord(character) < 0xE000 else character)
        parts.append(dice.one(("", "", "a", " ", "B", "1", "'s", "\n", ".")))
    return "".join(parts)
