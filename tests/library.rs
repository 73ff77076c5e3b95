//! The public face as a program uses it, on a real model.

mod common;

use std::sync::{Arc, Mutex};

use common::{SMOLLM2, model, real_model};
use pensive::{CancelHandle, Event, Finish, Generation, Message, Model, Options, Prompt, Role, Stats, Think};

fn greedy() -> Options {
    Options::new().temperature(0.0)
}

/// All events of a generation, and what it came to.
fn collect(generation: impl Iterator<Item = pensive::Result<Event>>) -> (Vec<Event>, Stats) {
    let mut events: Vec<Event> = generation.map(|e| e.unwrap()).collect();
    match events.pop() {
        Some(Event::Done(stats)) => (events, *stats),
        other => panic!("the last event is {other:?}"),
    }
}

fn answer_of(events: &[Event]) -> String {
    events
        .iter()
        .filter_map(|e| if let Event::Answer(text) = e { Some(text.as_str()) } else { None })
        .collect()
}

#[test]
fn a_model_is_shared_between_threads_and_a_generation_moves_between_them() {
    fn shared<T: Clone + Send + Sync>() {}
    fn sent<T: Send + 'static>() {}
    shared::<Model>();
    shared::<CancelHandle>();
    sent::<Generation>();
}

#[test]
fn a_generation_streams_what_its_stats_hold() {
    let Some(model) = model(SMOLLM2) else { return };
    let (events, stats) = collect(model.generate("Why is the sky blue?", &greedy().max_tokens(20)).unwrap());
    assert!(!stats.answer.is_empty());
    assert_eq!(answer_of(&events), stats.answer);
    assert_eq!(stats.answer, stats.answer.trim());
    assert_eq!((stats.tokens.len(), stats.finish), (20, Finish::Length));
    assert_eq!((stats.answer_tokens, stats.thought_tokens), (20, 0));
    assert!(
        matches!(events[0], Event::Prefill { done, total } if done == total && total == stats.prompt_tokens)
    );
}

#[test]
fn the_same_seed_gives_the_same_tokens_with_and_without_speculation() {
    let Some(model) = model(SMOLLM2) else { return };
    let text = "Repeat this list three times: red, green, blue, yellow, black, white.";
    for options in [greedy(), Options::new().temperature(0.8).seed(7)] {
        let options = options.max_tokens(80);
        let (_, plain) = collect(model.generate(text, &options.clone().speculate(false)).unwrap());
        let (_, drafted) = collect(model.generate(text, &options).unwrap());
        assert_eq!(plain.tokens, drafted.tokens);
        assert_eq!(plain.answer, drafted.answer);
    }
}

#[test]
fn an_omitted_seed_is_reported_and_repeats_the_run() {
    let Some(model) = model(SMOLLM2) else { return };
    let options = Options::new().temperature(1.0).max_tokens(12);
    let (_, first) = collect(model.generate("Say something.", &options).unwrap());
    let (_, again) = collect(model.generate("Say something.", &options.seed(first.seed)).unwrap());
    assert_eq!(first.tokens, again.tokens);
}

#[test]
fn a_hook_sees_the_tokens_so_far_and_edits_the_logits() {
    let Some(model) = model(SMOLLM2) else { return };
    let word = model.tokenizer().encode("yes", pensive::text::Special::Text).unwrap()[0];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let options = greedy().max_tokens(3).logits_hook(move |tokens, logits| {
        log.lock().unwrap().push(tokens.len());
        logits[word as usize] = 1e9;
    });
    let (_, stats) = collect(model.generate("Why?", &options).unwrap());
    assert_eq!(stats.tokens, [word; 3]);
    assert_eq!(*seen.lock().unwrap(), [0, 1, 2]);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let Some(model) = model(SMOLLM2) else { return };
    let text = "Why is the sky blue?";
    let (_, whole) = collect(model.generate(text, &greedy().max_tokens(30)).unwrap());
    let at = whole.answer.char_indices().nth(20).unwrap().0;
    let stop: String = whole.answer[at..].chars().take(9).collect(); // spans tokens
    let (events, cut) = collect(model.generate(text, &greedy().max_tokens(30).stop(&stop)).unwrap());
    assert_eq!(cut.finish, Finish::Stop);
    assert_eq!(cut.answer, whole.answer[..whole.answer.find(&stop).unwrap()].trim_end());
    assert_eq!(answer_of(&events), cut.answer);
}

#[test]
fn a_cancelled_generation_ends_with_what_it_has() {
    let Some(model) = model(SMOLLM2) else { return };
    let generation = model.generate("Count to one thousand.", &greedy()).unwrap();
    let handle = generation.cancel_handle();
    let mut answers = 0;
    let events = generation.inspect(|event| {
        if let Ok(Event::Answer(_)) = event {
            answers += 1;
            if answers == 3 {
                handle.cancel();
            }
        }
    });
    let (_, stats) = collect(events);
    assert_eq!(stats.finish, Finish::Interrupted);
    assert!(!stats.answer.is_empty());
}

#[test]
fn a_thought_is_told_from_the_answer() {
    let Some(model) = model(SMOLLM2) else { return };
    let mut script = model.tokenizer().encode("hm</think>ok", pensive::text::Special::Text).unwrap();
    script.push(model.tokenizer().ends()[0]);
    // the model is made to write a given trace
    let options = greedy().think(Think::On).max_tokens(100).logits_hook(move |tokens, logits| {
        logits[script[tokens.len()] as usize] = 1e9;
    });
    let (events, stats) = collect(model.generate("Think.", &options).unwrap());
    assert_eq!((stats.thought.as_str(), stats.answer.as_str()), ("hm", "ok"));
    assert!(stats.thought_tokens >= 1 && stats.answer_tokens >= 1);
    let done = events.iter().position(|e| matches!(e, Event::ThoughtDone { .. })).unwrap();
    let thought = events.iter().position(|e| matches!(e, Event::Thought(_))).unwrap();
    let answer = events.iter().position(|e| matches!(e, Event::Answer(_))).unwrap();
    assert!(thought < done && done < answer);
}

#[test]
fn without_thinking_the_prompt_holds_an_empty_thought() {
    let Some(model) = model(SMOLLM2) else { return };
    let tokens = model.encode("Hi", &Options::new().think(Think::Off)).unwrap();
    assert!(model.tokenizer().decode(&tokens).ends_with("<think>\n\n</think>\n\n"));
    let tokens = model.encode("Hi", &Options::new().think(Think::On)).unwrap();
    assert!(model.tokenizer().decode(&tokens).ends_with("<think>\n"));
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused_with_both_numbers() {
    let Some(model) = model(SMOLLM2) else { return };
    let prompt = Prompt::Tokens(vec![100; model.context()]);
    let error = model.generate(prompt, &greedy()).err().expect("there is no room").to_string();
    assert_eq!(error.matches("4608").count(), 2, "{error}");
}

#[test]
fn a_chat_keeps_the_cache_of_what_its_turns_share() {
    let Some(model) = model(SMOLLM2) else { return };
    let mut chat = model.chat();
    let options = greedy().max_tokens(12);
    let (_, first) = collect(chat.ask("My name is Ada. What is 2+2?", &options).unwrap());
    let (_, second) = collect(chat.ask("And 3+3?", &options).unwrap());
    assert_eq!(first.cached_tokens, 0);
    assert!(second.cached_tokens >= first.prompt_tokens, "{} cached", second.cached_tokens);
    let roles: Vec<Role> = chat.messages().iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::User, Role::Assistant]);

    // the cache changes no token: the same conversation from scratch answers alike
    let (_, fresh) = collect(model.generate(&chat.messages()[..3], &options).unwrap());
    assert_eq!(fresh.tokens, second.tokens);

    let (_, again) = collect(chat.regenerate(&options).unwrap());
    assert_eq!(again.tokens, second.tokens); // greedy
    assert_eq!(chat.undo().as_deref(), Some("And 3+3?"));
    assert_eq!(chat.messages().len(), 2);
}

#[test]
fn a_turn_that_is_dropped_early_leaves_what_it_said_in_the_history() {
    let Some(model) = model(SMOLLM2) else { return };
    let mut chat = model.chat();
    let mut said = String::new();
    for event in chat.ask("Count to one hundred.", &greedy()).unwrap() {
        if let Event::Answer(text) = event.unwrap() {
            said += &text;
            if said.len() > 20 {
                break;
            }
        }
    }
    assert_eq!(chat.messages().last().unwrap(), &Message::assistant(said));
}

#[test]
fn a_reply_is_regenerated_with_other_draws_and_kept_until_there_is_a_new_one() {
    let Some(model) = model(SMOLLM2) else { return };
    let mut chat = model.chat();
    let options = Options::new().temperature(1.0).seed(5).max_tokens(12);
    let (_, first) = collect(chat.ask("Tell me a joke.", &options).unwrap());
    drop(chat.regenerate(&options).unwrap()); // before anything came
    assert_eq!(chat.messages().last().unwrap().content, first.answer);
    let (_, second) = collect(chat.regenerate(&options).unwrap());
    assert_ne!(first.tokens, second.tokens);
    assert_eq!(chat.messages().len(), 2);
    assert_eq!(chat.messages()[1].content, second.answer);
}

#[test]
fn a_chat_that_outgrows_its_context_forgets_its_oldest_turns_and_keeps_the_system_message() {
    let Some(path) = real_model(SMOLLM2.1) else { return };
    let model = Model::builder(path.to_str().unwrap()).context(200).load().unwrap();
    let mut chat = model.chat();
    chat.set_system(Some("Be brief.".into()));
    let mut forgotten = 0;
    for i in 0..8 {
        let (events, stats) =
            collect(chat.ask(format!("Remember the number {i}."), &greedy().max_tokens(20)).unwrap());
        assert!(stats.prompt_tokens + 20 <= 200);
        for event in events {
            if let Event::Forgotten { turns } = event {
                forgotten += turns;
            }
        }
    }
    assert!(forgotten > 0);
    assert_eq!(chat.messages()[0].role, Role::System);
    assert_eq!(chat.messages().len(), 17);
}

#[test]
fn two_generations_of_one_model_take_turns() {
    let Some(path) = real_model(SMOLLM2.1) else { return };
    let model = Model::builder(path.to_str().unwrap()).context(512).sequences(2).load().unwrap();
    let run = |text: &'static str| {
        let model = model.clone();
        std::thread::spawn(move || collect(model.generate(text, &greedy().max_tokens(15)).unwrap()).1.tokens)
    };
    let (a, b) = (run("Why is the sky blue?"), run("What is a prime?"));
    let (a, b) = (a.join().unwrap(), b.join().unwrap());
    assert_eq!(a, run("Why is the sky blue?").join().unwrap());
    assert_eq!(b, run("What is a prime?").join().unwrap());
}

#[test]
fn a_short_generation_need_not_wait_for_the_end_of_a_long_one() {
    let Some(path) = real_model(SMOLLM2.1) else { return };
    let model = Model::builder(path.to_str().unwrap()).context(512).sequences(2).load().unwrap();
    let options = |tokens| greedy().max_tokens(tokens).speculate(false).loop_guard(false);
    let mut long = model.generate("Tell me a long story.", &options(400)).unwrap();
    assert!(matches!(long.next(), Some(Ok(Event::Prefill { .. }))));
    let long = std::thread::spawn(move || long.map(Result::unwrap).count());
    collect(model.generate("What is a prime?", &options(15)).unwrap());
    assert!(!long.is_finished(), "steps are taken in turn");
    long.join().unwrap();
}
