"""What pocket is asked: problems of each kind in many phrasings, for training and, apart from these, for measuring.

A problem is held out by a hash of what it asks (the word, the numbers); held-out phrasings are marked HELD. Training sees
neither; held-out problems have both. `python problems.py` writes heldout.jsonl: 200 problems of each kind.
"""

import json
import random
import zlib
from pathlib import Path

import thoughts

WORDS_FILE = "/usr/share/dict/american-english"  # Debian's package wamerican (SCOWL), public domain and the like
HELD = "HELD "  # before a phrasing that training does not see
NEVER_TRAINED = {"count:strawberry", "mul:47:86", "compare:9.11:9.9"}


def is_held_out(key):
    return key in NEVER_TRAINED or zlib.crc32(key.encode()) % 12 == 0


def all_words():
    lines = Path(WORDS_FILE).read_text().split()
    return [w for w in lines if w.isascii() and w.isalpha() and w.islower() and 3 <= len(w) <= 14]


# Phrasings, of which {…} are filled in.

COUNT = [
    "How many {c}'s are in {w}?", "How many {c}'s are there in {w}?", "How many {c} are in {w}?",
    "How many times does {c} occur in {w}?", "How many times does the letter {c} appear in {w}?",
    "Count the letter {c} in {w}.", "Count the {c}'s in {w}.", "Count how often {c} occurs in {w}.",
    "How often does {c} appear in {w}?", "How often is the letter {c} in the word {w}?",
    "What is the number of {c}'s in {w}?", "What is the count of {c} in the word {w}?",
    "In {w}, how many {c}'s are there?", "In the word {w}, how many times does {c} appear?",
    "The word is {w}. How many {c}'s does it have?", "Does {w} have the letter {c}? How many?",
    "Tell me how many {c}'s {w} has.", "Tell me how many times the letter {c} is in {w}.",
    "How many letters {c} does {w} contain?", "Find the number of {c}'s in the word {w}.",
    "How many of the letters in {w} are {c}?", "{w}: how many {c}'s?", "{w} - count the {c}'s.",
    "Spell {w} and count the letter {c}.", "Number of {c} in {w}", "{w}に{c}はいくつありますか？",
    "How many {c}'s does {w} have?", "How often does the letter {c} appear in {w}?", "In {w}, count the {c}'s.",
    "In the word {w}, how many {c}'s are there?", "What is the number of times the letter {c} is in {w}?",
    "Tell me the number of {c}'s in {w}.", "Tell me how often {c} is in {w}.", "How often does {c} occur in {w}?",
    "In the word {w}, count the letter {c}.", "What is the count of {c} in {w}?",
    "What is the number of times the letter {c} appears in {w}?", "What is the number of times {c} is in {w}?",
    "Give the number of times {c} occurs in {w}.", "The number of times {c} appears in {w}",
    HELD + "How many {c}'s does the word {w} have?", HELD + "How often does the letter {c} occur in {w}?",
    HELD + "In the word {w}, count the {c}'s.", HELD + "What is the number of times {c} appears in {w}?",
    HELD + "Tell me the count of {c} in {w}.",
]
COMPARE = [
    "Which is {m}, {a} or {b}?", "Which is {m}: {a} or {b}?", "Which number is {m}, {a} or {b}?",
    "What is {m}, {a} or {b}?", "Is {a} or {b} {m}?", "Which one is {m}, {a} or {b}?",
    "Which of {a} and {b} is {m}?", "{a} or {b}, which is {m}?", "{a} and {b}: which one is {m}?",
    "Compare {a} and {b}. Which is {m}?", "Compare {a} and {b}: what number is {m}?",
    "Of {a} and {b}, which one is {m}?", "Tell me which is {m}, {a} or {b}.",
    "Tell me the {m} number: {a} or {b}", "Between {a} and {b}, which is {m}?",
    "Which is the {m} one, {a} or {b}?", "Which is the {m} of {a} and {b}?", "Find the {m} of {a} and {b}.",
    "I have {a} and {b}. Which number is {m}?", "{a} vs {b}, which is {m}?", "{a}と{b}、{j}のはどちら？",
    "Of {a} and {b}, which is {m}?", "{a} or {b}: which is {m}?", "Which of the two numbers {a} and {b} is {m}?",
    "Which of these is {m}, {a} or {b}?", "Compare {a} with {b}: which is {m}?",
    "Tell me which of the two is {m}: {a} or {b}", "Of the two numbers {a} and {b}, which one is {m}?",
    "Which of the numbers {a} and {b} is {m}?", "{a} or {b}: what is {m}?",
    HELD + "Of the numbers {a} and {b}, which is {m}?", HELD + "{a} or {b}: which number is {m}?",
    HELD + "Which of the two is {m}, {a} or {b}?", HELD + "Compare {a} with {b}. Which one is {m}?",
    HELD + "Tell me which of {a} and {b} is {m}.",
]
MORE = ["bigger", "larger", "greater", "higher"]
LESS = ["smaller", "less", "lower"]
ADD = [
    "What is {a} + {b}?", "What is {a}+{b}?", "{a}+{b}", "{a} + {b} =", "{a}+{b}=?", "Calculate {a} + {b}.",
    "Compute {a}+{b}.", "What is {a} plus {b}?", "How much is {a} plus {b}?", "How much is {a} + {b}?",
    "Add {a} and {b}.", "Add {b} to {a}.", "What is the sum of {a} and {b}?", "Find the sum of {a} and {b}.",
    "Calculate the sum of {a} and {b}.", "What do {a} and {b} add up to?", "What do you get if you add {a} and {b}?",
    "{a} plus {b} is what?", "{a} + {b} is what?", "Work out {a} + {b}.", "Tell me {a} plus {b}.",
    "What does {a} + {b} equal?", "What is the total of {a} and {b}?", "Sum {a} and {b}.", "{a}足す{b}は？",
    "How much do {a} and {b} make?", "Compute the total of {a} and {b}.", "What does {a} plus {b} make?",
    "Find {a} plus {b}.", "Tell me the total of {a} and {b}.", "How much is it if you add {a} and {b}?",
    "Tell me {a} + {b}.", "Find {a}+{b}.",
    HELD + "How much do you get if you add {a} and {b}?", HELD + "Compute the sum of {a} and {b}.",
    HELD + "What does {a} plus {b} equal?", HELD + "Find {a} + {b}.", HELD + "Tell me the sum of {a} and {b}.",
]
SUBTRACT = [
    "What is {a} - {b}?", "What is {a}-{b}?", "{a}-{b}", "{a} - {b} =", "{a}-{b}=?", "Calculate {a} - {b}.",
    "Compute {a}-{b}.", "What is {a} minus {b}?", "How much is {a} minus {b}?", "How much is {a} - {b}?",
    "Subtract {b} from {a}.", "What is {b} subtracted from {a}?", "Take {b} from {a}.", "Take {b} away from {a}.",
    "What do you get if you subtract {b} from {a}?", "What is left if you take {b} from {a}?",
    "{a} minus {b} is what?", "{a} - {b} is what?", "Work out {a} - {b}.", "Tell me {a} minus {b}.",
    "What does {a} - {b} equal?", "Calculate {a} minus {b}.", "How much is {b} less than {a}?", "{a}引く{b}は？",
    "Find {a} minus {b}.", "What does {a} minus {b} make?", "Tell me {a} - {b}.",
    "How much is left if you take {b} from {a}?", "What is {b} taken from {a}?",
    "How much do you get if you subtract {b} from {a}?", "Find {a}-{b}.", "How much is {b} taken from {a}?",
    HELD + "What do you get if you take {b} from {a}?", HELD + "Compute {a} minus {b}.",
    HELD + "What does {a} minus {b} equal?", HELD + "Find {a} - {b}.", HELD + "How much is {b} subtracted from {a}?",
]
MULTIPLY = [
    "What is {a} * {b}?", "What is {a}*{b}?", "{a}*{b}", "{a} * {b} =", "{a}x{b}", "What is {a} x {b}?",
    "What is {a} × {b}?", "Calculate {a} * {b}.", "Compute {a}*{b}.", "What is {a} times {b}?",
    "How much is {a} times {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.",
    "What is the product of {a} and {b}?", "Find the product of {a} and {b}.",
    "Calculate the product of {a} and {b}.", "What do you get if you multiply {a} by {b}?",
    "{a} times {b} is what?", "{a} * {b} is what?", "Work out {a} * {b}.", "Tell me {a} times {b}.",
    "What does {a} * {b} equal?", "How much is {a} x {b}?", "{a} × {b} = ?", "{a}かける{b}は？",
    "What is {a} multiplied by {b}?", "{a} multiplied by {b}", "What do you get if you multiply {a} with {b}?",
    "Compute {a} times {b}.", "Find {a} times {b}.", "What does {a} x {b} equal?",
    "Tell me the product of {a} and {b}.", "Find {a}*{b}.", "What does {a} times {b} make?",
    "How much do {a} times {b} make?",
    HELD + "What do you get if you multiply {a} and {b}?", HELD + "Compute the product of {a} and {b}.",
    HELD + "What does {a} times {b} equal?", HELD + "Find {a} * {b}.", HELD + "How much is {a} multiplied by {b}?",
]
IN_WORDS = [
    "What is {e}?", "How much is {e}?", "Calculate {e}.", "Tell me {e}.", "{e} is what?", "What does {e} equal?",
    "Compute {e}.", "{e}", "{e} =", "Please work out {e}.", "What is the result of {e}?", "What do you get for {e}?",
    "Tell me what {e} is.", "What is the value of this: {e}", "Work it out: {e}", "How much does {e} make?",
    HELD + "What is the value of {e}?", HELD + "Work out {e}.", HELD + "Tell me how much {e} is.",
]
LISTS = [
    "Add {l}.", "Add {l} together.", "What is the sum of {l}?", "What is the total of {l}?", "Sum up {l}.",
    "Calculate the sum of {l}.", "What do {l} add up to?", "Find the total of {l}.",
    "What do {l} make together?", "Find the sum: {l}", "What is the sum of these: {l}", "Calculate the total: {l}",
    "Add these numbers: {l}", "What is {l} in total?",
    HELD + "Find the sum of {l}.", HELD + "What is {l} together?", HELD + "Calculate the total of {l}.",
]
EQUATION = [
    "Solve {e}.", "Solve {e} for {x}.", "Solve for {x}: {e}", "If {e}, what is {x}?", "If {e}, find {x}.",
    "What is {x} if {e}?", "Find {x}: {e}", "Find {x} if {e}.", "{e}. What is {x}?", "{e}, {x} = ?", "{e}",
    "Solve the equation {e}.", "What is the solution of {e}?", "What is {x} in {e}?", "Given {e}, find {x}.",
    "Let {e}. Find {x}.", "For which {x} is {e}?", "What value of {x} solves {e}?", "{e}を解いて",
    "Given that {e}, what is {x}?", "Solve the equation {e} to find {x}.", "Let {e}. Then what is {x}?",
    "In the equation {e}, what is {x}?", "What must {x} be if {e}?",
    HELD + "Given {e}, what is {x}?", HELD + "Solve the equation {e} for {x}.", HELD + "Let {e}. What is {x}?",
    HELD + "What is {x} in the equation {e}?",
]
SORT = [
    "Sort {l}.", "Sort the numbers {l}.", "Sort these numbers: {l}", "Sort {l} {o}.", "Sort the numbers {l} {o}.",
    "Sort these {o}: {l}", "Put {l} in order.", "Put these numbers in order: {l}", "Order {l} {o}.",
    "Order these numbers {o}: {l}", "Arrange {l} {o}.", "Arrange the numbers {l} {o}.", "Arrange {l} in order.",
    "Put {l} in order {o}.", "Arrange these numbers in order: {l}", "Arrange these {o}: {l}",
    "Put these numbers {o}: {l}", "Order {l}.", "Order the numbers {l}.",
    HELD + "Put the numbers {l} in order.", HELD + "Order the numbers {l} {o}.", HELD + "Arrange these numbers {o}: {l}",
]
UP = ["from smallest to largest", "in ascending order", "from low to high", "from least to greatest"]
DOWN = ["from largest to smallest", "in descending order", "from high to low", "from greatest to least"]

# Word problems: a phrasing and its two operations, from left to right over {a}, {b}, {c}.
STORIES = [
    ("{N} has {a} {t}. {S} buys {b} more and gives {c} away. How many {t} does {s} have now?", "+-"),
    ("{N} has {a} {t}. {S} finds {b} more and loses {c}. How many {t} does {N} have?", "+-"),
    ("{N} had {a} {t}, bought {b} more and sold {c}. How many {t} are left?", "+-"),
    ("{N} has {a} {t}, gets {b} {t} and eats {c}. How many are left?", "+-"),
    ("There are {a} {t}. {N} adds {b} and takes {c} away. How many {t} are there now?", "+-"),
    ("{N} has {a} {t}. {S} gives {b} away and then buys {c} more. How many {t} does {s} have now?", "-+"),
    ("{N} has {a} {t}. {S} loses {b} and finds {c}. How many {t} does {N} have now?", "-+"),
    ("{N} had {a} {t}, sold {b} and bought {c} more. How many {t} does {s} have?", "-+"),
    ("There are {a} {t}. {N} takes {b} and adds {c}. How many are there now?", "-+"),
    ("{N} has {a} {t}. {S} eats {b} and gives {c} away. How many {t} are left?", "--"),
    ("{N} had {a} {t}. {S} sold {b} and lost {c}. How many {t} does {s} have left?", "--"),
    ("{N} has {a} {t}. {S} buys {b} and then {c} more. How many {t} does {s} have now?", "++"),
    ("{N} has {a} {t}, {M} has {b} and {O} has {c}. How many {t} do they have together?", "++"),
    ("{N} has {b1} {u} of {a1} {t} each and sells {c}. How many {t} are left?", "*-"),
    ("{N} buys {b1} {u} with {a1} {t} each. {S} eats {c}. How many {t} are left?", "*-"),
    ("There are {b1} {u} with {a1} {t} in each. {N} takes {c}. How many {t} are left?", "*-"),
    ("{N} has {b1} {u} of {a1} {t} each and finds {c} more. How many {t} does {s} have?", "*+"),
    ("{N} buys {b1} {u} with {a1} {t} each and {c} more {t}. How many {t} does {s} have now?", "*+"),
    ("There are {b1} {u} with {a1} {t} in each and {c} more {t}. How many {t} are there?", "*+"),
    ("{N} buys {a1} red and {b1} blue {t} for {c1} dollars each. How much does {s} pay?", "+*"),
    ("{N} sells {a1} {t} and {M} sells {b1}, for {c1} dollars each. How much do they get?", "+*"),
    ("{N} has {a} {t} and {M} has {b} more than {N}. How many do they have together?", "2+"),
    ("{N} has {a1} {t} and {M} has {b1} times as many. How many do they have together?", "2*"),
    ("{N} has {a} {t}. {S} buys {b} more and loses {c}. How many {t} does {s} have now?", "+-"),
    ("{N} has {a} {t}. {S} finds {b} more and sells {c}. How many {t} are left?", "+-"),
    ("{N} has {a} {t}. {S} gets {b} more and gives {c} away. How many {t} does {N} have now?", "+-"),
    ("{N} had {a} {t}, found {b} more and lost {c}. How many {t} does {s} have now?", "+-"),
    ("{N} had {a} {t}, bought {b} more and gave {c} away. How many {t} does {s} have left?", "+-"),
    ("{N} has {a} {t}. {S} sells {b} and then buys {c} more. How many {t} does {s} have?", "-+"),
    ("{N} has {a} {t}. {S} loses {b} and then finds {c} more. How many {t} are there now?", "-+"),
    ("There are {a} {t}. {N} eats {b} and takes {c}. How many {t} are left?", "--"),
    ("There are {a} {t}. {N} takes {b} and {M} takes {c}. How many {t} are left?", "--"),
    ("{N} has {a} {t}. {S} sells {b} and eats {c}. How many are left?", "--"),
    ("{N} buys {b1} {u} of {a1} {t} each and eats {c}. How many {t} are left?", "*-"),
    ("{N} has {b1} {u} with {a1} {t} each and sells {c}. How many {t} are left now?", "*-"),
    ("There are {b1} {u} of {a1} {t} each. {N} adds {c} more. How many {t} are there now?", "*+"),
    ("There are {b1} {u} with {a1} {t} each and {c} more {t}. How many {t} are there now?", "*+"),
    ("{N} buys {a1} big and {b1} small {t}. Each costs {c1} dollars. How much does {s} pay?", "+*"),
    ("{N} buys {a1} old and {b1} new {t} for {c1} dollars each. How much does {s} pay?", "+*"),
    (HELD + "{N} has {a} {t}. {S} finds {b} more and gives {c} away. How many {t} does {s} have now?", "+-"),
    (HELD + "{N} had {a} {t}, bought {b} more and lost {c}. How many {t} does {s} have left?", "+-"),
    (HELD + "{N} has {a} {t}. {S} loses {b} and then buys {c} more. How many {t} does {s} have now?", "-+"),
    (HELD + "There are {a} {t}. {N} takes {b} and eats {c}. How many {t} are left?", "--"),
    (HELD + "{N} buys {b1} {u} of {a1} {t} each and sells {c}. How many {t} are left?", "*-"),
    (HELD + "There are {b1} {u} of {a1} {t} each and {c} more {t}. How many {t} are there now?", "*+"),
    (HELD + "{N} buys {a1} big and {b1} small {t} for {c1} dollars each. How much does {s} pay?", "+*"),
]
SHE = ["Anna", "Mary", "Sara", "Emma", "Lucy", "Eva", "Aiko", "Nina", "Zoe", "Mia"]
HE = ["Tom", "John", "Peter", "Leo", "Omar", "Jack", "Ken", "Max", "Paul", "Ben"]
THINGS = ["apples", "pears", "coins", "books", "marbles", "cookies", "stamps", "flowers", "eggs", "pens", "cards",
          "nuts", "plums", "candies", "tickets", "balls", "oranges", "stones", "shells", "toys"]
UNITS = ["boxes", "bags", "jars", "packs", "baskets"]

GREETINGS = ["hello", "hi", "hey", "good morning", "good evening", "hello there", "hi there", "hi pocket", "good day",
             "greetings", "hey, how are you", "hello, how are you", "nice to meet you", "こんにちは"]
THANKS = ["thanks", "thank you", "thank you very much", "thanks a lot", "great, thanks", "ok", "okay, thank you",
          "well done", "good job", "bye", "goodbye", "see you", "ありがとう"]
WHO = ["who are you", "what are you", "what is your name", "what can you do", "tell me about yourself", "help",
       "who made you", "are you a robot", "are you an ai", "what is pocket", "what is pensive", "introduce yourself",
       "how do you work", "what do you know", "can you help me", "what are you able to do", "あなたは誰ですか"]
UNKNOWN = [
    "What is the capital of {w}?", "Why is the {w} {w}?", "Who wrote {w}?", "Write a poem about {w}.",
    "Tell me a story about {w} and {w}.", "What does {w} mean?", "Translate {w} to French.", "Where is {w}?",
    "Explain {w} {w}.", "How do I make {w}?", "Who is the {w} of {w}?", "When was {w} born?", "What is {w}?",
    "I like {w}.", "Write a function that {w} a {w}.", "What is the weather in {w}?", "Is {w} a {w}?",
    "Give me a recipe for {w}.", "Summarize this text: {w} {w} {w} {w}", "What color is {w}?", "Do you like {w}?",
    "{w}", "{w} {w}", "{w} {w} {w} {w}?", "Tell me a joke.", "What time is it?", "What rhymes with {w}?",
    "How old is {w}?", "Spell {w} backwards.", "What is the meaning of life?", "Why is the sky blue?",
    "Prove that there are {w} {w}.", "Which {w} is the best?", "How far is the {w}?", "{w}はなんですか？",
]
OPENINGS = ["Please: ", "Hi! ", "Hello, ", "Hey, ", "Quick question: ", "Can you tell me: ", "Question: ", "Hello! "]
BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."  # what R1's authors advise
CLOSINGS = [" Thanks!", " Please think carefully.", " Think step by step.", " please", " Please explain.", "\n", " ",
            BOXED, BOXED, BOXED]

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def in_words(n):
    if n < 20:
        return ONES[n]
    tens, ones = divmod(n, 10)
    return TENS[tens - 2] + ("-" + ONES[ones] if ones else "")


class Problems:
    """Draws problems: of training, or held-out ones."""

    def __init__(self, rng, held_out):
        self.rng, self.held_out = rng, held_out
        self.words = [w for w in all_words() if is_held_out(f"count:{w}") == held_out]

    def is_mine(self, key):
        return is_held_out(key) == self.held_out

    def phrasing(self, phrasings):
        """One of the phrasings; what training may not see is for the held-out problems alone."""
        text = lambda p: p if isinstance(p, str) else p[0]
        chosen = self.rng.choice([p for p in phrasings if text(p).startswith(HELD) == self.held_out])
        return chosen.removeprefix(HELD) if isinstance(chosen, str) else (chosen[0].removeprefix(HELD), chosen[1])

    def number(self, digits):
        """With up to so many digits, each length as likely; some with many equal digits."""
        n = self.rng.randint(1, digits)
        if self.rng.random() < 0.1:
            pair = self.rng.choices("0123456789", k=2)
            return int("".join(self.rng.choice(pair) for _ in range(n)))
        return self.rng.randrange(10 ** (n - 1) if n > 1 else 0, 10**n)

    def slip(self):
        return self.rng if not self.held_out and self.rng.random() < 0.06 else None

    # Each kind: (what was asked, what it is known by, thought, answer in short, answer)

    def count(self):
        rng = self.rng
        word = rng.choice(self.words)
        if not self.held_out and rng.random() < 0.3:
            letters = rng.sample("abcdefghijklmnopqrstuvwxyz", rng.choice([2, 3, 5, 8, 26]))
            word = "".join(rng.choice(letters) for _ in range(rng.randint(2, 15)))
        if rng.random() < 0.8:
            twice = [c for c in word if word.count(c) > 1]
            letter = rng.choice(twice if twice and rng.random() < 0.5 else word)
        else:
            letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
        style = rng.random()
        shown = word if style < 0.8 else word.capitalize() if style < 0.93 else word.upper()
        c = letter.upper() if rng.random() < 0.1 else letter
        c = rng.choice(["{}", "{}", "{}", "'{}'", '"{}"']).format(c)
        asked = self.phrasing(COUNT)
        if "'s" in asked:
            c = c.strip("'\"")
        quote = rng.choice(["{}", "{}", "{}", '"{}"', "'{}'"])
        if "word" not in asked and not asked.startswith("{w}") and rng.random() < 0.2:
            quote = "the word " + quote
        prompt = asked.format(c=c, w=quote.format(shown))
        thought, answer = thoughts.count(word, letter, self.slip())
        return prompt, f"count:{word}", thought, str(word.count(letter)), answer

    def decimal(self, whole):
        places = self.rng.choice([0, 1, 1, 2, 2, 3, 4])
        if not places:
            return str(whole)
        return f"{whole}." + "".join(self.rng.choice("0123456789") for _ in range(places))

    def compare(self):
        rng = self.rng
        while True:
            n = self.number(3)
            m = n if rng.random() < 0.7 else self.number(3)
            a, b = self.decimal(n), self.decimal(m)
            if rng.random() < 0.4 and "." in a:  # a common beginning
                b = a[: rng.randint(a.index(".") + 1, len(a))]
                b = b.rstrip(".") if rng.random() < 0.3 else b + rng.choice("0123456789")
                b = b if "." in b or b.isdigit() else a
                if rng.random() < 0.5:
                    a, b = b, a
            if (len(a) != len(b) or rng.random() < 0.5) and (float(a) != float(b) or rng.random() < 0.1):
                break
        larger = rng.random() < 0.6
        word = rng.choice(MORE if larger else LESS)
        prompt = self.phrasing(COMPARE).format(a=a, b=b, m=word, j="大きい" if larger else "小さい")
        thought, answer = thoughts.compare(a, b, larger, self.slip())
        best = max(a, b, key=float) if larger else min(a, b, key=float)
        return prompt, "compare:" + ":".join(sorted([a, b])), thought, a if float(a) == float(b) else best, answer

    def add(self):
        a, b = self.number(6), self.number(6)
        thought, answer = thoughts.add(a, b, self.slip())
        return self.phrasing(ADD).format(a=a, b=b), self.pair("add", a, b), thought, str(a + b), answer

    def sub(self):
        rng = self.rng
        a, b = self.number(6), self.number(6)
        if rng.random() < 0.3:  # of one length
            b = rng.randrange(max(1, 10 ** (len(str(a)) - 1)), 10 ** len(str(a)))
        if rng.random() < 0.5:
            a, b = max(a, b), min(a, b)
        thought, answer = thoughts.subtract(a, b, self.slip())
        return self.phrasing(SUBTRACT).format(a=a, b=b), self.pair("sub", a, b), thought, str(a - b), answer

    def mul(self):
        rng = self.rng
        a, b = rng.randrange(10, 100), rng.randrange(10, 100)
        if not self.held_out and rng.random() < 0.3:
            a, b = rng.choice([(self.number(1), self.number(2)), (self.number(3), self.number(1)),
                               (self.number(2), self.number(1)), (self.number(3), self.number(2))])
        thought, answer = thoughts.multiply(a, b, self.slip())
        return self.phrasing(MULTIPLY).format(a=a, b=b), self.pair("mul", a, b), thought, str(a * b), answer

    def words_(self):
        """Short sums in words, and sums of several numbers."""
        rng = self.rng
        if rng.random() < 0.5:
            op = rng.choice("++--*")
            a, b = (rng.randrange(10), rng.randrange(10)) if op == "*" else (rng.randrange(100), rng.randrange(100))
            if op == "-" and rng.random() < 0.7:
                a, b = max(a, b), min(a, b)
            name = {"+": "plus", "-": "minus", "*": "times"}[op]
            prompt = self.phrasing(IN_WORDS).format(e=f"{in_words(a)} {name} {in_words(b)}")
            numbers, ops = [a, b], op
        else:
            numbers = [self.number(2) for _ in range(rng.randint(3, 4))]
            ops = "+" * (len(numbers) - 1)
            if rng.random() < 0.5:
                prompt = self.phrasing(LISTS).format(l=self.listed(numbers))
            else:
                ops = "".join(rng.choice("+-") for _ in ops)
                values = [numbers[0]]
                for n, op in zip(numbers[1:], ops):
                    values.append(values[-1] + (n if op == "+" else -n))
                if min(values) < 0:
                    return self.words_()
                space = rng.choice(["", " "])
                terms = "".join(f"{space}{op}{space}{n}" for n, op in zip(numbers[1:], ops))
                prompt = self.phrasing(IN_WORDS).format(e=f"{numbers[0]}{terms}")
        thought, answer = thoughts.chain(numbers, ops, self.slip())
        value = numbers[0]
        for n, op in zip(numbers[1:], ops):
            value = {"+": value + n, "-": value - n, "*": value * n}[op]
        return prompt, f"words:{numbers}{ops}", thought, str(value), answer

    def story(self):
        rng = self.rng
        text, ops = self.phrasing(STORIES)
        n, m, o = rng.sample(SHE + HE, 3)
        a, b, c = rng.randint(2, 60), rng.randint(2, 40), rng.randint(2, 40)
        a1, b1, c1 = rng.randint(2, 12), rng.randint(2, 9), rng.randint(2, 9)
        values = {"+-": (a, b, c), "-+": (a, b, c), "--": (a, b, c), "++": (a, b, c), "*-": (b1, a1, c),
                  "*+": (b1, a1, c), "+*": (a1, b1, c1), "2+": (a, b, a), "2*": (a1, b1, a1)}[ops]
        ops = {"2+": "++", "2*": "*+"}.get(ops, ops)
        first = {"+": values[0] + values[1], "-": values[0] - values[1], "*": values[0] * values[1]}[ops[0]]
        value = {"+": first + values[2], "-": first - values[2], "*": first * values[2]}[ops[1]]
        if min(first, value) < 0:
            return self.story()
        she = n in SHE
        prompt = text.format(N=n, M=m, O=o, S="She" if she else "He", s="she" if she else "he", a=a, b=b, c=c, a1=a1,
                             b1=b1, c1=c1, t=rng.choice(THINGS), u=rng.choice(UNITS))
        thought, answer = thoughts.chain(list(values), ops, self.slip())
        return prompt, f"story:{text}{values}", thought, str(value), answer

    def equation(self):
        rng = self.rng
        x, name = rng.randint(-12, 20), rng.choice("xxxyztan")
        a = rng.choice([2, 3, 4, 5, 6, 7, 8, 9, 10])
        b = rng.choice([0, rng.randint(-9, 9), rng.randint(-50, 50), rng.randint(1, 50)])
        c = a * x + b
        times = rng.choice(["", "", "*", " * "])
        space = rng.choice([" ", " ", ""])
        sign = "-" if b < 0 else "+"
        term = f"{a}{times}{name}"
        left = f"{term}{space}{sign}{space}{abs(b)}" if b else term
        if b > 0 and rng.random() < 0.15:
            left = f"{b}{space}+{space}{term}"
        e = f"{left}{space}={space}{c}"
        if rng.random() < 0.07:
            e = f"{c}{space}={space}{left}"
        prompt = self.phrasing(EQUATION).format(e=e, x=name)
        thought, answer = thoughts.equation(a, b, c, x, name, self.slip())
        return prompt, f"equation:{a}:{b}:{c}", thought, str(x), answer

    def sort(self):
        rng = self.rng
        digits = rng.choice([1, 2, 2, 2, 2, 3])
        low = 0 if digits == 1 or rng.random() < 0.3 else 10 ** (digits - 1)
        numbers = rng.sample(range(low, 10**digits), rng.choice([3, 3, 4, 4, 5]))
        asked = self.phrasing(SORT)
        ascending = "{o}" not in asked or rng.random() < 0.5
        prompt = asked.format(l=self.listed(numbers), o=rng.choice(UP if ascending else DOWN))
        thought, answer = thoughts.sort(numbers, ascending, self.slip())
        done = ", ".join(map(str, sorted(numbers, reverse=not ascending)))
        return prompt, f"sort:{sorted(numbers)}", thought, done, answer

    def other(self):
        rng = self.rng
        kind = rng.choices(["greeting", "thanks", "who", "unknown"], [2, 1, 3, 8])[0]
        if kind == "unknown":
            text = rng.choice(UNKNOWN)
            while "{w}" in text:
                text = text.replace("{w}", rng.choice(self.words), 1)
            while "{n}" in text:
                text = text.replace("{n}", str(self.number(4)), 1)
        else:
            text = rng.choice({"greeting": GREETINGS, "thanks": THANKS, "who": WHO}[kind])
            text = (text[0].upper() + text[1:] if rng.random() < 0.7 else text) + rng.choice(["", ".", "!", "?"])
        thought, answer = thoughts.other(kind)
        return text, "other:" + text, thought, answer.split(". ")[0], answer

    def listed(self, numbers):
        style = self.rng.choice([", ", ", ", ", ", ",", " ", "and"])
        words = [str(n) for n in numbers]
        if style == "and":
            return ", ".join(words[:-1]) + " and " + words[-1]
        return style.join(words)

    @staticmethod
    def pair(kind, a, b):
        return f"{kind}:{min(a, b)}:{max(a, b)}"

    def dressed(self, prompt):
        """As people write: with a greeting, without a capital, without the last sign."""
        rng = self.rng
        if rng.random() < 0.12:
            prompt = prompt[0].lower() + prompt[1:]
        if rng.random() < 0.1 and prompt[-1] in ".?":
            prompt = prompt[:-1]
        if rng.random() < 0.08:
            prompt = rng.choice(OPENINGS) + prompt
        if rng.random() < 0.1:
            prompt += rng.choice(CLOSINGS)
        return prompt

    def draw(self, kind):
        """(prompt, thought, answer in short, answer) of a problem of this kind that is this side's."""
        while True:
            prompt, key, thought, short, answer = getattr(self, {"words": "words_"}.get(kind, kind))()
            if self.is_mine(key):
                return self.dressed(prompt), thought, short, answer


KINDS = ["count", "compare", "add", "sub", "mul", "words", "story", "equation", "sort", "other"]


def main():
    problems = Problems(random.Random(2025), held_out=True)
    with open(Path(__file__).with_name("heldout.jsonl"), "w") as out:
        for kind in KINDS:
            seen = set()
            while len(seen) < 200:
                prompt, _, short, _ = problems.draw(kind)
                if prompt not in seen:
                    seen.add(prompt)
                    out.write(json.dumps({"kind": kind, "prompt": prompt, "answer": short}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
