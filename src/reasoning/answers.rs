//! Final answers, found in what models write, and made comparable.

use std::cmp::Reverse;

/// A final answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalAnswer {
    /// As it was written, without decoration.
    pub text: String,
    /// What equal answers have in common: 0.5, 1/2 and 50% are one.
    pub key: String,
    /// Whether it was marked as the answer; else it is the last number.
    pub is_marked: bool,
}

/// The final answer in an answer's text: the last `\boxed{}`, else what follows the last "Answer:" or "the answer is", else
/// the last number.
pub fn final_answer(text: &str) -> Option<FinalAnswer> {
    let marked = boxed(text).or_else(|| announced(text));
    let is_marked = marked.is_some();
    let text = undecorated(marked.or_else(|| last_number(text))?);
    (!text.is_empty()).then(|| FinalAnswer { key: key(&text), text, is_marked })
}

/// What stands in the last `\boxed{}` that is whole: the text may end within one.
fn boxed(text: &str) -> Option<&str> {
    text.rmatch_indices("\\boxed{").find_map(|(at, open)| Some(braced(&text[at + open.len()..])?.0))
}

/// What stands before the brace that closes, and what after it; braces in between are balanced.
fn braced(inner: &str) -> Option<(&str, &str)> {
    let mut depth = 1;
    for (at, c) in inner.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return Some((&inner[..at], &inner[at + 1..]));
        }
    }
    None
}

/// What follows the last announcement, up to the end of its sentence or line.
fn announced(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    let after = ["answer:", "answer is:", "answer is"]
        .iter()
        .filter_map(|words| lower.rfind(words).map(|at| at + words.len()))
        .max()?;
    // on its line, or on one of its own
    let rest = text[after..].trim_start_matches(|c: char| c.is_whitespace() || ['*', ':'].contains(&c));
    let line = rest.lines().next()?;
    let end = line.find(". ").unwrap_or(line.len());
    Some(&line[..end]).filter(|answer| !answer.trim().is_empty() && answer.split(' ').next() != Some("that"))
}

fn last_number(text: &str) -> Option<&str> {
    let is_digit = |c: char| c.is_ascii_digit();
    let end = text.rfind(is_digit)? + 1;
    let start = text[..end]
        .rfind(|c: char| !(is_digit(c) || c == '.' || c == ',' || c == '/'))
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let digit = start + text[start..end].find(is_digit)?;
    // ".5" begins with its point, "No.5" does not
    let is_point = &text[start..digit] == "." && !text[..start].ends_with(char::is_alphabetic);
    let start = if is_point { start } else { digit };
    let before = text[..start].strip_suffix(['-', '−']).filter(|before| !before.ends_with(is_digit));
    let percent = text[end..].starts_with('%');
    Some(&text[before.map_or(start, str::len)..end + usize::from(percent)])
}

/// Without Markdown, dollar signs, LaTeX's words for text and spaces, and a full stop at the end.
fn undecorated(text: &str) -> String {
    let mut text = text.replace("{,}", ",");
    for word in ["\\left", "\\right", "\\,", "\\!", "\\$"] {
        text = text.replace(word, "");
    }
    // row by row: the second half of `\\ ` is no blank
    let blanks = ["\\ ", "\\;", "\\:", "\\quad", "\\qquad", "~"];
    let spaced = |row: &str| blanks.iter().fold(row.to_owned(), |row, blank| row.replace(blank, " "));
    text = text.split("\\\\").map(spaced).collect::<Vec<_>>().join("\\\\");
    text = text.replace("^\\circ ", "°").replace("^\\circ", "°").replace("^{\\circ}", "°");
    for word in ["\\text{", "\\mathrm{", "\\textbf{", "\\mathbf{"] {
        while let Some(at) = text.find(word) {
            let Some(end) = text[at..].find('}') else { break };
            text = [&text[..at], &text[at + word.len()..at + end], &text[at + end + 1..]].concat();
        }
    }
    let text = flat_fractions(text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"));
    let text = text.replace("\\%", "%").replace("\\(", "").replace("\\)", "").replace(['$', '*', '`'], "");
    text.trim().trim_end_matches(['.', ',', ';']).trim().to_owned()
}

/// With `a/b` for `\frac{a}{b}` and `\frac ab`, the innermost first.
fn flat_fractions(mut text: String) -> String {
    let is_digit = |c: char| c.is_ascii_digit();
    while let Some((whole, rest)) = text.rsplit_once("\\frac") {
        let Some((above, rest)) = argument(rest) else { break };
        let Some((below, rest)) = argument(rest) else { break };
        let whole = whole.trim_end();
        let before = if whole.ends_with(is_digit) { " " } else { "" };
        let after = if rest.starts_with(is_digit) { " " } else { "" };
        // 1/(2x) is not 1/2 x, nor (1+x)/2 the same as 1+x/2
        let is_sum = |part: &str| part.chars().skip(1).any(|c| ['+', '-', '−', '/'].contains(&c));
        let above = if is_sum(above) { format!("({above})") } else { above.to_owned() };
        let is_one = below.chars().count() == 1 || is_command(below) || decimal(below).is_some();
        let below = if is_sum(below) || !is_one { format!("({below})") } else { below.to_owned() };
        // nor a power's or a function's fraction a fraction of it
        let fraction = format!("{above}/{below}");
        let fraction = if takes_argument(whole) { format!("({fraction})") } else { fraction };
        text = format!("{whole}{before}{fraction}{after}{rest}");
    }
    text
}

/// Whether this is one command, with an argument or not: `\pi`, `\sqrt{2}`, `\sqrt2`.
fn is_command(text: &str) -> bool {
    let Some(name) = text.strip_prefix('\\') else { return false };
    let argument = name.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    argument.len() <= 1
        || argument.strip_prefix('{').and_then(braced).is_some_and(|(_, rest)| rest.is_empty())
}

/// Whether what follows this belongs to it: to a power, or to a function (`\ln`, `\sin^2`, `\log_2`).
fn takes_argument(text: &str) -> bool {
    const FUNCTIONS: [&str; 14] = [
        "ln", "log", "exp", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "lg",
        "sqrt",
    ];
    let name =
        |(_, name): (&str, &str)| name.split(['^', '_']).next().is_some_and(|name| FUNCTIONS.contains(&name));
    text.ends_with('^') || text.rsplit_once('\\').is_some_and(name)
}

/// What LaTeX takes for an argument, and the rest: what is in braces, or else one character.
fn argument(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    match text.strip_prefix('{') {
        Some(inner) => braced(inner),
        None => text.starts_with(|c: char| c.is_ascii_alphanumeric()).then(|| text.split_at(1)),
    }
}

/// Numbers by value, choices by their letter, anything else as it is but for blanks and case.
fn key(text: &str) -> String {
    // x = 5 is 5
    let is_letter = |name: &str| matches!(name.trim().as_bytes(), [letter] if letter.is_ascii_alphabetic());
    let value = text.split_once('=').filter(|(name, _)| is_letter(name)).map(|(_, value)| value.trim());
    let text = value.unwrap_or(text);
    let unit = text.find(|c: char| c.is_alphabetic() || c == '°').filter(|&at| is_unit(&text[at..]));
    if let Some((n, d)) = number(&text[..unit.unwrap_or(text.len())]) {
        return format!("{n}/{d}");
    }
    if let Some(letter) = choice(text, text.trim_matches(['(', ')', '[', ']', ' '])) {
        return letter.to_string();
    }
    let mut key = String::new();
    for word in text.to_lowercase().split_whitespace() {
        // 1 2 is not 12
        if key.ends_with(|c: char| c.is_ascii_digit()) && word.starts_with(|c: char| c.is_ascii_digit()) {
            key.push(' ');
        }
        key.push_str(word);
    }
    key
}

/// Whether these words only say of what there are so many: units, and things in the plural. One letter may be a variable.
fn is_unit(words: &str) -> bool {
    const UNITS: &str = "° °C °F mm cm km mg kg ml mL ft lb sq min hr sec mph m/s km/h square cubic per inch feet meter \
        metre mile second minute hour day week month months year degree dollar unit people children";
    // these change the number; so do tenths
    const AMOUNTS: &str = "less plus minus percents halves thirds quarters tens dozens hundreds thousands millions billions trillions";
    let is_in = |list: &str, word: &str| list.split_whitespace().any(|one| one == word);
    let is_plural = |word: &str| {
        let is_lower = word.len() > 3 && word.bytes().all(|b| b.is_ascii_lowercase());
        is_lower && word.ends_with('s') && !word.ends_with("ths") && !is_in(AMOUNTS, word)
    };
    let power = ["^2", "^3", "^{2}", "^{3}", "²", "³"];
    words.split_whitespace().all(|word| {
        let word = power.iter().find_map(|power| word.strip_suffix(power)).unwrap_or(word);
        is_in(UNITS, word) || is_plural(word)
    })
}

/// `B`, `(B)`, `B)`, or one of these, `B.` or `B:` with a text.
fn choice(text: &str, bare: &str) -> Option<char> {
    let letter = bare.chars().next().filter(char::is_ascii_alphabetic)?;
    let rest = &bare[1..];
    let is_choice = rest.is_empty()
        || rest.starts_with(')') && text.starts_with(['(', letter])
        || letter.is_ascii_uppercase() && (rest.starts_with(". ") || rest.starts_with(": "));
    is_choice.then(|| letter.to_ascii_uppercase())
}

/// A number as a fraction in lowest terms; a whole number may stand before a fraction.
fn number(text: &str) -> Option<(i128, i128)> {
    let text = text.trim();
    // 10 000/3 has no whole number in front
    let is_grouped = text.split_once('/').is_some_and(|(above, _)| decimal(above).is_some());
    let is_fraction = |rest: &str| rest.trim_start().find('/').is_some_and(|at| at > 0) && !is_grouped;
    if let Some((whole, fraction)) = text.split_once(' ').filter(|(_, rest)| is_fraction(rest)) {
        let ((whole, 1), (n, d)) = (decimal(whole)?, number(fraction)?) else { return None };
        let n = whole.checked_mul(d)?.checked_add(if whole < 0 { -n } else { n })?;
        return Some((n, d));
    }
    let (body, hundred) = match text.strip_suffix('%').or_else(|| text.strip_suffix("percent")) {
        Some(body) => (body, 100),
        None => (text, 1),
    };
    let (n, d) = match body.split_once('/') {
        Some((a, b)) => {
            let ((an, ad), (bn, bd)) = (decimal(a)?, decimal(b)?);
            (an.checked_mul(bd)?, ad.checked_mul(bn)?)
        }
        None => decimal(body)?,
    };
    let d = d.checked_mul(hundred)?;
    if d == 0 {
        return None;
    }
    let by = gcd(n.unsigned_abs(), d.unsigned_abs()) as i128 * d.signum();
    Some((n / by, d / by))
}

/// A decimal number, thousands separated by a comma or a blank, or not.
fn decimal(text: &str) -> Option<(i128, i128)> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix(['-', '−']) {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let (whole, fraction) = digits.trim_start().split_once('.').unwrap_or((digits.trim_start(), ""));
    let groups: Vec<&str> = whole.split(|c: char| c == ',' || c.is_whitespace()).collect();
    let grouped =
        groups.len() == 1 || groups[1..].iter().all(|g| g.len() == 3) && (1..=3).contains(&groups[0].len());
    let all = groups.concat() + fraction;
    if !grouped || all.is_empty() || all.len() > 30 || !all.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((sign * all.parse::<i128>().ok()?, 10i128.pow(fraction.len() as u32)))
}

fn gcd(a: u128, b: u128) -> u128 {
    if b == 0 { a.max(1) } else { gcd(b, a % b) }
}

/// An answer, and how many gave it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// As the first of them wrote it.
    pub answer: String,
    /// Of so many traces.
    pub count: usize,
}

/// Counts the answers of several traces, the most frequent first; answers that were not marked count only if none was.
/// With it, which traces agree with the first. None if there is no answer at all, or several that all differ.
pub fn tally(answers: &[Option<FinalAnswer>]) -> Option<(Vec<Count>, Vec<usize>)> {
    let any_marked = answers.iter().flatten().any(|answer| answer.is_marked);
    let counted = |answer: &&FinalAnswer| answer.is_marked || !any_marked;
    let mut keys: Vec<(&str, Count)> = Vec::new();
    for answer in answers.iter().flatten().filter(counted) {
        match keys.iter_mut().find(|(key, _)| *key == answer.key) {
            Some((_, known)) => known.count += 1,
            None => keys.push((&answer.key, Count { answer: answer.text.clone(), count: 1 })),
        }
    }
    keys.sort_by_key(|(_, count)| Reverse(count.count));
    let (first, most) = keys.first().map(|(key, count)| (*key, count.count))?;
    if most == 1 && keys.len() > 1 {
        return None;
    }
    let agrees = |&i: &usize| answers[i].as_ref().filter(counted).is_some_and(|answer| answer.key == first);
    let agreeing = (0..answers.len()).filter(agrees).collect();
    Some((keys.into_iter().map(|(_, count)| count).collect(), agreeing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Option<(String, bool)> {
        final_answer(text).map(|answer| (answer.text, answer.is_marked))
    }

    fn key_of(text: &str) -> String {
        final_answer(&format!("\\boxed{{{text}}}")).expect("it is marked").key
    }

    #[test]
    fn the_last_box_counts_and_braces_within_it_belong_to_it() {
        assert_eq!(found("\\boxed{1}, no: \\boxed{\\frac{3}{4}}."), Some(("3/4".into(), true)));
        assert_eq!(found("$\\boxed{\\text{Paris}}$"), Some(("Paris".into(), true)));
    }

    #[test]
    fn a_box_that_was_cut_off_hides_no_whole_one() {
        assert_eq!(found("\\boxed{1}, \\boxed{2}, again: \\boxed{\\frac{3"), Some(("2".into(), true)));
        assert_eq!(found("4 or \\boxed{5"), Some(("5".into(), false)));
    }

    #[test]
    fn an_announced_answer_counts_where_there_is_no_box() {
        for text in [
            "So.\n**Answer:** 42",
            "The answer is 42.",
            "Answer: 42. That is all.",
            "the final answer is: $42$",
            "**Final answer:**\n\n42\n",
        ] {
            assert_eq!(found(text), Some(("42".into(), true)), "{text}");
        }
        assert_eq!(found("The answer is that of 42 men"), Some(("42".into(), false)));
    }

    #[test]
    fn the_last_number_is_taken_unmarked() {
        assert_eq!(found("5 and 7 make 12"), Some(("12".into(), false)));
        assert_eq!(found("It falls by -3.5%, no more"), Some(("-3.5%".into(), false)));
        assert_eq!(found("It is −5."), Some(("−5".into(), false)));
        assert_eq!(found("It is .5."), Some((".5".into(), false)));
        assert_eq!(found("It is -.5, or so"), Some(("-.5".into(), false)));
        assert_eq!(found("It is No.5"), Some(("5".into(), false)));
        for range in ["from 2-4", "from 2−4"] {
            assert_eq!(found(range), Some(("4".into(), false)), "{range}");
        }
        assert_eq!(found("none at all"), None);
    }

    #[test]
    fn numbers_are_equal_by_value() {
        for same in ["1/2", "50%", ".5", "0.50", "\\frac{1}{2}", "\\dfrac{2}{4}", "50\\%", "$0.5$"] {
            assert_eq!(key_of(same), key_of("0.5"), "{same}");
        }
        for same in ["1,234", "1234.0", "+1234", " 1234. ", "1{,}234", "\\$1234"] {
            assert_eq!(key_of(same), key_of("1234"), "{same}");
        }
        assert_eq!(key_of("-7"), key_of("−7"));
        assert_ne!(key_of("1,23"), key_of("123"));
        assert_ne!(key_of("1/0"), key_of("0"));
        for same in ["3\\frac{1}{2}", "3 \\frac{1}{2}", "3 1/2", "7/2"] {
            assert_eq!(key_of(same), key_of("3.5"), "{same}");
        }
        assert_eq!(key_of("-3\\frac{1}{2}"), key_of("-3.5"));
        assert_eq!(key_of("2\\cdot\\frac{1}{2}"), "2\\cdot1/2");
        assert_eq!(key_of("\\frac{10~000}{3}"), key_of("10000/3"));
        assert_eq!(key_of("25^\\circ C"), key_of("25°C"));
        assert_ne!(key_of("5 tens"), key_of("5"));
    }

    #[test]
    fn fractions_that_differ_stay_apart() {
        for (one, other) in [
            ("\\ln\\frac{3}{2}", "\\frac{\\ln 3}{2}"),
            ("\\sin\\frac{x}{2}", "\\frac{\\sin x}{2}"),
            ("\\frac{1}{\\sqrt{2}x}", "\\frac{1}{\\sqrt{2}}x"),
            ("\\frac{1}{\\pi r}", "\\frac{1}{\\pi}r"),
            ("\\sin^2\\frac{x}{2}", "\\frac{\\sin^2 x}{2}"),
            ("2^\\frac{3}{2}", "\\frac{2^3}{2}"),
        ] {
            assert_ne!(key_of(one), key_of(other), "{one} {other}");
        }
        assert_eq!(key_of("\\frac{1}{\\sqrt{2}}"), "1/\\sqrt{2}");
        assert_eq!(key_of("\\frac{1}{\\pi}"), "1/\\pi");
    }

    #[test]
    fn choices_are_equal_by_letter_and_words_by_themselves() {
        for same in ["(B)", "b", "B) the second", "(B) the second", "B. the second", "B: the second"] {
            assert_eq!(key_of(same), "B", "{same}");
        }
        assert_eq!(key_of("New  York"), key_of("new york"));
        assert_ne!(key_of("Ben"), "B");
    }

    #[test]
    fn what_differs_only_in_writing_is_equal() {
        for same in [
            &["5", "x = 5", "5 cm", "5cm", "5 apples"][..],
            &["5", "5\\text{ cm}", "5\\,\\text{cm}", "5\\ \\text{cm}", "5~\\text{cm}"],
            &["24", "24\\text{ cm}^2", "24 \\mathrm{~cm}^{2}", "24 cm²", "24 square feet"],
            &["5m", "5 m", "5\\;\\text{m}", "5 \\quad m"],
            &["90", "90^\\circ", "90^{\\circ}", "90°", "90 degrees"],
            &["0.5", "\\frac12", "\\frac 1 2", "\\frac{1}2", "1 / 2", "50 %", "50 percent", "x=\\dfrac12"],
            &["1000", "1,000", "1 000", "1\\,000", "1~000", "1,000 km"],
            &["-5", "- 5", "−5"],
            &["(2,3)", "(2, 3)", "\\left( 2,\\ 3 \\right)"],
            &["2\\sqrt{3}", "2 \\sqrt{3}"],
            &["(1+x)/2", "\\frac{1 + x}{2}"],
            &["a \\\\ b", "a\\\\b", "a \\\\  b"],
        ] {
            for one in same {
                assert_eq!(key_of(one), key_of(same[0]), "{one}");
            }
        }
    }

    #[test]
    fn what_differs_in_meaning_stays_apart() {
        for apart in [
            &["(0,1]", "[0,1]", "(0,1)", "[0,1)", "0,1"][..],
            &["3, 100", "3100", "3 10 0", "31 00"],
            &["2", "2x", "2 million", "2 thirds", "2 tenths", "2 am", "2 pm", "2\\pi", "2%", "2 less"],
            &["2", "2 km north", "2 km south"],
            &["\\frac{1}{2}x", "\\frac{1}{2x}"],
            &["\\frac{1+x}{2}", "1+\\frac{x}{2}"],
            &["\\frac{\\frac{x}{2}}{3}", "\\frac{x}{\\frac{2}{3}}"],
            &["\\frac{x}{2}3", "\\frac{x}{23}"],
            &["x > 5", "x < 5", "5"],
        ] {
            let mut keys: Vec<String> = apart.iter().map(|text| key_of(text)).collect();
            keys.sort();
            keys.dedup();
            assert_eq!(keys.len(), apart.len(), "{apart:?}: {keys:?}");
        }
    }

    /// Answers with their counts, and which texts agree with the first.
    type Counted = (Vec<(String, usize)>, Vec<usize>);

    fn counts(texts: &[&str]) -> Option<Counted> {
        let answers: Vec<_> = texts.iter().map(|text| final_answer(text)).collect();
        let (counts, agreeing) = tally(&answers)?;
        Some((counts.into_iter().map(|c| (c.answer, c.count)).collect(), agreeing))
    }

    #[test]
    fn the_most_frequent_answer_is_first_and_its_traces_are_named() {
        let tally = counts(&["\\boxed{0.5}", "\\boxed{2}", "no idea, 7", "Answer: 1/2"]);
        assert_eq!(tally, Some((vec![("0.5".into(), 2), ("2".into(), 1)], vec![0, 3])));
    }

    #[test]
    fn numbers_that_nobody_marked_count_only_among_themselves() {
        assert_eq!(
            counts(&["it is 7", "7 it is", "or 8"]),
            Some((vec![("7".into(), 2), ("8".into(), 1)], vec![0, 1]))
        );
        assert_eq!(counts(&["there are 7 ways", "in 1990"]), None);
    }

    #[test]
    fn answers_that_all_differ_have_nothing_in_common() {
        assert_eq!(counts(&["\\boxed{1}", "\\boxed{2}", "\\boxed{3}"]), None);
        assert_eq!(counts(&["\\boxed{1}", "no idea"]), Some((vec![("1".into(), 1)], vec![0])));
        assert_eq!(counts(&["a story", "another"]), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "\\PC*") {
            let _ = final_answer(&text);
            let _ = final_answer(&format!("\\boxed{{{text}}}"));
        }
    }
}
