//! The model inside the binary: the whole way from a question to an answer, without files and without a network.
#![cfg(feature = "pocket")]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use pensive::{Chat, Event, Finish, Message, Model, Options, Stats, Think};

/// Loaded once; its own sampling is greedy.
static POCKET: LazyLock<Model> =
    LazyLock::new(|| Model::load("pocket").expect("pocket is a part of pensive"));

/// Problems of each kind that are tried here; `cargo bench --bench pocket` tries them all.
const TRIED: usize = 20;

fn ask(question: &str, options: &Options) -> Stats {
    POCKET.generate(question, options).unwrap().finish().unwrap()
}

fn boxed(answer: &str) -> Option<&str> {
    answer.rsplit_once("\\boxed{")?.1.split('}').next()
}

#[test]
fn the_questions_that_everybody_asks_are_thought_through_and_answered_right() {
    for (question, answer) in [
        ("How many r's are in strawberry?", "3"),
        ("Which is bigger, 9.9 or 9.11?", "9.9"),
        ("What is 47 * 86?", "4042"),
    ] {
        let stats = ask(question, &Options::new());
        assert_eq!(boxed(&stats.answer), Some(answer), "{question}\n{}\n{}", stats.thought, stats.answer);
        assert!(stats.thought_tokens > 10, "{question} was thought through: {}", stats.thought);
        assert_eq!(stats.finish, Finish::Stop);
    }
}

#[test]
fn held_out_problems_of_every_kind_are_mostly_answered_right() {
    #[derive(serde::Deserialize)]
    struct Problem {
        kind: String,
        prompt: String,
        answer: String,
    }
    let mut tallies: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for line in include_str!("../models/pocket/heldout.jsonl").lines() {
        let problem: Problem = serde_json::from_str(line).unwrap();
        let (tried, right) = tallies.entry(problem.kind.clone()).or_default();
        if *tried < TRIED && problem.kind != "other" {
            *tried += 1;
            let stats = ask(&problem.prompt, &Options::new().max_tokens(1500));
            *right += usize::from(boxed(&stats.answer) == Some(problem.answer.as_str()));
        }
    }
    tallies.remove("other");
    assert!(tallies.len() >= 7, "{tallies:?}");
    assert!(tallies.values().all(|(tried, right)| right * 10 >= tried * 8), "{tallies:?}");
}

#[test]
fn without_a_thought_there_is_an_answer_all_the_same() {
    let stats = ask("What is 3 + 4?", &Options::new().think(Think::Off));
    assert_eq!(stats.thought_tokens, 0);
    assert!(boxed(&stats.answer).is_some(), "{}", stats.answer);
}

#[test]
fn anything_else_is_answered_by_what_pocket_is() {
    let stats = ask("What is the capital of France?", &Options::new());
    assert!(stats.answer.contains("pocket"), "{}", stats.answer);
}

#[test]
fn a_second_question_of_a_chat_is_answered_by_itself() {
    let mut chat = POCKET.chat();
    let first = chat.ask("What is 12 + 30?", &Options::new()).unwrap().finish().unwrap();
    let second = chat.ask("Which is bigger, 2.5 or 2.45?", &Options::new()).unwrap().finish().unwrap();
    assert_eq!((boxed(&first.answer), boxed(&second.answer)), (Some("42"), Some("2.5")));
    assert!(second.cached_tokens > 0, "the first turn was still in the cache");
}

/// Generates until there is a thought, or before there is one, and takes the turn back.
fn discard(mut turn: pensive::api::Turn<'_>, thinks: bool) {
    while thinks && turn.generation().thought().is_empty() {
        turn.next().expect("it goes on").unwrap();
    }
    turn.discard();
}

#[test]
fn a_turn_that_is_discarded_takes_nothing_with_it_but_itself() {
    let mut chat = POCKET.chat();
    chat.ask("What is 12 + 30?", &Options::new()).unwrap().finish().unwrap();
    let before = chat.messages().to_vec();
    for thinks in [false, true] {
        discard(chat.ask("What is 968574 + 475869?", &Options::new()).unwrap(), thinks);
        assert_eq!(chat.messages(), before);
        discard(chat.regenerate(&Options::new()).unwrap(), thinks);
        assert_eq!(chat.messages(), before);
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens() {
    let options = Options::new().temperature(1.0).seed(5);
    let messages = || vec![Message::user("Sort 5, 3 and 9.")];
    let one = POCKET.generate(messages(), &options).unwrap().finish().unwrap();
    let two = POCKET.generate(messages(), &options).unwrap().finish().unwrap();
    assert_eq!(one.tokens, two.tokens);
}

#[test]
fn a_chat_s_keys_and_values_are_saved_and_taken_back_to_the_bit() {
    let options = Options::new().temperature(2.0).seed(9);
    let mut chat = POCKET.chat();
    chat.ask("What is 12 + 30?", &options).unwrap().finish().unwrap();
    let mut saved = Vec::new();
    chat.save_cache(&options, &mut saved).unwrap();
    let mut other = POCKET.chat();
    other.set_messages(chat.messages().to_vec());
    other.load_cache(&saved[..]).unwrap();
    assert_eq!(other.cached(&options), chat.cached(&options));
    let question = "Which is bigger, 2.5 or 2.45?";
    let (here, there) = (
        chat.ask(question, &options).unwrap().finish().unwrap(),
        other.ask(question, &options).unwrap().finish().unwrap(),
    );
    assert_eq!((here.tokens, here.cached_tokens), (there.tokens, there.cached_tokens));
    assert!(there.cached_tokens > 0);
    let at = saved.len() / 2;
    saved[at] ^= 1;
    assert!(other.load_cache(&saved[..]).is_err(), "a changed byte is found");
}

#[test]
fn what_a_chat_no_longer_holds_is_not_saved_with_its_keys_and_values() {
    let options = Options::new();
    let saved = |change: &dyn Fn(&mut Chat)| {
        let mut chat = POCKET.chat();
        chat.ask("What is 12 + 30?", &options).unwrap().finish().unwrap();
        chat.ask("What is 9876 + 1?", &options).unwrap().finish().unwrap();
        change(&mut chat);
        let mut saved = Vec::new();
        chat.save_cache(&options, &mut saved).unwrap();
        let tokens = tokens_of(&saved);
        assert_eq!(chat.cached(&options).0, tokens.len());
        POCKET.tokenizer().decode(&tokens)
    };
    assert!(saved(&|_| ()).contains("9876"), "what is there is saved");
    assert_eq!(saved(&|chat| chat.clear()), "");
    let undone = saved(&|chat| drop(chat.undo()));
    assert!(undone.contains("12 + 30") && !undone.contains("9876"), "{undone}");
    let other = saved(&|chat| chat.set_messages(vec![Message::user("Sort 5, 3 and 9.")]));
    assert!(!other.contains("12") && !other.contains("9876"), "{other}");
    let dropped = saved(&|chat| {
        chat.undo();
        discard(chat.ask("What is 9876 + 1?", &options).unwrap(), true);
    });
    assert!(dropped.contains("12 + 30") && !dropped.contains("9876"), "{dropped}");
}

/// The tokens of a saved sequence, which stand behind 71 bytes that say what it is of.
fn tokens_of(saved: &[u8]) -> Vec<u32> {
    let (count, rest) = saved[71..].split_first_chunk().unwrap();
    let tokens = rest[..4 * u64::from_le_bytes(*count) as usize].chunks_exact(4);
    tokens.map(|token| u32::from_le_bytes(token.try_into().unwrap())).collect()
}

#[test]
fn a_prompt_that_was_read_in_part_counts_as_much_as_was_read() {
    let model = Model::builder("pocket").chunk(16).load().unwrap();
    let mut generation = model.generate("What is 12 + 30? ".repeat(20), &Options::new()).unwrap();
    let Some(Ok(Event::Prefill { done: read, total })) = generation.next() else {
        panic!("it is read first")
    };
    generation.cancel_handle().cancel();
    let stats = generation.finish().unwrap();
    assert_eq!((stats.read_tokens, stats.prompt_tokens), (read, total));
    assert!(read < total && stats.prefill_tokens_per_second() * stats.seconds.prefill < total as f64);
}

#[test]
fn a_chat_that_forgets_has_room_for_some_turns_again() {
    let model = Model::builder("pocket").context(1024).load().unwrap();
    let mut chat = model.chat();
    let turn = [Message::user("What is 12 + 30?"), Message::assistant("It is 42.")];
    chat.set_messages(turn.iter().cycle().take(400).cloned().collect());
    let options = Options::new().think(Think::Off).max_tokens(8);
    let mut ask = || {
        let events: Vec<Event> =
            chat.ask("What is 3 + 4?", &options).unwrap().map(|event| event.unwrap()).collect();
        let forgotten =
            events.iter().find_map(|e| if let Event::Forgotten { turns } = e { Some(*turns) } else { None });
        match events.into_iter().next_back() {
            Some(Event::Done(stats)) => (forgotten, *stats),
            other => panic!("the last event is {other:?}"),
        }
    };
    // three quarters of the three quarters that a prompt may have
    let (forgotten, first) = ask();
    assert!(forgotten > Some(100) && (500..=576).contains(&first.prompt_tokens), "{forgotten:?}: {first:?}");
    let (forgotten, second) = ask();
    assert_eq!(forgotten, None);
    assert!(second.cached_tokens > second.prompt_tokens / 2, "{second:?}");
}

#[test]
fn before_a_long_message_a_chat_forgets_only_what_must_go() {
    let model = Model::builder("pocket").context(1024).load().unwrap();
    let turn = [Message::user("What is 12 + 30?"), Message::assistant("It is 42.")];
    let options = Options::new().think(Think::Off).max_tokens(8);
    let tokens = |turns: usize, message: &str| {
        let mut chat = model.chat();
        chat.set_messages(turn.iter().cycle().take(2 * turns).cloned().collect());
        chat.ask(message, &options).unwrap().finish().unwrap().prompt_tokens
    };
    // longer than the three quarters to which a chat is cut, shorter than a prompt may be
    let long = (1..).map(|n| "What is 12 + 30? ".repeat(n)).find(|long| tokens(0, long) > 580).unwrap();
    assert!((700..=768).contains(&tokens(100, &long)), "{} {}", tokens(0, &long), tokens(100, &long));
}
