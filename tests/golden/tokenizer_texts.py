# SPDX-License-Identifier: Apache-2.0
"""Texts to tokenize: what make_tokenizers.py writes down and diff_tokenizers.py draws afresh."""

import random
import unicodedata

SAMPLES = [
    "", " ", "  ", "\n", "a", "Hello, world!", " Hello", "Hello ", "  two  spaces  ", "tab\there",
    "line one\nline two\r\nline three\r", "\r\n\r\n", "\n\n\n  \n", "I'm you're he'll they'd we've",
    "I'M YOU'RE HE'LL", "don't can't won't it's", "'s 't 're", "12345 3.14159 1,000,000 007 ¾ Ⅷ ٣٤٥",
    "x = f(a, b) + c[1]; // comment", "if (x<y) {\n    return 0;\n}\n", "a_b_c __init__ snake_case",
    "https://example.org/a?b=c&d=e#f", "naïve café résumé Ærøskøbing", "nai\u0308ve cafe\u0301",
    "\u00c5 \u212b A\u030a", "ﬁ ﬂ ﬀ ½ ² ™ ①", "Straße ẞ İstanbul ı ſ", "Привет, мир! Ёлка",
    "Γειά σου Κόσμε ΑΣ", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "你好,世界!",
    "こんにちは世界。カタカナ", "안녕하세요 세계 각", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛", "😀😃😄", "👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪",
    "e\u0301\u0327\u0323 \u0323\u0301", "\u0301leading mark",
    "a" + "\u0301\u0316\u0323\u0315" * 12 + "b", "²³¹¼½¾ x² m³", "1²", "\u200b\u200c\u200d\ufeff",
    "\u00a0nbsp\u00a0\u2003em\u3000ideographic\u1680\u205f\u2028\u2029\u0085", "\u180e", "\0nul\0",
    "<s>", "<unk>", "</s>", "<0x41>", "<0x0A>", "▁", "▁▁", "a▁b", " ▁ ", "ĠGPT Ċ", "Ā", "\u0143",
    "$$$ ^^^ ``` ~~~ |||", "— – ‘quoted’ “double” …", "§¶†‡ «guillemets» ¿qué? ¡sí!", "a\u00adb",
    "\x7f\x80\x9f", "\x01\x02\x1f", "ABC abc AbC", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\ufffd", "\U0010ffff", "\ue000", "\ufdd0",
]

# Blocks to draw from. Unicode is a moving target and each library knows another edition: what was
# assigned after 8.0 (2015) is left out here by the age table below, and only round trips are asked.
BLOCKS = [(0x20, 0x7e)] * 6 + [
    (0x00, 0x1f), (0x7f, 0xff), (0xa0, 0x17f), (0x180, 0x24f), (0x250, 0x2ff), (0x300, 0x36f),
    (0x370, 0x3ff), (0x400, 0x52f), (0x590, 0x5ff), (0x600, 0x6ff), (0x900, 0x97f), (0x980, 0x9ff),
    (0xb80, 0xbff), (0xe00, 0xe7f), (0xf00, 0xfff), (0x10a0, 0x10ff), (0x1100, 0x11ff),
    (0x1680, 0x169f), (0x1800, 0x18af), (0x1e00, 0x1fff), (0x2000, 0x206f), (0x2070, 0x209f),
    (0x20d0, 0x20ff), (0x2100, 0x218f), (0x2190, 0x23ff), (0x2460, 0x24ff), (0x2600, 0x27bf),
    (0x2e00, 0x2e42), (0x3000, 0x30ff), (0x3130, 0x318f), (0x3200, 0x33ff), (0x4e00, 0x9fa5),
    (0xa000, 0xa48c), (0xac00, 0xd7a3), (0xe000, 0xe0ff), (0xf900, 0xfaff), (0xfb00, 0xfdff),
    (0xfe00, 0xfe0f), (0xfe20, 0xfe2f), (0xfe30, 0xfeff), (0xff00, 0xffef), (0x10000, 0x100ff),
    (0x10300, 0x1034f), (0x1d100, 0x1d1ff), (0x1d400, 0x1d7ff), (0x1f100, 0x1f1ff),
    (0x1f300, 0x1f64f), (0x20000, 0x200ff), (0x2f800, 0x2fa1f),
]

ASTONISHING = ["\u200d", "\ufe0f", "\u0301", "\u0323", "\u0345", "👨", "👩", "👧", "🏽", "🇩", "🇪", "\r\n",
               "\u3000", "\u00a0", "'s", "'ll", "'S", "▁", "Ġ", "<0xE2>", "\u1161", "\u11a8", "ᄀ"]


def is_known(c):
    """Assigned in the oldest table at hand, or a kind of code point that never changes."""
    if 0xD800 <= c < 0xE000:
        return False
    ch = chr(c)
    if unicodedata.category(ch) == "Cn":
        return False
    return c < 0x530 or unicodedata.ucd_3_2_0.category(ch) != "Cn" or 0x1F300 <= c < 0x1F650


def char(rng):
    while True:
        lo, hi = rng.choice(BLOCKS)
        c = rng.randint(lo, hi)
        if is_known(c):
            return chr(c)


def text(rng, words, specials):
    """One random text: runs of words, characters of one block or of all, spaces, added tokens."""
    out = []
    for _ in range(rng.randint(1, 8)):
        kind = rng.randrange(10)
        if kind < 3:
            out.append(rng.choice(words))
            out.append(rng.choice([" ", " ", " ", ", ", "\n", "", "  "]))
        elif kind == 3:
            out.append(rng.choice([" ", "\n", "\t", "\r\n", "\u00a0", "a", "=", "."]) * rng.randint(1, 30))
        elif kind == 4 and specials:
            out.append(rng.choice([" ", "", "  ", "x", "\n"]) + rng.choice(specials) +
                       rng.choice([" ", "", "  ", "x", "_", "\u0301"]))
        elif kind == 5:
            out.append("".join(rng.choice(ASTONISHING) for _ in range(rng.randint(1, 6))))
        elif kind == 6:
            out.append(str(rng.randint(0, 10 ** rng.randint(1, 12))))
        elif kind == 7:
            lo, hi = rng.choice(BLOCKS)
            known = [chr(c) for c in range(lo, min(hi, lo + 400) + 1) if is_known(c)] or ["?"]
            out.append("".join(rng.choice(known) for _ in range(rng.randint(1, 8))))
        else:
            out.append("".join(char(rng) for _ in range(rng.randint(1, 8))))
    return "".join(out)


def later(rng):
    """Characters that some table may not know: text for round trips."""
    out = []
    for _ in range(rng.randint(1, 12)):
        c = rng.choice([rng.randint(0x1FA00, 0x1FAFF), rng.randint(0x16D00, 0x16DFF),
                        rng.randint(0x11F00, 0x11FFF), rng.randint(0x30000, 0x323AF),
                        rng.randint(0x1E000, 0x1E0FF), rng.randint(0xE0100, 0xE01FF), 0x61, 0x20])
        out.append(chr(c))
    return "".join(out)


def ids(rng, n_ids, byte_ids, special_ids):
    """A random list of ids; byte tokens and special tokens often."""
    out = []
    for _ in range(rng.randint(0, 20)):
        kind = rng.randrange(4)
        if kind == 0 and byte_ids:
            out += [rng.choice(byte_ids) for _ in range(rng.randint(1, 6))]
        elif kind == 1 and special_ids:
            out.append(rng.choice(special_ids))
        elif kind == 2 and byte_ids and len(byte_ids) == 256:
            out += [byte_ids[b] for b in rng.choice(["é", "你", "😀", "a", "▁"]).encode()]
        else:
            out.append(rng.randrange(n_ids))
    return out


def seeded(seed):
    return random.Random(seed)
