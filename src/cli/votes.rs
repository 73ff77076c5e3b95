//! `pensive run --votes K`: several thoughts at once, a line for each while they go on, and what most came to.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::args::VoteArgs;
use super::output::{Report, Screen};
use super::render::{Console, error_line, harmless};
use crate::api::{Count, Outcome, VoteEvent, VoteOptions, Votes};
use crate::reasoning::answers::final_answer;
use crate::{Error, Event, Finish, Model, Result, Sampling, Stats};

/// How often the table changes.
const EVERY: Duration = Duration::from_millis(100);

/// What `--votes` and its like ask for.
///
/// # Errors
/// More shall agree than think.
pub(super) fn options(args: &VoteArgs) -> Result<Option<VoteOptions>> {
    let Some(count) = args.votes else { return Ok(None) };
    if let Some(enough) = args.until_agree.filter(|&enough| enough > count) {
        let what = format!("--until-agree {enough}: of --votes {count} no more than {count} can agree");
        return Err(Error::Usage(what));
    }
    Ok(Some(VoteOptions { count, until_agree: args.until_agree, boxed: !args.no_boxed }))
}

/// Refuses a vote of equal thoughts.
///
/// # Errors
/// The temperature is 0.
pub(super) fn check(how: VoteOptions, sampling: Sampling) -> Result<()> {
    if sampling.temperature > 0.0 {
        return Ok(());
    }
    let votes = how.count;
    let what =
        format!("--votes {votes} at temperature 0: all thoughts would be the same; add --temperature 0.6");
    Err(Error::Usage(what))
}

/// Runs a vote to its end, with a table on a terminal.
pub(super) fn run(mut votes: Votes, console: &Console) -> Result<Outcome> {
    let mut table = Table::new(votes.stats().count(), console);
    while let Some(event) = votes.next() {
        match event? {
            VoteEvent::Done(outcome) => return Ok(*outcome),
            VoteEvent::Trace { sequence, event } => table.update(sequence, &event, &votes),
        }
    }
    Err(Error::Unsupported("the vote ended without its last event".into()))
}

/// Shows the trace that was chosen, then the tally.
pub(super) fn show(
    outcome: &Outcome,
    is_stopped: bool,
    screen: &mut Screen,
    console: &Console,
) -> Result<()> {
    let stats = &outcome.traces[outcome.shown];
    screen.show(&Event::Thought(stats.thought.clone()))?;
    screen.show(&Event::Answer(stats.answer.clone()))?;
    screen.finish()?;
    if is_stopped {
        let whole = outcome.traces.iter().filter(|stats| stats.finish != Finish::Interrupted).count();
        console.note(format!("stopped: {whole} of {} thoughts were finished", outcome.traces.len()));
    }
    console.note(tally_line(outcome));
    Ok(())
}

/// "6 of 8: 42; 2 of 8: 41".
fn tally_line(outcome: &Outcome) -> String {
    let all = outcome.traces.len();
    let Some(counts) = &outcome.tally else {
        return format!("no common answer of {all}; this is the shortest");
    };
    let unmarked = outcome.answers.iter().flatten().all(|answer| !answer.is_marked);
    let line = counts.iter().map(|Count { answer, count }| format!("{count} of {all}: {}", harmless(answer)));
    let line = line.collect::<Vec<_>>().join("; ");
    if unmarked { format!("{line} (the last number of each: none was marked as the answer)") } else { line }
}

/// A line for each trace: tokens, what it does, its answer.
struct Table {
    lines: Vec<ProgressBar>,
    drawn: Instant,
    _all: MultiProgress,
}

impl Table {
    fn new(count: usize, console: &Console) -> Table {
        let visible = console.stderr_terminal && !console.quiet;
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let all = MultiProgress::with_draw_target(target);
        let style = ProgressStyle::with_template("{prefix:>3} {msg}").expect("the template is well-formed");
        let line = |i: usize| {
            let line = all.add(ProgressBar::new_spinner()).with_prefix(i.to_string());
            line.set_style(style.clone());
            line
        };
        Table { lines: (0..count).map(line).collect(), drawn: Instant::now(), _all: all }
    }

    fn update(&mut self, sequence: usize, event: &Event, votes: &Votes) {
        if let Event::Done(stats) = event {
            self.lines[sequence].set_message(state(stats, true));
        } else if self.drawn.elapsed() >= EVERY {
            self.drawn = Instant::now();
            for (line, stats) in self.lines.iter().zip(votes.stats()) {
                let is_over = stats.finish != Finish::Interrupted;
                line.set_message(state(&stats, is_over));
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.lines.iter().for_each(ProgressBar::finish_and_clear);
    }
}

fn state(stats: &Stats, is_over: bool) -> String {
    let tokens = stats.tokens.len();
    if !is_over {
        let doing = if stats.answer.is_empty() { "thinking" } else { "answering" };
        return format!("{tokens:>6} tokens  {doing}");
    }
    match final_answer(&stats.answer) {
        _ if stats.finish == Finish::Interrupted => format!("{tokens:>6} tokens  stopped"),
        Some(answer) => format!("{tokens:>6} tokens  {}", harmless(&answer.text)),
        None => format!("{tokens:>6} tokens  no answer that can be compared"),
    }
}

/// The object of `--json`: that of the trace that is shown, and the votes.
#[derive(Serialize)]
pub(super) struct VoteReport<'a> {
    #[serde(flatten)]
    shown: Report<'a>,
    tally: Option<&'a [Count]>,
    votes: Vec<Vote<'a>>,
    prompt_suffix: Option<&'static str>,
    wall_seconds: f64,
}

#[derive(Serialize)]
struct Vote<'a> {
    sequence: usize,
    answer: Option<&'a str>,
    /// Whether it was marked as the answer; else it is the last number.
    marked: Option<bool>,
    thought_tokens: usize,
    tokens: usize,
    finish: Finish,
}

impl<'a> VoteReport<'a> {
    pub(super) fn new(outcome: &'a Outcome, model: &Model, options: VoteOptions) -> Self {
        let vote = |(sequence, stats): (usize, &'a Stats)| Vote {
            sequence,
            answer: outcome.answers[sequence].as_ref().map(|answer| answer.text.as_str()),
            marked: outcome.answers[sequence].as_ref().map(|answer| answer.is_marked),
            thought_tokens: stats.thought_tokens,
            tokens: stats.tokens.len(),
            finish: stats.finish,
        };
        VoteReport {
            shown: Report::new(&outcome.traces[outcome.shown], model),
            tally: outcome.tally.as_deref(),
            votes: outcome.traces.iter().enumerate().map(vote).collect(),
            prompt_suffix: options.boxed.then_some(crate::api::BOXED),
            wall_seconds: outcome.seconds,
        }
    }
}

/// The line of `--stats`: all traces together.
pub(super) fn speed(outcome: &Outcome) {
    let tokens: usize = outcome.traces.iter().map(|stats| stats.tokens.len()).sum();
    error_line(format!(
        "{} thoughts: {tokens} tokens in {:.1} s, {:.1} tokens/s; seed {}",
        outcome.traces.len(),
        outcome.seconds,
        tokens as f64 / outcome.seconds.max(1e-9),
        outcome.traces[0].seed
    ));
}
