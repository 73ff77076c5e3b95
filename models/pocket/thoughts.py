"""How pocket thinks: the written-out work of each kind of problem, and the answer.

Each function returns (thought, answer). With `slip` (a random generator) it makes a mistake on the way, finds it when it
checks, and does the work again; without, it makes none.

Copies are written without a break, as that is what a small model copies best, and digits are named by their place
(`a` ones, `b` tens, ...), so that a column is found by its name.
"""

PLACES = "abcdefghijkl"
AGAIN = "Wait, let me check again.\n"


def boxed(value):
    return "\\boxed{" + str(value) + "}."


def is_are(value):
    return "The answer is " + boxed(value)


# Letters

def marked(word, letter, slip=None):
    """The word with a running count behind each `letter`, and that count."""
    text, count = "", 0
    at = slip.randrange(len(word)) if slip else None
    how = slip.choice(["drop", "double", "miss", "count"]) if slip else None
    for i, c in enumerate(word):
        if i == at and how == "drop":
            continue
        text += c
        hit = c == letter
        if i == at and how == "miss":
            hit = False
        if i == at and how == "count":
            hit = True
        if hit:
            count += 1
            text += str(count)
        if i == at and how == "double":
            text += c
            if hit:
                count += 1
                text += str(count)
    return text, count


def count(word, letter, slip=None):
    """How often `letter` stands in `word`."""
    right, n = marked(word, letter)
    first, _ = marked(word, letter, slip)
    thought = f"{letter}: {first}\nCheck: {letter}: {right}"
    if first == right:
        thought += f"; {n}, ok"
    else:
        thought += f"\n{AGAIN}{letter}: {right}; {n}"
    return thought, f"The letter {letter} occurs {boxed(n)[:-1]}" + (" time." if n == 1 else " times.")


# Decimals

def padded(a, b):
    """Two decimals with as many digits before and after the point."""
    (ai, _, af), (bi, _, bf) = a.partition("."), b.partition(".")
    before, after = max(len(ai), len(bi)), max(len(af), len(bf))
    point = "." if after else ""
    return ai.rjust(before, "0") + point + af.ljust(after, "0"), bi.rjust(before, "0") + point + bf.ljust(after, "0")


def compare(a, b, larger, slip=None):
    """Which of two decimals (as text, not negative) is larger, or smaller."""
    x, y = padded(a, b)
    work = f"{x}\n{y}\n"
    at = next((i for i, (c, d) in enumerate(zip(x, y)) if c != d), None)
    if at is None:
        work += f"{x}=\n"
        equal = True
        sign = "="
    else:
        sign = ">" if x[at] > y[at] else "<"
        work += f"{x[:at]}|{x[at]}{sign}{y[at]}\n"
        equal = False
    thought = ""
    if slip:
        s, t = list(x), list(y)
        wrong = slip.choice([s, t])
        i = slip.randrange(len(wrong))
        wrong[i] = slip.choice("0123456789") if wrong[i] != "." else "0"
        if s == list(x) and t == list(y):
            return compare(a, b, larger)
        thought = f"{''.join(s)}\n{''.join(t)}\nCheck: {x} {y}\n{AGAIN}"
    thought += f"{work}Check: {x} {y}, ok\nSo {a}{sign}{b}"
    if equal:
        return thought, "They are equal: " + boxed(a)
    best = a if (sign == ">") == larger else b
    return thought, f"The {'larger' if larger else 'smaller'} number is {boxed(best)}"


# Columns

def placed(n):
    """Digits with the names of their places: 608 is c6b0a8."""
    digits = str(n)
    return "".join(PLACES[len(digits) - 1 - i] + d for i, d in enumerate(digits))


def digit(n, place):
    return n // 10**place % 10


def columns(a, b, op, slip=None):
    """The columns of a+b, or of a-b for a >= b, and the result as these columns make it."""
    lines, result, carry = [], "", 0
    places = max(len(str(a)), len(str(b)))
    wrong = slip.randrange(1, 9) if slip else 0
    for p in range(places):
        x, y = digit(a, p), digit(b, p)
        if op == "+":
            r = x + y + carry
            step = f"{PLACES[p]}{x}+{y}" + ("+1" if carry else "")
        else:
            r = x - y - carry
            step = f"{PLACES[p]}{x}-{y}" + ("-1" if carry else "")
        if p == 0 and wrong:
            r = (r + wrong) % 10
        carry = int(r > 9) if op == "+" else int(r < 0)
        last = p == places - 1
        result = (str(r) if last and op == "+" else str(r % 10)) + result
        lines.append(f"{step}={r}:{result}")
    return "\n".join(lines) + "\n", int(result)


def unit_check(a, b, op):
    """The last digit once more, seen for itself."""
    x, y = a % 10, b % 10
    if op == "-" and x < y:
        x += 10
    r = x * y if op == "*" else x + y if op == "+" else x - y
    return f"Check: {x}{op}{y} ends in {r % 10}"


def worked(a, b, op, slip=None):
    """Columns with their check; the mistake, if any, is in the ones, where the check sees it."""
    work = f"{placed(a)}{op}{placed(b)}\n"
    lines, result = columns(a, b, op)
    if slip:
        bad, _ = columns(a, b, op, slip)
        work += bad + unit_check(a, b, op) + "\n" + AGAIN
    return work + lines + unit_check(a, b, op) + ", ok\n", result


def plain(a, b, op):
    """Columns without a check, for parts of larger work."""
    lines, result = columns(a, b, op)
    return f"{placed(a)}{op}{placed(b)}\n" + lines, result


def add(a, b, slip=None):
    work, r = worked(a, b, "+", slip)
    return f"{a}+{b}\n{work}So {r}", f"{a}+{b}={boxed(r)}"


def order(a, b):
    """Which of two whole numbers is larger: their lengths, or the first digits that differ."""
    s, t = str(a), str(b)
    if len(s) != len(t):
        sign = "<" if len(s) < len(t) else ">"
        return f"{PLACES[len(s) - 1]}{sign}{PLACES[len(t) - 1]}\n", sign
    at = next((i for i, (c, d) in enumerate(zip(s, t)) if c != d), None)
    if at is None:
        return f"{s}=\n", "="
    sign = ">" if s[at] > t[at] else "<"
    return f"{s[:at]}|{s[at]}{sign}{t[at]}\n", sign


def subtract_work(a, b, check=True, slip=None):
    """a-b with either sign, and the result."""
    way = worked if check else lambda a, b, op, _: plain(a, b, op)
    compared, sign = order(a, b)
    if sign == "=":
        return compared, 0
    if sign == ">":
        work, r = way(a, b, "-", slip)
        return compared + work, r
    work, r = way(b, a, "-", slip)
    return f"{compared}-({b}-{a})\n{work}", -r


def subtract(a, b, slip=None):
    work, r = subtract_work(a, b, slip=slip)
    return f"{a}-{b}\n{work}So {r}", f"{a}-{b}={boxed(r)}"


# Products

def partial(a, d):
    """a times one digit, column by column."""
    digits, carry, result, lines = str(a), 0, "", []
    for p, x in enumerate(reversed(digits)):
        product = int(x) * d
        r = product + carry
        step = f"{PLACES[p]}{x}*{d}={product}" + (f"+{carry}={r}" if carry else "")
        last = p == len(digits) - 1
        result = (str(r) if last else str(r % 10)) + result
        carry = r // 10
        lines.append(f"{step}:{result}")
    return "\n".join(lines) + "\n", int(result)


def multiply_work(a, b, check=True, slip=None):
    header = f"{placed(a)}*{placed(b)}\n"
    work, total = "", 0
    for p, d in enumerate(reversed(str(b))):
        lines, r = partial(a, int(d))
        work += lines
        r *= 10**p
        if p:
            lines, r = plain(total, r, "+")
            work += lines
        total = r
    if not check:
        return header + work, total
    if slip:
        lines, r = partial(a, (b % 10 + slip.randrange(1, 9)) % 10)
        if r % 10 != total % 10:
            header += lines + unit_check(a, b, "*") + "\n" + AGAIN
    return header + work + unit_check(a, b, "*") + ", ok\n", total


def multiply(a, b, slip=None):
    work, r = multiply_work(a, b, slip=slip)
    return f"{a}*{b}\n{work}So {r}", f"{a}*{b}={boxed(r)}"


# Several steps

def step(a, b, op, slip=None):
    """One step of a longer problem, from its line to its result."""
    if op == "+":
        work, r = worked(a, b, "+", slip) if slip else plain(a, b, "+")
    elif op == "-":
        work, r = subtract_work(a, b, bool(slip), slip)
    else:
        work, r = multiply_work(a, b, bool(slip), slip)
    return f"{a}{op}{b}\n{work}", r


def chain(numbers, ops, slip=None):
    """numbers[0] ops[0] numbers[1] ..., from left to right."""
    thought, value = "", numbers[0]
    if len(ops) > 1:
        thought = str(value) + "".join(f"{op}{n}" for n, op in zip(numbers[1:], ops)) + "\n"
    for n, op in zip(numbers[1:], ops):
        work, value = step(value, n, op, slip)
        thought += work
        slip = None
    return f"{thought}So {value}", is_are(value)


def equation(a, b, c, x, name, slip=None):
    """a*name + b = c for a > 0, with the solution x (a whole number)."""
    thought = f"{a}{name}" + (f"{b:+}" if b else "") + f"={c}\n"
    rest = c - b
    if b:
        sign = "-" if b > 0 else "+"
        thought += f"{a}{name}={c}{sign}{abs(b)}\n"
        # c - b as a sum or difference of numbers that are not negative
        if c >= 0:
            work, r = step(c, abs(b), sign)
        elif sign == "-":
            work, r = step(-c, b, "+")
            work, r = "-(" + work.replace("\n", ")\n", 1), -r
        else:
            work, r = step(-b, -c, "-")
        assert r == rest
        thought += work + f"{a}{name}={rest}\n"
    if slip:
        wrong = x + slip.choice([-2, -1, 1, 2])
        thought += f"{name}={wrong}\nCheck: {a}*{wrong}={a * wrong}\n{AGAIN}"
    thought += f"{name}={x}\nCheck: {a}*{x}={rest}, ok"
    return thought, f"{name}={boxed(x)}"


def sort(numbers, ascending, slip=None):
    """Takes the smallest (or largest) until nothing is left."""
    left, lines = list(numbers), []
    pick, word = (min, "; smallest ") if ascending else (max, "; largest ")
    wrong = slip.randrange(len(left) - 1) if slip else None
    while len(left) > 1:
        n = pick(left)
        if len(numbers) - len(left) == wrong and left[0] != n:
            bad = slip.choice([m for m in left if m != n])
            lines.append(" ".join(map(str, left)) + f"{word}{bad}")
            lines.append(f"Check: {bad}{'>' if bad > n else '<'}{n}\n{AGAIN.rstrip()}")
        lines.append(" ".join(map(str, left)) + f"{word}{n}")
        left.remove(n)
    lines.append(str(left[0]))
    done = ", ".join(map(str, sorted(numbers, reverse=not ascending)))
    return "\n".join(lines) + f"\nSo {done}", "In order: " + boxed(done)


# Anything else

ABOUT = (
    "I am pocket, a very small reasoner that lives inside pensive. "
    "I count letters, compare and sort numbers, add, subtract, multiply, and solve small equations and word problems. "
    "For anything else, pull a larger model."
)


def other(kind):
    thought, opening = {
        "greeting": ("A greeting; I say hello.", "Hello! "),
        "thanks": ("They say thanks.", "You are welcome! "),
        "who": ("They ask who I am; I say it.", ""),
        "unknown": ("Nothing here that I can work out; I say so.", "Sorry, that is beyond me. "),
    }[kind]
    return thought, opening + ABOUT
