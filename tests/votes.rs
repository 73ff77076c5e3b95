//! Several thoughts at once, on the model inside the binary.
#![cfg(feature = "pocket")]

use std::sync::LazyLock;

use pensive::api::{BOXED, Outcome, VoteEvent, VoteOptions};
use pensive::{CancelHandle, Error, Event, Finish, Message, Model, Options, Prompt};

static POCKET: LazyLock<Model> =
    LazyLock::new(|| Model::builder("pocket").sequences(8).load().expect("pocket is a part of pensive"));

const QUESTION: &str = "What is 68 + 75?";

fn warm() -> Options {
    Options::new().temperature(0.8).seed(11)
}

fn vote(options: &Options, votes: VoteOptions) -> Outcome {
    match POCKET.vote(QUESTION, options, votes).unwrap().last() {
        Some(Ok(VoteEvent::Done(outcome))) => *outcome,
        other => panic!("the last event is {other:?}"),
    }
}

#[test]
fn each_thought_of_a_vote_is_the_one_that_it_would_be_alone() {
    let outcome = vote(&warm(), VoteOptions::new(5));
    let mut chat = POCKET.chat();
    // the attempts of a chat are the sequences of its seed
    let question = QUESTION.to_owned() + BOXED;
    let first = chat.ask(question, &warm()).unwrap().last();
    let mut alone = vec![first];
    for _ in 1..5 {
        alone.push(chat.regenerate(&warm()).unwrap().last());
    }
    for (trace, alone) in outcome.traces.iter().zip(alone) {
        let Some(Ok(Event::Done(stats))) = alone else { panic!("{alone:?}") };
        assert_eq!(trace.tokens, stats.tokens);
    }
}

#[test]
fn the_majority_s_shortest_trace_is_shown_with_the_tally() {
    let outcome = vote(&warm(), VoteOptions::new(8));
    let tally = outcome.tally.as_ref().expect("pocket boxes its answers");
    assert_eq!(
        tally.iter().map(|count| count.count).sum::<usize>(),
        outcome.answers.iter().flatten().count()
    );
    assert!(tally.windows(2).all(|pair| pair[0].count >= pair[1].count));
    let key = |i: usize| outcome.answers[i].as_ref().map(|answer| answer.key.clone());
    let agreeing = (0..8).filter(|&i| key(i) == key(outcome.shown));
    let shortest = agreeing.map(|i| outcome.traces[i].tokens.len()).min();
    assert_eq!(Some(outcome.traces[outcome.shown].tokens.len()), shortest);
    assert_eq!(
        outcome.answers[outcome.shown].as_ref().map(|a| a.text.clone()),
        Some(tally[0].answer.clone())
    );
}

#[test]
fn a_vote_stops_when_enough_agree() {
    let all = vote(&warm(), VoteOptions::new(8));
    let some = vote(&warm(), VoteOptions { until_agree: Some(2), ..VoteOptions::new(8) });
    let tokens = |outcome: &Outcome| outcome.traces.iter().map(|t| t.tokens.len()).sum::<usize>();
    assert!(tokens(&some) <= tokens(&all));
    assert!(some.tally.expect("two agree")[0].count >= 2);
    assert_ne!(some.traces[some.shown].finish, Finish::Interrupted);
}

#[test]
fn without_a_box_the_question_is_asked_as_it_is() {
    let plain = vote(&warm(), VoteOptions { boxed: false, ..VoteOptions::new(2) });
    let boxed = vote(&warm(), VoteOptions::new(2));
    let added = POCKET.tokenizer().encode(BOXED, pensive::text::Special::Text).unwrap().len();
    assert!(plain.traces[0].prompt_tokens < boxed.traces[0].prompt_tokens);
    assert!(boxed.traces[0].prompt_tokens - plain.traces[0].prompt_tokens <= added);
}

#[test]
fn a_vote_needs_several_thoughts_room_for_them_and_chance() {
    for (options, count, says) in [
        (warm(), 1, "1 votes"),
        (warm(), 9, "the 8 sequences"),
        (warm().temperature(0.0), 4, "temperature 0"),
    ] {
        let error = POCKET.vote(QUESTION, &options, VoteOptions::new(count)).err().expect("it is refused");
        assert!(matches!(&error, Error::Usage(why) if why.contains(says)), "{error}");
    }
}

#[test]
fn a_cancelled_vote_ends_with_what_there_is() {
    let cancel = CancelHandle::new();
    let mut votes = POCKET.vote(QUESTION, &warm().cancel(&cancel), VoteOptions::new(4)).unwrap();
    for event in votes.by_ref() {
        if matches!(event, Ok(VoteEvent::Trace { event: Event::Thought(_), .. })) {
            cancel.cancel();
            break;
        }
    }
    let Some(Ok(VoteEvent::Done(outcome))) = votes.last() else { panic!("a vote ends") };
    assert!(outcome.traces.iter().all(|trace| trace.finish == Finish::Interrupted));
    assert_eq!(outcome.tally, None);
}

#[test]
fn earlier_turns_are_kept_and_the_last_question_alone_gains_the_box() {
    let messages = vec![Message::user("hi"), Message::assistant("Hello!"), Message::user(QUESTION)];
    let mut asked = messages.clone();
    asked[2].content.push_str(BOXED);
    let outcome = POCKET.vote(Prompt::Messages(messages), &warm(), VoteOptions::new(2)).unwrap().last();
    let Some(Ok(VoteEvent::Done(outcome))) = outcome else { panic!("a vote ends") };
    assert_eq!(outcome.traces[0].prompt_tokens, POCKET.encode(asked, &warm()).unwrap().len());
}
