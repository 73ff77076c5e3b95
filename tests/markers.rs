//! Thoughts of models that mark them in other ways than R1, on tiny random ones whose logits are scripted.

mod common;

use std::sync::LazyLock;

use common::tiny::{Written, chat_model, chat_model_beyond};
use pensive::api::{Act, ThoughtEnd};
use pensive::text::Special;
use pensive::{Error, Event, Finish, Message, Model, Options, Prompt, Stats, Think};

/// In the way of gpt-oss: messages on channels, earlier thoughts left out.
const CHANNELS: &str = "{{ '<|start|>system<|message|>effort ' + (reasoning_effort or 'medium') + '<|end|>' }}\
    {% for m in messages %}{% if m.role == 'assistant' %}\
    {{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% else %}\
    {{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|start|>assistant{% endif %}";

/// In the way of Magistral; the markers are known by the vocabulary alone.
const BRACKETS: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}\
    {% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}";

fn load(written: &Written) -> Model {
    Model::load(written.path()).expect("the tiny model loads")
}

static ON_CHANNELS: LazyLock<Model> = LazyLock::new(|| {
    let control = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>"];
    load(&chat_model(&control, CHANNELS))
});

static IN_BRACKETS: LazyLock<Model> =
    LazyLock::new(|| load(&chat_model(&["[INST]", "[/INST]", "[THINK]", "[/THINK]", "</s>"], BRACKETS)));

/// Makes the model write this text, from the first token that it draws itself; then it repeats the last one.
fn says(model: &Model, text: &str) -> Options {
    let script = model.tokenizer().encode(text, Special::Parse).unwrap();
    let drawn = std::sync::atomic::AtomicUsize::new(0);
    Options::new().speculate(false).loop_guard(false).max_tokens(400).logits_hook(move |_, logits| {
        let at = drawn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        logits[script[at.min(script.len() - 1)] as usize] += 1000.0;
    })
}

fn ask(model: &Model, question: impl Into<Prompt>, options: &Options) -> Stats {
    model.generate(question, options).unwrap().finish().unwrap()
}

fn parts(stats: &Stats) -> (&str, &str) {
    (&stats.thought, &stats.answer)
}

fn acts(stats: &Stats) -> Vec<Act> {
    stats.control.iter().map(|event| event.what).collect()
}

const TRACE: &str = "<|channel|>analysis<|message|>two and two.<|end|><|start|>assistant\
                     <|channel|>final<|message|>it is 4.<|return|>";

#[test]
fn on_channels_the_analysis_is_thought_and_the_final_channel_answer() {
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, TRACE));
    assert_eq!(parts(&stats), ("two and two.", "it is 4."));
    assert_eq!(
        (stats.finish, stats.thought_end, acts(&stats)),
        (Finish::Stop, Some(ThoughtEnd::Natural), vec![])
    );
    assert_eq!((stats.thought_tokens, stats.answer_tokens), (12, 8));
}

#[test]
fn a_model_may_answer_on_the_final_channel_at_once() {
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, "<|channel|>final<|message|>4.<|return|>"));
    assert_eq!((parts(&stats), stats.thought_end), (("", "4."), None));
}

#[test]
fn an_opened_thought_and_none_are_written_as_channels_into_the_prompt() {
    let prompt = |options: &Options| {
        let ids = ON_CHANNELS.encode("2?", options).unwrap();
        ON_CHANNELS.tokenizer().decode(&ids)
    };
    let ends = |think, end: &str| prompt(&Options::new().think(think)).ends_with(end);
    assert!(ends(Think::Auto, "<|end|><|start|>assistant"));
    assert!(ends(Think::On, "<|start|>assistant<|channel|>analysis<|message|>"));
    assert!(ends(Think::Off, "<|start|>assistant<|channel|>final<|message|>"));
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, "4.<|return|>").think(Think::Off));
    assert_eq!(parts(&stats), ("", "4."));
    let thinks = says(&ON_CHANNELS, "hm<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>");
    assert_eq!(parts(&ask(&ON_CHANNELS, "2?", &thinks.think(Think::On))), ("hm", "4"));
}

#[test]
fn a_spent_budget_ends_the_analysis_and_opens_the_final_channel() {
    let endless =
        says(&ON_CHANNELS, "<|channel|>analysis<|message|>on and on and on and on").think_budget(60);
    let stats = ask(&ON_CHANNELS, "2?", &endless);
    assert_eq!((acts(&stats), stats.thought_end), (vec![Act::Budget], Some(ThoughtEnd::Budget)));
    assert!(stats.thought_tokens <= 60 && stats.thought.ends_with("My time is up; I answer now."));
    let written = ON_CHANNELS.tokenizer().decode(&stats.tokens);
    assert!(written.contains("now.\n<|end|><|start|>assistant<|channel|>final<|message|>"), "{written}");
    assert!(!stats.answer.is_empty() && !stats.answer.contains("<|"), "{}", stats.answer);
}

#[test]
fn an_analysis_that_ends_too_early_goes_on_after_wait() {
    let trace = "<|channel|>analysis<|message|>a<|end|>b<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>";
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, trace).min_think(5));
    assert_eq!((parts(&stats), acts(&stats)), (("aWait,b", "4"), vec![Act::Wait]));
}

#[test]
fn a_text_that_ends_in_its_analysis_is_answered_all_the_same() {
    let trace = "<|channel|>analysis<|message|>hm<|return|>4<|return|>";
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, trace));
    assert_eq!((parts(&stats), acts(&stats)), (("hm", "4"), vec![Act::EndOfText]));
}

#[test]
fn commentary_is_thought_and_a_final_answer_is_not_left_again() {
    let trace = "<|channel|>commentary<|message|>so<|end|><|start|>assistant<|channel|>analysis<|message|> hm<|end|>\
                 <|start|>assistant<|channel|>final<|message|>4<|end|>";
    let stats = ask(&ON_CHANNELS, "2?", &says(&ON_CHANNELS, trace).max_tokens(200));
    assert_eq!(stats.thought, "so hm");
    assert!(stats.answer.starts_with('4') && !stats.answer.contains("<|"), "{}", stats.answer);
}

#[test]
fn a_template_s_variable_can_be_set() {
    let prompt = |options: &Options| {
        let ids = ON_CHANNELS.encode("2?", options).unwrap();
        ON_CHANNELS.tokenizer().decode(&ids)
    };
    assert!(prompt(&Options::new()).contains("effort medium"));
    assert!(prompt(&Options::new().template_variable("reasoning_effort", "high")).contains("effort high"));
}

#[test]
fn a_conversation_goes_on_without_its_earlier_thoughts() {
    let mut chat = ON_CHANNELS.chat();
    chat.ask("2?", &says(&ON_CHANNELS, TRACE)).unwrap().for_each(|event| drop(event.unwrap()));
    assert_eq!(chat.messages()[1].thought.as_deref(), Some("two and two."));
    let messages = [chat.messages(), &[Message::user("3?")]].concat();
    let ids = ON_CHANNELS.encode(messages, &Options::new()).unwrap();
    let prompt = ON_CHANNELS.tokenizer().decode(&ids);
    assert!(prompt.contains("<|start|>assistant<|channel|>final<|message|>it is 4.<|end|>"), "{prompt}");
    assert!(!prompt.contains("analysis"), "{prompt}");
}

#[test]
fn brackets_that_are_tokens_mark_thoughts() {
    assert_eq!(IN_BRACKETS.markers().start, "[THINK]");
    let stats = ask(&IN_BRACKETS, "2?", &says(&IN_BRACKETS, "[THINK]hm[/THINK]4</s>"));
    assert_eq!(parts(&stats), ("hm", "4"));
    let stats = ask(&IN_BRACKETS, "2?", &says(&IN_BRACKETS, "hm[/THINK]4</s>").think(Think::On));
    assert_eq!(parts(&stats), ("hm", "4"));
    let stats = ask(&IN_BRACKETS, "2?", &says(&IN_BRACKETS, "[THINK]on and on").think_budget(9));
    let written = IN_BRACKETS.tokenizer().decode(&stats.tokens);
    assert!(written.starts_with("[THINK]on and o\n[/THINK]") && !stats.answer.is_empty(), "{written}");
    let off = IN_BRACKETS.encode("2?", &Options::new().think(Think::Off)).unwrap();
    assert!(IN_BRACKETS.tokenizer().decode(&off).ends_with("[/INST][THINK][/THINK]"));
}

#[test]
fn min_think_needs_an_end_that_begins_with_a_token() {
    let model = load(&chat_model(&["<|user|>", "<|end|>"], "{{ messages[0].content }}<think>"));
    assert_eq!(model.markers().end, "</think>");
    let error = model.generate("2?", &Options::new().min_think(5)).err().expect("there is no such token");
    assert!(matches!(&error, Error::Unsupported(why) if why.contains("`</think>` is no token")), "{error}");
}

const IN_VOCABULARY: [&str; 5] = ["[INST]", "[/INST]", "[THINK]", "[/THINK]", "</s>"];

#[test]
fn an_end_or_a_marker_that_the_embedding_has_no_row_for_is_refused() {
    let without_end = ["[INST]", "[/INST]", "[THINK]", "<other>", "</s>"];
    for (control, beyond) in [(IN_VOCABULARY, "<|eot_id|>"), (without_end, "[/THINK]")] {
        let written = chat_model_beyond(&control, BRACKETS, &["<extra>", beyond]);
        let error = Model::load(written.path()).map(drop).unwrap_err().to_string();
        let expected = ["model.gguf", "token 76", beyond, "75 rows"];
        assert!(expected.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn other_tokens_beyond_the_embedding_do_no_harm() {
    let model = load(&chat_model_beyond(&IN_VOCABULARY, BRACKETS, &["<extra>"]));
    // blanks, until something must be seen
    let stats = ask(&model, "2?", &says(&model, "[THINK]two.[/THINK] ").max_tokens(40));
    assert!(!stats.answer.trim().is_empty(), "{stats:?}");
    assert!(model.generate(Prompt::Tokens(vec![75]), &Options::new()).unwrap().any(|event| event.is_err()));
}

#[test]
fn a_bound_too_small_for_a_thought_leaves_an_answer() {
    let stats = ask(&IN_BRACKETS, "2?", &says(&IN_BRACKETS, "[THINK]hm").max_tokens(4));
    assert!(stats.thought.is_empty() && !stats.answer.is_empty(), "{stats:?}");
}

#[test]
fn a_thought_that_nothing_opened_keeps_what_was_held_back_and_takes_no_time_of_the_prompt() {
    let options = says(&IN_BRACKETS, "two h[/THINK]4</s>").stop("hx");
    let events: Vec<Event> =
        IN_BRACKETS.generate("2?", &options).unwrap().map(|event| event.unwrap()).collect();
    let Some(Event::Done(stats)) = events.last() else { panic!("it ends") };
    assert_eq!(parts(stats), ("two h", "4"));
    let shown =
        events.iter().filter_map(|e| if let Event::Answer(text) = e { Some(text.as_str()) } else { None });
    assert_eq!(shown.collect::<String>(), "two h4");
    let took = events
        .iter()
        .find_map(|e| if let Event::ThoughtDone { seconds, .. } = e { Some(*seconds) } else { None });
    assert!(took.expect("there was a thought") <= stats.seconds.decode, "{took:?}");
}

#[test]
fn an_edit_keeps_the_marker_that_the_model_wrote() {
    for (says_so, written, thought) in [
        ("[THINK]hi[/THINK]4</s>", 1, "sohi"),
        ("[THINK]hi[/THINK]4</s>", 3, "so"),
        ("[THINK]h[THINK]i[/THINK]4</s>", 4, "so"),
    ] {
        let mut generation = IN_BRACKETS.generate("2?", &says(&IN_BRACKETS, says_so)).unwrap();
        while generation.stats().tokens.len() < written {
            generation.next().expect("it goes on").unwrap();
        }
        assert!(generation.set_thought("so").unwrap());
        let stats = generation.finish().unwrap();
        assert_eq!(parts(&stats), (thought, "4"), "{says_so} after {written}");
    }
}
