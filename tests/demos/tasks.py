# SPDX-License-Identifier: Apache-2.0
"""The tasks of the demonstration models: prompts, right answers, and what was measured before.

A copying prompt is `n` positions of noise (dots) that hold 16 letters, then a marker; the right
answer is the letters in order. The tasks differ in where the letters stand.
"""

LETTERS = "abcdefghijklmn"
DATA = 16


def fixed(distance):
    """One block at the one distance from the marker that the model was trained on."""
    return lambda n, rng: range(n - distance, n - distance + DATA)


def runs(length):
    """Runs of `length` letters at places drawn anew, in order; 1: scattered, 16: one block."""

    def places(n, rng):
        count = DATA // length
        gaps = sorted(rng.sample(range(n - DATA + count), count))
        return [gaps[j] + j * (length - 1) + i for j in range(count) for i in range(length)]

    return places


def fifth(n, rng):
    """Every fifth position from a place drawn anew."""
    first = rng.randrange(n - 5 * (DATA - 1))
    return range(first, first + 5 * DATA, 5)


def copying(places):
    def prompt(n, rng):
        answer = "".join(rng.choice(LETTERS) for _ in range(DATA))
        text = ["."] * n
        for place, letter in zip(places(n, rng), answer, strict=True):
            text[place] = letter
        return "".join(text) + "|", answer

    return prompt


def induction(n, rng):
    """The letter that followed the marker the one time it stood there before."""
    text = [rng.choice("abcdefghijklmno") for _ in range(n)]
    place = rng.randrange(n - 3)
    text[place] = text[-1] = "|"
    return "".join(text), text[place + 1]


COPYING = {
    "block": copying(runs(16)),
    "runs of 8": copying(runs(8)),
    "runs of 4": copying(runs(4)),
    "runs of 2": copying(runs(2)),
    "every fifth": copying(fifth),
    "scattered": copying(runs(1)),
}
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)


def every(whole, tokens=None, lengths=LENGTHS):
    """The same figures at every length."""
    return {n: (whole, tokens) for n in lengths}


def by_length(whole, tokens=None, lengths=LENGTHS):
    tokens = tokens or [None] * len(whole)
    return dict(zip(lengths, zip(whole, tokens, strict=True), strict=True))


# (model, task) -> the prompts, and by length the share of whole answers and of letters that the
# models' training measured (fp64, 128 prompts, 64 from 2,048 on), in percent. `must`: these are to
# be right, up to a length; the others are to fail as they did.
class Row:
    def __init__(self, model, task, prompt, before, must=0):
        self.model, self.task, self.prompt, self.before, self.must = model, task, prompt, before, must


def copied(model, tasks, must=0):
    return [Row(model, task, COPYING[task], before, must) for task, before in tasks.items()]


FAILS = {task: every(0, 8, LENGTHS[1:] if task == "every fifth" else LENGTHS) for task in COPYING}
LONGER = LENGTHS[1:]
ROWS = [
    Row("copying-s4d", "fixed", copying(fixed(256)), every(100, 100, LENGTHS[2:]), must=4096),
    *copied("copying-s4d", FAILS),
    Row("copying-lssl", "fixed", copying(fixed(64)), every(100, 100), must=4096),
    *copied("copying-lssl", FAILS),
    *copied("selective-s4d", {
        "scattered": by_length([0, 0, 0.3, 0, 0, 0, 0], [64, 68, 70, 44, 26, 19, 13]),
        "every fifth": by_length([0] * 6, [53, 36, 25, 17, 11, 9], LONGER),
        "block": by_length([0] * 7, [20, 19, 21, 19, 15, 11, 9]),
    }),
    *copied("selective-s4d-256", {
        "scattered": by_length([0, 0, 9.8, 0, 0, 0, 0], [14, 17, 86, 4, 1, 0, 0]),
    }),
    *copied("selective-h3", {
        "scattered": by_length([1.6, 2.3, 0.9, 0, 0, 0, 0], [79, 78, 75, 55, 32, 23, 15]),
    }),
    *copied("selective-h3-256", {
        "scattered": by_length([0, 0, 35.5, 0, 0, 0, 0], [18, 19, 93, 9, 8, 8, 6]),
    }),
    *copied("copying-mamba", {task: every(100, 100, LONGER if task == "every fifth" else LENGTHS)
                              for task in COPYING}, must=4096),
    *copied("selective-copying", {
        "scattered": every(100, 100),
        "every fifth": by_length([100] * 5 + [92], None, LONGER),
        "runs of 4": by_length([63, 58, 45, 20, 20, 27, 20]),
        "block": every(0),
    }),
    Row("induction-h3", "induction heads", induction, every(100, 100), must=2048),
]
