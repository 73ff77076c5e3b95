//! What the control of thoughts is worth, measured on the spot.
//!
//! `cargo bench --bench thoughts -- endings MODEL [RUNS]`: runs with random bounds and seeds; how many end with an answer,
//! how many of those with room by themselves.
//! `… -- cuts [N]`: pocket on N held-out problems of each kind (20) at budgets that cut a half of its thoughts, and other
//! shares: by the budget's soft and hard end, by the bare end marker at the same token, and by one that has a line of its
//! own, as pocket was trained to have it.
//! `… -- votes [N]`: pocket at temperature 1: one sample, and the majority of eight.

use std::collections::BTreeMap;

use pensive::api::{Outcome, VoteEvent, VoteOptions};
use pensive::text::Special;
use pensive::{Finish, Model, Options, Prompt, Stats, Think};

#[derive(serde::Deserialize)]
struct Problem {
    kind: String,
    prompt: String,
    answer: String,
}

/// The first `most` held-out problems of each kind.
fn problems(most: usize) -> Vec<Problem> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let all = include_str!("../models/pocket/heldout.jsonl").lines();
    let all = all.map(|line| serde_json::from_str::<Problem>(line).expect("a problem"));
    all.filter(|problem| {
        let count = seen.entry(problem.kind.clone()).or_default();
        *count += 1;
        *count <= most && problem.kind != "other"
    })
    .collect()
}

fn boxed(answer: &str) -> Option<&str> {
    answer.rsplit_once("\\boxed{")?.1.split('}').next()
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |at: usize, default| words.get(at).and_then(|n| n.parse().ok()).unwrap_or(default);
    match words.first().map(String::as_str) {
        Some("endings") if words.len() > 1 => endings(&words[1], number(2, 50)),
        Some("cuts") => cuts(number(1, 20)),
        Some("votes") => votes(number(1, 20)),
        _ => eprintln!("usage: thoughts endings MODEL [RUNS] | cuts [N] | votes [N]"),
    }
}

/// Numbers that look random, the same in every run.
fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) % below
}

fn endings(name: &str, runs: usize) {
    let model = Model::builder(name).context(1536).load().expect("the model loads");
    let questions = problems(20);
    // a least length needs an end marker that is a token
    let marker = model.tokenizer().encode("</think>", Special::Parse).expect("text").len() == 1;
    let mut state = 0x2545_f491_4f6c_dd1d;
    let (mut answered, mut within, mut clean, mut roomy, mut by_themselves) = (0, 0, 0, 0, 0);
    for run in 0..runs {
        let question = &questions[random(&mut state, questions.len() as u64) as usize].prompt;
        let budget = random(&mut state, 300) as usize;
        let most = 24 + random(&mut state, 600) as usize;
        let mut options =
            Options::new().think(Think::On).seed(run as u64).temperature(0.2 + run as f32 % 9.0 / 10.0);
        options.thought.budget = (random(&mut state, 4) > 0).then_some(budget);
        options.thought.min = (random(&mut state, 4) == 0 && marker).then_some(budget / 2);
        options.max_tokens = Some(most);
        let stats = model.generate(question.as_str(), &options).expect("a generation").finish().unwrap();
        answered += usize::from(!stats.answer.trim().is_empty());
        within += usize::from(
            stats.tokens.len() <= most && stats.thought_tokens <= options.thought.budget.unwrap_or(most),
        );
        clean += usize::from(!stats.answer.contains("<think>") && !stats.answer.contains("</think>"));
        let has_room = most - (stats.tokens.len() - stats.answer_tokens) >= 256;
        roomy += usize::from(has_room);
        by_themselves += usize::from(has_room && stats.finish == Finish::Stop);
    }
    println!(
        "{name}: {runs} runs: {answered} with an answer, {within} within their bounds, {clean} without markers in it; of \
         {roomy} with room for 256 tokens of answer {by_themselves} ended by themselves"
    );
}

fn cuts(most: usize) {
    let model = Model::load("pocket").expect("pocket is a part of pensive");
    let ends = ["</think>\n\n", "\n</think>\n\n"];
    let ends = ends.map(|end| model.tokenizer().encode(end, Special::Parse).expect("text"));
    let options = Options::new().temperature(0.0);
    let ask = |problem: &Problem, options: &Options| {
        model.generate(problem.prompt.as_str(), options).expect("a generation").finish().unwrap()
    };
    let mut all: Vec<(Problem, Stats)> = problems(most)
        .into_iter()
        .map(|problem| (ask(&problem, &options), problem))
        .map(|(s, p)| (p, s))
        .collect();
    all.sort_by_key(|(_, whole)| whole.thought_tokens);
    println!(
        "| share of thoughts cut | budget | whole thoughts | soft and hard end | bare end marker | on its own line |\n\
         |---|---|---|---|---|---|"
    );
    for percent in [75, 50, 25] {
        let budget = all[all.len() * (100 - percent) / 100].1.thought_tokens;
        let (mut whole_right, mut bound_right, mut marker_right) = (0, 0, [0; 2]);
        for (problem, whole) in &all {
            let right = |answer: &str| usize::from(boxed(answer) == Some(problem.answer.as_str()));
            whole_right += right(&whole.answer);
            bound_right += right(&ask(problem, &options.clone().think_budget(budget)).answer);
            for (right_count, end) in marker_right.iter_mut().zip(&ends) {
                *right_count += if whole.thought_tokens <= budget {
                    right(&whole.answer)
                } else {
                    // what stands before the marker within the budget; two line ends follow the marker
                    let kept = budget - (end.len() - ends[0].len());
                    let prompt = model.encode(problem.prompt.as_str(), &options).expect("a prompt");
                    let prompt = Prompt::Tokens([&prompt, &whole.tokens[..kept], end].concat());
                    let options = options.clone().max_tokens(100);
                    right(&model.generate(prompt, &options).expect("one").finish().unwrap().answer)
                };
            }
        }
        let count = all.len();
        println!(
            "| {percent}% | {budget} | {whole_right} of {count} | {bound_right} | {} | {} |",
            marker_right[0], marker_right[1]
        );
    }
}

fn votes(most: usize) {
    let model = Model::builder("pocket").sequences(8).load().expect("pocket is a part of pensive");
    let (mut all, mut samples, mut majority) = (0, 0, 0);
    for (i, problem) in problems(most).iter().enumerate() {
        let options = Options::new().temperature(1.0).seed(i as u64);
        let how = VoteOptions { boxed: false, ..VoteOptions::new(8) };
        let events = model.vote(problem.prompt.as_str(), &options, how).expect("a vote");
        let Some(Ok(VoteEvent::Done(outcome))) = events.last() else { panic!("a vote ends") };
        let Outcome { traces, shown, .. } = *outcome;
        let right = |stats: &Stats| usize::from(boxed(&stats.answer) == Some(problem.answer.as_str()));
        all += 1;
        samples += traces.iter().map(right).sum::<usize>();
        majority += right(&traces[shown]);
    }
    let share = |count: f64| 100.0 * count / f64::from(all);
    println!(
        "pocket at temperature 1, {all} problems: one sample {:.1}%, majority of eight {:.1}%",
        share(samples as f64 / 8.0),
        share(majority as f64)
    );
}
