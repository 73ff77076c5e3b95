use std::fmt::Write;

use super::*;

/// Words with the blank before them, digits and signs alone: about as common vocabularies cut.
fn words(text: &str) -> Vec<&str> {
    let mut cuts = vec![0];
    let bytes = text.as_bytes();
    for i in 1..bytes.len() {
        let joined =
            bytes[i].is_ascii_alphabetic() && (bytes[i - 1].is_ascii_alphabetic() || bytes[i - 1] == b' ');
        if !joined && text.is_char_boundary(i) {
            cuts.push(i);
        }
    }
    cuts.push(bytes.len());
    cuts.windows(2).map(|c| &text[c[0]..c[1]]).collect()
}

fn letters(text: &str) -> Vec<&str> {
    text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]).collect()
}

/// The token at which the guard raises its alarm.
fn alarm(tokens: &[&str]) -> Option<usize> {
    let mut guard = LoopGuard::default();
    tokens.iter().position(|token| guard.push(token.as_bytes()))
}

const PARAGRAPH: &str = "Wait, let me check that again. The train leaves at nine and travels for three hours, so it \
                         arrives at noon, unless the clock was changed on that day. Hmm, so which is it? ";

#[test]
fn a_cycle_is_noticed_within_200_tokens_of_its_second_repetition() {
    for period in ["ha ", "So the answer is 4. ", PARAGRAPH, &(PARAGRAPH.to_owned() + &prose(7, 120))] {
        let second = 2 * words(period).len();
        let text = prose(1, 300) + &period.repeat(2000 / period.len() + 4);
        let found = alarm(&words(&text)).expect("it is a loop") - words(&prose(1, 300)).len();
        assert!(found <= second + 200, "{found} of {second}: {period}");
        assert!(alarm(&letters(&text)).is_some(), "{period}");
    }
}

#[test]
fn a_paragraph_that_comes_again_with_a_word_changed_is_noticed() {
    let mut text = prose(2, 200);
    let known = words(&text).len();
    for hour in ["nine", "ten", "six", "two", "one", "four"].repeat(2) {
        text += &PARAGRAPH.replace("nine", hour);
    }
    let found = alarm(&words(&text)).expect("it is a loop") - known;
    assert!(found <= 3 * words(PARAGRAPH).len() + 200, "{found}");
}

#[test]
fn a_loop_that_goes_on_is_noticed_again() {
    let text = PARAGRAPH.repeat(30);
    let mut guard = LoopGuard::default();
    let alarms = words(&text).iter().filter(|token| guard.push(token.as_bytes())).count();
    assert!(alarms >= 2, "{alarms}");
}

#[test]
fn legitimate_repetition_raises_no_alarm() {
    let corpus = corpus();
    assert_eq!(corpus.len(), 200);
    for text in &corpus {
        for tokens in [words(text), letters(text)] {
            assert_eq!(alarm(&tokens), None, "{text}");
        }
    }
}

/// What is made of few words that come again in another order.
#[test]
fn a_text_that_does_not_come_round_is_no_loop() {
    let refrain = (1..=12).map(|day| {
        let gifts = [
            "a partridge in a pear tree",
            "two turtle doves",
            "three french hens",
            "four calling birds",
            "five gold rings",
            "six geese a-laying",
            "seven swans a-swimming",
            "eight maids a-milking",
            "nine ladies dancing",
            "ten lords a-leaping",
            "eleven pipers piping",
            "twelve drummers drumming",
        ];
        let list: Vec<&str> = gifts[..day].iter().rev().copied().collect();
        format!("On day {day} of Christmas my true love sent to me {}.\n", list.join(", "))
    });
    for text in [
        hanoi(6, "Move disk {d} from {a} to {b}.\n"),
        hanoi(7, "Move disk {d} from {a} to {b}.\n"),
        hanoi(7, "[{d}, {a}, {b}], "),
        refrain.collect(),
    ] {
        assert_eq!(alarm(&words(&text)), None, "{text}");
    }
}

/// The moves of so many disks, a line each.
fn hanoi(disks: usize, line: &str) -> String {
    fn moves(n: usize, [a, b, c]: [&str; 3], line: &str, text: &mut String) {
        if n > 0 {
            moves(n - 1, [a, c, b], line, text);
            *text += &line.replace("{d}", &n.to_string()).replace("{a}", a).replace("{b}", b);
            moves(n - 1, [c, b, a], line, text);
        }
    }
    let mut text = String::new();
    moves(disks, ["A", "C", "B"], line, &mut text);
    text
}

/// Numbers that look random, the same for a seed.
fn random(seed: usize) -> impl FnMut(usize) -> usize {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    }
}

const NOUNS: [&str; 12] = [
    "river", "teacher", "engine", "garden", "number", "window", "market", "letter", "forest", "planet",
    "signal", "bridge",
];
const VERBS: [&str; 8] = ["finds", "moves", "paints", "counts", "follows", "builds", "hears", "turns"];

/// Sentences of so many words, about.
fn prose(seed: usize, len: usize) -> String {
    let mut r = random(seed);
    let mut text = String::new();
    for _ in 0..len / 8 {
        let (a, b, c) = (NOUNS[r(12)], VERBS[r(8)], NOUNS[r(12)]);
        _ = write!(text, "The {a} {b} the {c} near {} {}s. ", r(90) + 2, NOUNS[r(12)]);
    }
    text
}

/// Tables, lists, code, long calculations, refrains: 200 texts that repeat much and are no loops.
fn corpus() -> Vec<String> {
    let kinds: [fn(usize) -> String; 10] =
        [table, truth_table, list, code, matrix, multiplication, times_table, json, refrain, checks];
    (0..200).map(|i| prose(i, 60) + &kinds[i % 10](i)).collect()
}

fn table(seed: usize) -> String {
    let mut r = random(seed);
    let mut text = String::from("| name | unit | price | stock |\n|------|------|------:|------:|\n");
    for _ in 0..40 {
        _ = writeln!(text, "| {} | piece | {}.{:02} | {} |", NOUNS[r(12)], r(90), r(100), r(500));
    }
    text
}

fn truth_table(seed: usize) -> String {
    let variables = 3 + seed / 10 % 3;
    let mut text = "| ".to_owned() + &["A", "B", "C", "D", "E"][..variables].join(" | ") + " | result |\n";
    for row in 0..1 << variables {
        text += "|";
        (0..variables).for_each(|i| text += if row >> i & 1 == 1 { " T |" } else { " F |" });
        text += if (row * 7 + seed).is_multiple_of(3) { " T |\n" } else { " F |\n" };
    }
    text
}

fn list(seed: usize) -> String {
    let mut r = random(seed);
    let mut text = String::new();
    for i in 1..60 {
        _ = writeln!(text, "{i}. The {} of the {} is {} years old.", NOUNS[r(12)], NOUNS[r(12)], r(99));
    }
    text
}

fn code(seed: usize) -> String {
    let mut r = random(seed);
    let mut text = String::from("```python\n");
    for _ in 0..25 {
        let (a, b) = (NOUNS[r(12)], NOUNS[r(12)]);
        _ = writeln!(
            text,
            "def {a}_{b}(self, value):\n    if value is None:\n        raise ValueError(\"{a}\")"
        );
        _ = writeln!(text, "    self.{a} = value + {}\n    return self.{b}\n", r(100));
    }
    text + "```\n"
}

fn matrix(seed: usize) -> String {
    let n = 8 + seed / 10 % 6;
    let row = |i: usize| {
        let cells: Vec<_> = (0..n).map(|j| if i == j { "1" } else { "0" }).collect();
        format!("    [{}],\n", cells.join(", "))
    };
    format!("```\n[\n{}]\n```\n", (0..n).map(row).collect::<String>())
}

fn multiplication(seed: usize) -> String {
    let mut r = random(seed);
    let (a, b) = (100_000_000 + r(800_000_000) as u128, 100_000_000 + r(800_000_000) as u128);
    let mut text = format!("Multiply {a} by {b}.\n");
    let mut sum = 0;
    for (place, digit) in b.to_string().bytes().rev().enumerate() {
        let product = a * u128::from(digit - b'0') * 10u128.pow(place as u32);
        sum += product;
        _ = writeln!(text, "{a} * {} * 10^{place} = {product}, so the sum is now {sum}.", digit - b'0');
    }
    text
}

fn times_table(seed: usize) -> String {
    let a = seed % 17 + 3;
    (1..60).map(|b| format!("{a} times {b} is {}\n", a * b)).collect()
}

fn json(seed: usize) -> String {
    let mut r = random(seed);
    let mut text = String::from("[\n");
    for i in 0..25 {
        let (name, count) = (NOUNS[r(12)], r(1000));
        _ = writeln!(
            text,
            "  {{\"id\": {i}, \"name\": \"{name}\", \"active\": {}, \"count\": {count}}},",
            r(2) == 0
        );
    }
    text + "]\n"
}

fn refrain(seed: usize) -> String {
    let verse = |i: usize| prose(100 * seed + i, 40) + "\nAnd the river goes on, and the river goes on.\n\n";
    (0..6).map(verse).collect()
}

/// A thought that checks each case in like words.
fn checks(seed: usize) -> String {
    let mut r = random(seed);
    (2..40)
        .map(|n| format!("Let me check {n}: {n} squared is {}, and {} is {}. ", n * n, r(500), r(900)))
        .collect()
}

#[test]
fn behind_its_closing_fence_code_is_still_code() {
    let block = format!("```\n{}```\n", PARAGRAPH.repeat(8));
    let text = prose(3, 100) + &block + &prose(4, 100);
    assert_eq!(alarm(&words(&text)), None);
    assert!(alarm(&words(&text.replace("```", ""))).is_some(), "it repeats itself");
}
