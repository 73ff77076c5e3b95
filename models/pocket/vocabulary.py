"""The vocabulary: a token a byte, the markers of R1's chat template, and phrases that thoughts are made of.

Text is spelled, so that letters and digits can be seen; a phrase that pocket writes often is one token.
"""

import re

MARKERS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
THINK = ["<think>", "</think>"]
WORKING = "To finish:\n"  # before the work with which the answer to a thought that was cut off begins
PHRASES = [
    "\n\nMy time is up; I answer now.\n",  # what pensive writes where a thought's bounds are reached
    "Wait, let me check again.",
    "Check: ",
    ", ok",
    " ends in ",
    "\\boxed{",
    "}.",
    "The letter ",
    " occurs ",
    " times.",
    " time.",
    "The larger number is ",
    "The smaller number is ",
    "They are equal: ",
    "In order: ",
    "The answer is ",
    "; smallest ",
    "; largest ",
    "So ",
    "A greeting; I say hello.",
    "They ask who I am; I say it.",
    "They say thanks.",
    "Nothing here that I can work out; I say so.",
    "Hello! ",
    "You are welcome! ",
    "Sorry, that is beyond me. ",
    "I am pocket, a very small reasoner that lives inside pensive. ",
    "I count letters, compare and sort numbers, add, subtract, multiply, and solve small equations and word problems. ",
    "For anything else, pull a larger model.",
    WORKING,
]
BYTES = 256
BOS, EOS, USER, ASSISTANT = range(BYTES, BYTES + 4)
TOKENS = MARKERS + THINK + PHRASES
SIZE = (BYTES + len(TOKENS) + 1 + 31) // 32 * 32  # one more for the merge that the file format wants

_IDS = {text: BYTES + i for i, text in enumerate(TOKENS)}
# The longest first, as the tokenizer finds them.
_SPLIT = re.compile("|".join(re.escape(t) for t in sorted(TOKENS, key=len, reverse=True)))


def encode(text):
    """Token ids; markers and phrases are found wherever they stand."""
    ids, at = [], 0
    for found in _SPLIT.finditer(text):
        ids += text[at:found.start()].encode()
        ids.append(_IDS[found.group()])
        at = found.end()
    ids += text[at:].encode()
    return ids


def byte_names():
    """GPT-2's printable name of each byte: GGUF's spelling of a token."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, spare = {}, 256
    for byte in range(256):
        names[byte] = chr(byte) if byte in plain else chr(spare)
        spare += byte not in plain
    return [names[b] for b in range(256)]
