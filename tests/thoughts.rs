//! Thoughts under control, on the model inside the binary: whatever the bounds, a thought ends and an answer follows.
#![cfg(feature = "pocket")]

mod common;

use std::sync::LazyLock;
use std::time::Duration;

use pensive::api::{Act, ThoughtEnd};
use pensive::text::Special;
use pensive::{Error, Event, Finish, Model, Options, Prompt, Stats, Think};

static POCKET: LazyLock<Model> =
    LazyLock::new(|| Model::load("pocket").expect("pocket is a part of pensive"));

/// Takes more than a hundred tokens of thought.
const LONG: &str = "What is 968574 + 475869?";

fn ask(question: impl Into<Prompt>, options: &Options) -> Stats {
    POCKET.generate(question, options).unwrap().finish().unwrap()
}

/// A model that writes this text over and over, whatever it is asked.
fn babbling(text: &str) -> Options {
    let tokens = POCKET.tokenizer().encode(text, Special::Text).unwrap();
    Options::new()
        .logits_hook(move |written, logits| logits[tokens[written.len() % tokens.len()] as usize] += 1000.0)
}

fn acts(stats: &Stats) -> Vec<Act> {
    stats.control.iter().map(|event| event.what).collect()
}

#[test]
fn a_thought_within_its_budget_is_not_touched() {
    let free = ask(LONG, &Options::new());
    let bound = ask(LONG, &Options::new().think_budget(free.thought_tokens * 2));
    assert_eq!(free.tokens, bound.tokens);
    assert_eq!((free.thought_end, bound.control), (Some(ThoughtEnd::Natural), vec![]));
}

#[test]
fn a_budget_is_kept_to_and_the_answer_is_the_model_s_own() {
    for budget in [1, 2, 7, 16, 40, 100] {
        let stats = ask(LONG, &Options::new().think_budget(budget));
        assert!(stats.thought_tokens <= budget, "{} of {budget}", stats.thought_tokens);
        assert!(stats.answer.contains("\\boxed{"), "{}", stats.answer);
        assert!(matches!(stats.thought_end, Some(ThoughtEnd::Budget | ThoughtEnd::Natural)));
        assert_eq!(stats.finish, Finish::Stop);
    }
}

#[test]
fn a_budget_of_nothing_is_no_thought() {
    let stats = ask(LONG, &Options::new().think_budget(0));
    assert_eq!((stats.thought.as_str(), stats.thought_end), ("", None));
    assert!(!stats.answer.is_empty());
}

#[test]
fn what_the_control_does_is_told_where_it_happens() {
    let mut events = POCKET.generate(LONG, &Options::new().think_budget(50)).unwrap();
    let act =
        events.find_map(|event| if let Event::Control(act) = event.unwrap() { Some(act) } else { None });
    let act = act.expect("the thought is longer than that");
    assert_eq!(act.what, Act::Budget);
    let done = events.last();
    let Some(Ok(Event::Done(stats))) = done else { panic!("{done:?}") };
    assert_eq!(stats.control, [act]);
    let closing = POCKET.tokenizer().decode(&stats.tokens[act.at..]);
    assert!(closing.starts_with("\n\nMy time is up; I answer now.\n</think>\n\n"), "{closing}");
}

#[test]
fn a_bound_on_tokens_leaves_a_quarter_of_them_for_the_answer() {
    for most in [24, 40, 100, 160] {
        let stats = ask(LONG, &Options::new().max_tokens(most));
        assert!(stats.tokens.len() <= most);
        assert!(
            !stats.answer.is_empty() && stats.thought_end == Some(ThoughtEnd::Length),
            "{most}: {stats:?}"
        );
    }
}

#[test]
fn bounds_too_small_for_an_answer_are_wrong_usage() {
    let error = POCKET.generate(LONG, &Options::new().max_tokens(8)).err().expect("eight are too few");
    assert!(matches!(error, Error::Room { room: 8, of_context: false, .. }), "{error}");
    assert!(POCKET.generate(LONG, &Options::new().max_tokens(8).think_budget(0)).is_ok());
}

#[test]
fn a_thought_ends_when_its_time_is_up() {
    let stats = ask(
        "hm",
        &babbling("on and on and ").think_time(Duration::from_micros(1)).loop_guard(false).max_tokens(900),
    );
    assert_eq!(acts(&stats), [Act::Time]);
}

#[test]
fn a_thought_that_ends_too_early_goes_on_after_wait() {
    let free = ask("What is 3 + 4?", &Options::new());
    let stats = ask("What is 3 + 4?", &Options::new().min_think(free.thought_tokens + 10));
    assert_eq!(stats.control[0].what, Act::Wait);
    assert!(
        stats.thought.contains("Wait,") && stats.thought_tokens >= free.thought_tokens + 10,
        "{}",
        stats.thought
    );
    assert!(!stats.answer.is_empty());
}

#[test]
fn a_text_that_ends_within_its_thought_is_answered_all_the_same() {
    let end = POCKET.tokenizer().ends()[0] as usize;
    let options = Options::new().logits_hook(move |written, logits| {
        if written.len() < 20 && written.len() >= 5 {
            logits[end] += 1000.0;
        }
    });
    let stats = ask(LONG, &options);
    assert_eq!((acts(&stats), stats.control[0].at), (vec![Act::EndOfText], 5));
    assert!(!stats.answer.is_empty(), "{stats:?}");
}

#[test]
fn a_thought_that_loops_is_told_so_then_closed_and_an_answer_that_loops_is_stopped() {
    let stats = ask("hm", &babbling("I think so, but I am not sure of it yet, am I? "));
    assert_eq!(acts(&stats), [Act::Repeating, Act::Guard]);
    let period = 48;
    assert!(stats.control[0].at <= 3 * period + 200, "{:?}", stats.control);
    assert!(stats.thought.contains("I am repeating myself"));
    assert_eq!((stats.finish, stats.thought_end), (Finish::Loop, Some(ThoughtEnd::Guard)));
}

#[test]
fn without_the_guard_a_loop_goes_on_to_its_bound() {
    let stats = ask("hm", &babbling("on and on and ").loop_guard(false).max_tokens(1000));
    assert_eq!((stats.finish, acts(&stats)), (Finish::Length, vec![Act::Length]));
}

/// After how many tokens a stretch of at least 12 of them has been written for the second time.
fn second_repetition(tokens: &[u32]) -> Option<usize> {
    let ends = |at: usize| (12..=at / 2).any(|n| tokens[at - n..at] == tokens[at - 2 * n..at - n]);
    (24..tokens.len()).find(|&at| ends(at))
}

/// SmolLM2 135M, greedy, comes to repeat two paragraphs for ever.
#[test]
fn a_real_model_that_loops_is_noticed_within_200_tokens_of_the_second_repetition() {
    let Some(model) = common::model(common::SMOLLM2) else { return };
    let options = Options::new().temperature(0.0).think(Think::On).max_tokens(1200);
    let run =
        |options: &Options| match model.generate("Prove that there are infinitely many primes.", options) {
            Ok(events) => match events.last() {
                Some(Ok(Event::Done(stats))) => *stats,
                other => panic!("the last event is {other:?}"),
            },
            Err(error) => panic!("{error}"),
        };
    let free = run(&options.clone().loop_guard(false));
    let second = second_repetition(&free.tokens).expect("it loops");
    let guarded = run(&options);
    let noticed = guarded.control.first().expect("the guard acts");
    println!("the second repetition ends after {second} tokens, noticed after {}", noticed.at);
    assert_eq!(noticed.what, Act::Repeating);
    assert!(noticed.at <= second + 200, "{} tokens, the second repetition after {second}", noticed.at);
    assert!(guarded.tokens.len() < free.tokens.len(), "it is ended before its bound");
    assert!(!guarded.answer.trim().is_empty());
}

#[test]
fn the_control_changes_no_token_between_speculation_on_and_off() {
    for budget in [10, 60] {
        let options = Options::new().temperature(1.0).seed(3).think_budget(budget).min_think(5);
        assert_eq!(ask(LONG, &options).tokens, ask(LONG, &options.clone().speculate(false)).tokens);
    }
}

#[test]
fn whatever_the_bounds_a_run_ends_with_an_answer() {
    let questions =
        [LONG, "How many e's are in timepieces?", "Sort 9, 3, 27, 81, 4 and 12.", "Tell me a story.", "hm"];
    for seed in 0..60 {
        let mut options = Options::new().temperature(1.0).seed(seed);
        options.thought.budget = (seed % 3 != 0).then_some(1 + (seed as usize * 37) % 200);
        options.thought.min = (seed % 5 == 0).then_some((seed as usize * 13) % 90);
        options.max_tokens = (seed % 2 == 0).then_some(20 + (seed as usize * 53) % 400);
        let stats = ask(questions[seed as usize % 5], &options);
        assert!(!stats.answer.trim().is_empty(), "{seed}: {stats:?}");
        assert!(!stats.answer.contains("think>"), "{seed}: {}", stats.answer);
        assert!(stats.tokens.len() <= options.max_tokens.unwrap_or(usize::MAX));
    }
}

/// Generates until some of the thought is there.
fn thinking(options: &Options, tokens: usize) -> pensive::Generation {
    let mut generation = POCKET.generate(LONG, options).unwrap();
    while generation.stats().thought_tokens < tokens {
        generation.next().expect("it goes on").unwrap();
    }
    generation
}

#[test]
fn a_user_who_wants_the_answer_gets_it() {
    let mut generation = thinking(&Options::new(), 30);
    assert!(generation.is_thinking());
    generation.answer_now();
    let stats = generation.finish().unwrap();
    assert_eq!((acts(&stats), stats.thought_end), (vec![Act::User], Some(ThoughtEnd::User)));
    assert!(stats.thought_tokens < 50 && !stats.answer.is_empty(), "{stats:?}");
}

#[test]
fn an_edited_thought_goes_on_from_the_first_change() {
    let options = Options::new().record(true);
    let mut generation = thinking(&options, 60);
    let first_line = generation.thought().lines().next().unwrap().to_owned();
    let edited = first_line.clone() + "\nf9e6d8c5b7a4+a1\n";
    assert!(generation.set_thought(&edited).unwrap());
    let stats = generation.finish().unwrap();
    assert!(stats.thought.starts_with(edited.trim_end()), "{}", stats.thought);
    assert_eq!(stats.control[0].what, Act::Edit);
    assert!(stats.control[0].at >= first_line.len(), "what stands before the change was kept");
    assert!(!stats.answer.is_empty());
    let receipt = pensive::api::Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap();
    for decode in [false, true] {
        let verdict = receipt.verify(&POCKET, decode, |_, _| ()).unwrap();
        assert!(verdict.is_identical(), "{verdict}");
    }
}

#[test]
fn the_answer_that_is_wanted_while_an_edit_is_written_comes_after_it() {
    let mut generation = thinking(&Options::new().record(true), 40);
    let edited = "I know this one by heart, and it needs no more than one line";
    assert!(generation.set_thought(edited).unwrap());
    generation.answer_now();
    let stats = generation.finish().unwrap();
    assert_eq!((acts(&stats), stats.thought_end), (vec![Act::Edit, Act::User], Some(ThoughtEnd::User)));
    assert!(stats.thought.starts_with(edited) && !stats.answer.is_empty(), "{stats:?}");
    let receipt = pensive::api::Receipt::new(&POCKET, &[stats], |_, _| ()).unwrap();
    let verdict = receipt.verify(&POCKET, true, |_, _| ()).unwrap();
    assert!(verdict.is_identical(), "{verdict}");
}

#[test]
fn an_edit_of_an_edit_that_is_still_written_replaces_it() {
    let mut generation = thinking(&Options::new(), 40);
    let first = "First it was this, and it was long. ".repeat(20);
    assert!(generation.set_thought(&first).unwrap());
    while generation.thought().is_empty() {
        generation.next().expect("it goes on").unwrap();
    }
    assert!(generation.thought().len() < first.len() / 2, "most of it is not written yet");
    assert!(generation.set_thought("Now this. ").unwrap());
    generation.answer_now();
    let stats = generation.finish().unwrap();
    assert!(stats.thought.starts_with("Now this.") && !stats.thought.contains("it was"), "{}", stats.thought);
}

#[test]
fn an_edit_that_leaves_no_room_for_an_answer_is_wrong_usage() {
    let mut generation = thinking(&Options::new().max_tokens(200), 30);
    let error = generation.set_thought(&"so long ".repeat(200)).unwrap_err();
    assert!(matches!(&error, Error::Usage(why) if why.contains("no room for an answer")), "{error}");
    let stats = generation.finish().unwrap();
    assert!(!stats.thought.contains("so long") && !stats.answer.is_empty(), "it goes on: {stats:?}");
}

#[test]
fn a_thought_that_was_not_changed_goes_on_as_if_nothing_was() {
    let untouched = ask(LONG, &Options::new());
    // behind a token that shows something, and behind a blank
    for blank in [false, true] {
        let mut generation = thinking(&Options::new().speculate(false), 40);
        while POCKET.tokenizer().decode(&generation.stats().tokens).ends_with(char::is_whitespace) != blank {
            generation.next().expect("it goes on").unwrap();
        }
        assert!(generation.is_thinking());
        let thought = generation.thought().to_owned();
        generation.set_thought(&thought).unwrap();
        let stats = generation.finish().unwrap();
        assert_eq!((&stats.tokens, stats.control), (&untouched.tokens, vec![]), "behind a blank: {blank}");
    }
}

#[test]
fn outside_of_a_thought_there_is_nothing_to_steer() {
    let mut generation = POCKET.generate(LONG, &Options::new().think_budget(0)).unwrap();
    generation.next();
    assert!(!generation.is_thinking() && !generation.set_thought("hm").unwrap());
    generation.answer_now();
    let stats = generation.finish().unwrap();
    assert_eq!(stats.control, []);
}
