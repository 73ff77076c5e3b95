//! How often the pocket reasoner is right on its held-out problems, by kind and by thinking budget.
//!
//! `cargo bench --bench pocket -- [--svg FILE] [N]`: greedy, the first N problems of each kind (all 200); two Markdown
//! tables on stdout, the second one drawn to FILE. Whatever the budget, the thought is that of the unbounded run up to there,
//! then the words that end it.

use std::collections::BTreeMap;
use std::fmt::Write;

use pensive::{Model, Options, Prompt, Stats, Think};

/// Tokens of a thought; none: as long as it takes.
const BUDGETS: [Option<usize>; 8] =
    [Some(0), Some(16), Some(32), Some(64), Some(96), Some(128), Some(256), None];

/// What ends a thought whose budget is spent; without any budget there is no thought to end.
const CLOSING: &str = "\n\nMy time is up; I answer now.\n</think>\n\n";

#[derive(serde::Deserialize)]
struct Problem {
    kind: String,
    prompt: String,
    answer: String,
}

/// Of each budget: problems, and those that were answered right.
type Tally = [(u32, u32); BUDGETS.len()];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let svg = args.iter().position(|a| a == "--svg").and_then(|at| args.get(at + 1));
    let most = args.last().and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);

    let problems = include_str!("../models/pocket/heldout.jsonl");
    let model = Model::load("pocket").expect("pocket is a part of pensive");
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for line in problems.lines() {
        let problem: Problem = serde_json::from_str(line).expect("a problem");
        let tally = tallies.entry(problem.kind.clone()).or_default();
        if (tally[0].0 as usize) < most {
            for (budget, right) in answers(&model, &problem).into_iter().enumerate() {
                tally[budget].0 += 1;
                tally[budget].1 += u32::from(right);
            }
        }
    }
    let all = tallies.values().fold(Tally::default(), |all, tally| {
        std::array::from_fn(|i| (all[i].0 + tally[i].0, all[i].1 + tally[i].1))
    });
    tallies.insert("all".into(), all);
    println!("{}", table(&tallies));
    if let Some(path) = svg {
        std::fs::write(path, picture(&tallies)).expect("the picture can be written");
    }
}

/// Whether each budget leads to the right answer.
fn answers(model: &Model, problem: &Problem) -> [bool; BUDGETS.len()] {
    let options = Options::new().temperature(0.0).max_tokens(1500);
    let prompt = model.encode(problem.prompt.as_str(), &options).expect("a prompt");
    let whole = run(model, Prompt::Tokens(prompt.clone()), &options);
    let end = model.tokenizer().id("</think>");
    let thought = whole.tokens.iter().position(|&id| Some(id) == end).unwrap_or(whole.tokens.len());
    let closing = model.tokenizer().encode(CLOSING, pensive::text::Special::Parse).expect("text");
    BUDGETS.map(|budget| match budget {
        Some(0) => {
            let options = options.clone().think(Think::Off);
            is_right(problem, &run(model, problem.prompt.as_str().into(), &options).answer)
        }
        Some(budget) if budget < thought => {
            let tokens = [&prompt, &whole.tokens[..budget], &closing].concat();
            is_right(problem, &run(model, Prompt::Tokens(tokens), &options.clone().max_tokens(100)).answer)
        }
        _ => is_right(problem, &model.tokenizer().decode(&whole.tokens[thought..])),
    })
}

fn run(model: &Model, prompt: Prompt, options: &Options) -> Stats {
    model.generate(prompt, options).expect("a generation").finish().expect("its stats")
}

/// Whether the last box holds the answer; where no box is due, whether the text has it.
fn is_right(problem: &Problem, answer: &str) -> bool {
    match answer.rsplit_once("\\boxed{") {
        Some((_, rest)) => rest.split('}').next() == Some(problem.answer.as_str()),
        None => problem.kind == "other" && answer.contains(&problem.answer),
    }
}

fn share((of, right): (u32, u32)) -> f64 {
    100.0 * f64::from(right) / f64::from(of.max(1))
}

fn name(budget: Option<usize>) -> String {
    budget.map_or("no limit".into(), |n| n.to_string())
}

/// A row for each kind, a column for each budget, in percent.
fn table(tallies: &BTreeMap<String, Tally>) -> String {
    let mut text = String::from("| tokens of thought |");
    BUDGETS.iter().for_each(|&b| _ = write!(text, " {} |", name(b)));
    text += "\n|---|";
    text += &"---:|".repeat(BUDGETS.len());
    for (kind, tally) in tallies {
        _ = write!(text, "\n| {kind} |");
        tally.iter().for_each(|&t| _ = write!(text, " {:.1} |", share(t)));
    }
    text
}

/// The table as lines over the budgets.
fn picture(tallies: &BTreeMap<String, Tally>) -> String {
    const COLORS: [&str; 11] = [
        "#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#999933", "#882255", "#44aa99",
        "#dd7722", "#777777",
    ];
    let (left, top, width, height) = (60.0, 30.0, 520.0, 300.0);
    let x = |i: usize| left + width * i as f64 / (BUDGETS.len() - 1) as f64;
    let y = |percent: f64| top + height * (1.0 - percent / 100.0);
    let mut svg = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 760 400\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"760\" height=\"400\" fill=\"white\"/>\n",
    );
    for percent in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let y = y(percent);
        _ = writeln!(svg, "<path d=\"M{left} {y:.1}H{:.1}\" stroke=\"#ddd\"/>", left + width);
        _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{percent}%</text>",
            left - 8.0,
            y + 4.0
        );
    }
    for (i, &budget) in BUDGETS.iter().enumerate() {
        let text = name(budget);
        _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            x(i),
            top + height + 20.0
        );
    }
    _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">thinking budget, tokens</text>",
        left + width / 2.0,
        top + height + 45.0
    );
    for (i, (kind, tally)) in tallies.iter().enumerate() {
        let (color, thick) = if kind == "all" { ("black", 4) } else { (COLORS[i % COLORS.len()], 2) };
        let points: Vec<String> =
            tally.iter().enumerate().map(|(i, &t)| format!("{:.1},{:.1}", x(i), y(share(t)))).collect();
        let points = points.join(" ");
        _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{thick}\"/>"
        );
        let at = top + 10.0 + 24.0 * i as f64;
        _ = writeln!(svg, "<path d=\"M600 {at}h24\" stroke=\"{color}\" stroke-width=\"{thick}\"/>");
        _ = writeln!(svg, "<text x=\"632\" y=\"{}\">{kind}</text>", at + 4.0);
    }
    svg + "</svg>\n"
}
