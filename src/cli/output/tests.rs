use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use super::*;

/// A writer whose text can be read while it is written to.
#[derive(Clone, Default)]
struct Page(Rc<RefCell<Vec<u8>>>);

impl Page {
    fn text(&self) -> String {
        String::from_utf8(self.0.borrow().clone()).unwrap()
    }
}

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What stdout and stderr hold after a thought and an answer in these pieces.
fn written(thought: Thought, raw: bool, console: Console, events: &[Event]) -> (String, String) {
    let (stdout, stderr) = (Page::default(), Page::default());
    let mut screen = Screen::new(Box::new(stdout.clone()), Box::new(stderr.clone()), thought, raw, &console);
    for event in events {
        screen.show(event).unwrap();
    }
    screen.finish().unwrap();
    (stdout.text(), stderr.text())
}

fn trace() -> Vec<Event> {
    let thought = |text: &str| Event::Thought(text.into());
    let answer = |text: &str| Event::Answer(text.into());
    let done = Event::ThoughtDone { tokens: 2, seconds: 0.1 };
    vec![
        thought("\n"),
        thought("let me "),
        thought("see\n"),
        done,
        answer("\n\n"),
        answer("It is"),
        answer(" 4.\n \n"),
    ]
}

const TERMINAL: Console = Console {
    stdin_terminal: true,
    stdout_terminal: true,
    stderr_terminal: true,
    color: true,
    quiet: false,
    verbose: false,
};

fn pipe() -> Console {
    Console::default()
}

#[test]
fn the_answer_goes_to_stdout_and_ends_in_one_newline_the_thought_to_stderr() {
    let (stdout, stderr) = written(Thought::Show, false, pipe(), &trace());
    assert_eq!(stdout, "It is 4.\n");
    assert_eq!(stderr, "let me see\n");
}

#[test]
fn a_hidden_thought_is_nowhere() {
    let (stdout, stderr) = written(Thought::Hide, false, pipe(), &trace());
    assert_eq!((stdout.as_str(), stderr.as_str()), ("It is 4.\n", ""));
}

#[test]
fn a_thought_on_stdout_comes_before_the_answer_and_a_blank_line() {
    let (stdout, stderr) = written(Thought::Stdout, false, pipe(), &trace());
    assert_eq!((stdout.as_str(), stderr.as_str()), ("let me see\n\nIt is 4.\n", ""));
}

#[test]
fn a_thought_on_stdout_without_an_answer_ends_in_one_newline() {
    for end in [vec![], vec![Event::Answer("\n".into())]] {
        let events = [vec![Event::Thought("hm\n".into())], end].concat();
        assert_eq!(written(Thought::Stdout, false, pipe(), &events).0, "hm\n");
    }
}

#[test]
fn on_a_terminal_the_thought_is_dimmed_and_the_answer_is_not() {
    let (stdout, stderr) = written(Thought::Show, false, TERMINAL, &trace());
    assert_eq!(stdout, "It is 4.\n");
    assert_eq!(stderr, "\x1b[2mlet me\x1b[0m\x1b[2m see\x1b[0m\n\n");
}

#[test]
fn without_colour_nothing_is_dimmed() {
    let console = Console { color: false, ..TERMINAL };
    let (_, stderr) = written(Thought::Show, false, console, &trace());
    assert_eq!(stderr, "let me see\n\n");
}

#[test]
fn a_piped_answer_keeps_control_characters_and_a_terminal_sees_none() {
    let events = [Event::Answer("a\x1b[31mb".into())];
    assert_eq!(written(Thought::Show, false, pipe(), &events).0, "a\x1b[31mb\n");
    assert_eq!(written(Thought::Show, false, TERMINAL, &events).0, "a\u{FFFD}[31mb\n");
}

#[test]
fn a_raw_answer_keeps_its_blanks_but_ends_in_one_newline() {
    let events = [Event::Answer("  a\n".into()), Event::Answer("\n b \n\n".into())];
    assert_eq!(written(Thought::Show, true, pipe(), &events).0, "  a\n\n b \n");
}

#[test]
fn an_empty_answer_is_an_empty_line() {
    assert_eq!(written(Thought::Show, false, pipe(), &[]).0, "\n");
}

#[test]
fn a_closed_stdout_stops_and_a_closed_stderr_does_not() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut screen = Screen::new(Box::new(Closed), Box::new(Closed), Thought::Show, false, &pipe());
    assert!(screen.show(&Event::Thought("hm".into())).is_ok());
    let error = screen.show(&Event::Answer("4".into())).unwrap_err();
    assert!(super::super::render::is_closed_pipe(&error));
}

pub(in crate::cli) fn stats() -> Stats {
    Stats {
        seed: 7,
        sampling: Sampling { temperature: 0.6, ..Sampling::default() },
        context: 4096,
        prompt_tokens: 10,
        cached_tokens: 0,
        read_tokens: 10,
        thought: "hm".into(),
        answer: "4".into(),
        tokens: vec![1, 2, 3, 4],
        thought_tokens: 1,
        answer_tokens: 1,
        finish: Finish::Stop,
        thought_end: Some(ThoughtEnd::Natural),
        control: Vec::new(),
        record: None,
        seconds: Seconds { load: 0.5, prefill: 2.0, decode: 0.25 },
    }
}

#[test]
fn the_json_object_has_exactly_the_promised_fields_in_order() {
    let stats = stats();
    let report = Report::of(&stats, "m".into(), "qwen2".into(), "cpu".into());
    let text = serde_json::to_string(&report).unwrap();
    let value: serde_json::Map<_, _> = serde_json::from_str(&text).unwrap();
    let fields = "version model architecture device seed sampling context prompt_tokens thought answer tokens \
                  thought_tokens answer_tokens finish thought_end control seconds tokens_per_second";
    assert_eq!(value.keys().collect::<Vec<_>>(), fields.split_whitespace().collect::<Vec<_>>());
    assert_eq!(value["tokens"], serde_json::json!([1, 2, 3, 4]));
    assert_eq!(value["finish"], "stop");
    assert_eq!(value["thought_end"], "natural");
    assert_eq!(value["seconds"], serde_json::json!({"load": 0.5, "prefill": 2.0, "decode": 0.25}));
    assert_eq!(value["tokens_per_second"], serde_json::json!({"prefill": 5.0, "decode": 12.0}));
    assert!(text.contains(r#""temperature":0.6,"#), "as it was given, not as a widened float: {text}");
}

#[test]
fn each_streamed_event_names_itself_and_the_last_is_the_object_alone() {
    let line = |event: &Event| StreamedEvent::new(event).map(|e| serde_json::to_string(&e).unwrap());
    let expected = [
        (Event::Prefill { done: 1, total: 2 }, r#"{"event":"prefill","done":1,"total":2}"#),
        (Event::Thought("a\n".into()), r#"{"event":"thought","text":"a\n"}"#),
        (
            Event::ThoughtDone { tokens: 3, seconds: 0.5 },
            r#"{"event":"thought_done","tokens":3,"seconds":0.5}"#,
        ),
        (Event::Answer("b".into()), r#"{"event":"answer","text":"b"}"#),
        (Event::Forgotten { turns: 1 }, r#"{"event":"forgotten","turns":1}"#),
    ];
    for (event, json) in expected {
        assert_eq!(line(&event).as_deref(), Some(json));
    }
    assert_eq!(line(&Event::Done(Box::new(stats()))), None);
}

#[test]
fn the_speed_line_has_the_counts_the_speeds_and_the_seed() {
    let line = speed(&stats());
    assert_eq!(
        line,
        "prompt: 10 tokens, 5.0 tokens/s; generated: 4 tokens (thought 1, answer 1), 12.0 tokens/s; seed 7"
    );
}
