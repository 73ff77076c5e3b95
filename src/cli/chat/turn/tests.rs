use std::sync::atomic::Ordering::Relaxed;

use super::super::live::tests::terminal as terminal_of;
use super::*;
use crate::CancelHandle;
use crate::Sampling;
use crate::api::{Seconds, ThoughtEnd};
use crate::cli::interrupt::Second;

const SIZE: Size = Size { columns: 40, rows: 10 };

/// What a turn came to: 20 tokens of prompt in a context of 4096.
pub(in crate::cli::chat) fn stats(finish: Finish, thought_tokens: usize, answer_tokens: usize) -> Stats {
    Stats {
        seed: 7,
        sampling: Sampling::default(),
        context: 4096,
        prompt_tokens: 20,
        cached_tokens: 5,
        read_tokens: 15,
        thought: String::new(),
        answer: String::new(),
        tokens: vec![1; thought_tokens + answer_tokens],
        thought_tokens,
        answer_tokens,
        finish,
        thought_end: (thought_tokens > 0).then_some(ThoughtEnd::Natural),
        control: Vec::new(),
        record: None,
        seconds: Seconds { load: 0.0, prefill: 0.1, decode: 2.0 },
    }
}

fn done(finish: Finish) -> Event {
    Event::Done(Box::new(stats(finish, 412, 20)))
}

fn think(text: &str) -> Event {
    Event::Thought(text.into())
}

fn say(text: &str) -> Event {
    Event::Answer(text.into())
}

fn thought_done() -> Event {
    Event::ThoughtDone { tokens: 412, seconds: 14.2 }
}

/// A thought and an answer, as a model writes them.
fn reply(thought: &[&str]) -> Vec<Event> {
    let mut events: Vec<_> = thought.iter().map(|text| think(text)).collect();
    events.extend([thought_done(), say("\n\nIt is"), say(" blue.\n"), done(Finish::Stop)]);
    events
}

fn terminal(color: bool) -> Screen<Vec<u8>, Vec<u8>> {
    let console = Console { stdin_terminal: true, stdout_terminal: true, color, ..Console::default() };
    Screen { rich: true, console, out: Vec::new(), err: Vec::new(), size: || SIZE }
}

fn pipes() -> Screen<Vec<u8>, Vec<u8>> {
    Screen { rich: false, console: Console { color: true, ..Console::default() }, ..terminal(true) }
}

/// Shows events to their end; nobody presses Ctrl-C.
fn run(
    events: impl Iterator<Item = Result<Event>>,
    view: Thought,
    screen: &mut Screen<Vec<u8>, Vec<u8>>,
) -> io::Result<Result<Stats>> {
    let mut pause = Pause::new(CancelHandle::new(), Second::Waits, None, "thought.md".into());
    show(events.collect::<Vec<_>>().into_iter(), view, None, &mut pause, screen)
}

/// What stands on a terminal after these events behind a prompt, and all it was sent.
fn on_terminal(view: Thought, events: Vec<Event>) -> (String, String) {
    let mut screen = terminal(true);
    run(events.into_iter().map(Ok), view, &mut screen).unwrap().unwrap();
    assert!(screen.err.is_empty());
    let sent = String::from_utf8(screen.out).unwrap();
    // The terminal's driver puts a carriage return before each line feed.
    let terminal = terminal_of(SIZE, &format!(">>> why?\n{sent}").replace('\n', "\r\n"));
    (terminal.screen().contents(), sent)
}

/// What goes to standard output and standard error where they are no terminal.
fn in_pipes(view: Thought, events: Vec<Event>) -> (String, String) {
    let mut screen = pipes();
    run(events.into_iter().map(Ok), view, &mut screen).unwrap().unwrap();
    (String::from_utf8(screen.out).unwrap(), String::from_utf8(screen.err).unwrap())
}

#[test]
fn a_thought_streams_dimmed_and_folds_to_one_line_once_the_answer_begins() {
    let half = vec![think("Rayleigh"), think(" scattering?\nLet me see."), done(Finish::Stop)];
    assert!(on_terminal(Thought::Fold, half).1.contains("\u{1b}[2mRayleigh\u{1b}[0m"));

    let (contents, _) = on_terminal(Thought::Fold, reply(&["Rayleigh", " scattering?\nLet me see.", "\n"]));
    assert_eq!(contents, ">>> why?\nthought for 14 s, 412 tokens\nIt is blue.");
}

#[test]
fn a_thought_taller_than_the_screen_folds_all_the_same() {
    let lines: Vec<String> = (0..60).map(|i| format!("step {i}: {}\n\n", "so on ".repeat(i % 17))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let (contents, _) = on_terminal(Thought::Fold, reply(&lines));
    assert_eq!(contents, ">>> why?\nthought for 14 s, 412 tokens\nIt is blue.");
}

#[test]
fn a_thought_that_is_shown_stays_above_its_line() {
    let (contents, _) = on_terminal(Thought::Show, reply(&["\nRayleigh", "\nscattering\n\n"]));
    assert_eq!(contents, ">>> why?\nRayleigh\nscattering\nthought for 14 s, 412 tokens\nIt is blue.");
}

#[test]
fn a_hidden_thought_leaves_the_answer_alone() {
    assert_eq!(on_terminal(Thought::Hide, reply(&["secret"])).0, ">>> why?\nIt is blue.");
    assert_eq!(in_pipes(Thought::Hide, reply(&["secret"])), ("It is blue.\n".into(), String::new()));
}

#[test]
fn an_empty_thought_has_no_line() {
    assert_eq!(on_terminal(Thought::Fold, reply(&[])).0, ">>> why?\nIt is blue.");
    assert_eq!(on_terminal(Thought::Fold, reply(&["\n\n"])).0, ">>> why?\nIt is blue.");
}

#[test]
fn without_a_terminal_the_answer_is_alone_and_nothing_has_escape_codes() {
    let (out, err) = in_pipes(Thought::Fold, reply(&["Rayleigh ", "scattering\n"]));
    assert_eq!(out, "It is blue.\n");
    assert_eq!(err, "thought:\nRayleigh scattering\nthought for 14 s, 412 tokens\n");
}

#[test]
fn without_colour_a_thought_folds_undimmed() {
    let mut screen = terminal(false);
    run(reply(&["one\ntwo"]).into_iter().map(Ok), Thought::Fold, &mut screen).unwrap().unwrap();
    let sent = String::from_utf8(screen.out).unwrap();
    assert!(!sent.contains("\u{1b}[2m"));
    assert!(sent.ends_with("thought for 14 s, 412 tokens\nIt is blue.\n"));
}

#[test]
fn a_thought_that_was_stopped_folds_and_says_so() {
    let events = vec![think("Hm"), Event::Done(Box::new(stats(Finish::Interrupted, 1, 0)))];
    let (contents, _) = on_terminal(Thought::Fold, events);
    assert_eq!(contents, ">>> why?\nthought for 0.0 s, 1 token\nstopped");
}

/// A reply whose thought can be steered; nobody steers it here.
struct Steered<I>(I);

impl<I: Iterator<Item = Result<Event>>> Iterator for Steered<I> {
    type Item = Result<Event>;
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl<I: Iterator<Item = Result<Event>>> Reply for Steered<I> {
    fn is_thinking(&self) -> bool {
        true
    }
}

#[test]
fn a_thought_pauses_again_when_the_editor_failed() {
    let mut screen = pipes();
    let mut choices = vec![Choice::GoOn, Choice::Edit, Choice::Edit].into_iter();
    let ask = Box::new(move || Ok(choices.next_back().expect("it is asked three times")));
    let mut pause = Pause::new(CancelHandle::new(), Second::Waits, Some(ask), "no/such/folder/draft".into());
    pause.pressed().store(true, Relaxed);
    let events = Steered(reply(&["hm"]).into_iter().map(Ok).collect::<Vec<_>>().into_iter());
    show(events, Thought::Hide, None, &mut pause, &mut screen).unwrap().unwrap();
    let err = String::from_utf8(screen.err).unwrap();
    assert_eq!((err.matches(PAUSED).count(), err.matches("no/such/folder/draft").count()), (3, 2), "{err}");
    assert_eq!(String::from_utf8(screen.out).unwrap(), "It is blue.\n");
}

#[test]
fn a_pause_is_no_time_of_the_thought() {
    let mut screen = pipes();
    let ask = Box::new(|| {
        std::thread::sleep(std::time::Duration::from_millis(1500));
        Ok(Choice::Drop)
    });
    let mut pause = Pause::new(CancelHandle::new(), Second::Waits, Some(ask), "x".into());
    let mut first = Some(Ok(think("hm")));
    let pressed = pause.pressed();
    let events = std::iter::from_fn(move || {
        let event = first.take();
        match event {
            Some(_) => pressed.store(true, Relaxed),
            None => return Some(Ok(Event::Done(Box::new(stats(Finish::Interrupted, 1, 0))))),
        }
        event
    });
    show(Steered(events), Thought::Show, None, &mut pause, &mut screen).unwrap().unwrap();
    let err = String::from_utf8(screen.err).unwrap();
    let seconds: f64 = err.split("thought for ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(seconds < 1.0, "{err}");
}

#[test]
fn quiet_leaves_notices_out_but_ends_open_lines_and_asks() {
    let mut screen = pipes();
    screen.console.quiet = true;
    let mut pause =
        Pause::new(CancelHandle::new(), Second::Waits, Some(Box::new(|| Ok(Choice::GoOn))), "x".into());
    pause.pressed().store(true, Relaxed);
    let events = Steered(reply(&["hm"]).into_iter().map(Ok).collect::<Vec<_>>().into_iter());
    show(events, Thought::Show, None, &mut pause, &mut screen).unwrap().unwrap();
    assert_eq!(String::from_utf8(screen.err).unwrap(), format!("{PAUSED}\nhm\n"));
}

#[test]
fn an_answer_that_was_stopped_stays_and_says_so() {
    let (contents, _) = on_terminal(Thought::Fold, vec![say("It is"), done(Finish::Interrupted)]);
    assert_eq!(contents, ">>> why?\nIt is\nstopped");
    let (out, err) = in_pipes(Thought::Fold, vec![say("It is"), done(Finish::Interrupted)]);
    assert_eq!((out.as_str(), err.as_str()), ("It is\n", "stopped\n"));
}

#[test]
fn a_failure_in_a_thought_leaves_its_text_and_a_fresh_line() {
    for (view, left) in [(Thought::Fold, "Hm"), (Thought::Show, "Hm"), (Thought::Hide, "")] {
        let mut screen = terminal(false);
        let events = [Ok(think("Hm")), Err(Error::Text("broken".into()))];
        let error = run(events.into_iter(), view, &mut screen).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "broken");
        let terminal = terminal_of(SIZE, &String::from_utf8(screen.out).unwrap().replace('\n', "\r\n"));
        assert_eq!(terminal.screen().contents().trim_end(), left);
        let row = terminal.screen().cursor_position().0;
        assert_eq!(row, if left.is_empty() { 0 } else { 1 }, "{view:?}");
    }
}

#[test]
fn a_bound_that_was_reached_is_named() {
    let remark = |most, context| {
        let stats = Stats { context, ..stats(Finish::Length, 10, 22) };
        super::remark(&stats, most, false).unwrap()
    };
    assert_eq!(remark(Some(32), 4096), "stopped at 32 tokens: the bound max-tokens");
    assert_eq!(remark(None, 52), "stopped: the context of 52 tokens is full (/clear begins anew)");
}

#[test]
fn a_context_that_is_nearly_full_is_told_unless_turns_were_just_forgotten() {
    let stats = |context| Stats { context, ..stats(Finish::Stop, 10, 20) };
    assert_eq!(
        remark(&stats(55), None, false).unwrap(),
        "50 of 55 tokens of context are used: soon the oldest turns will be forgotten"
    );
    assert_eq!(remark(&stats(55), None, true), None);
    assert_eq!(remark(&stats(56), None, false), None);
}

#[test]
fn a_thought_without_an_answer_is_pointed_at() {
    let remark = |answer| remark(&stats(Finish::Stop, 10, answer), None, false);
    assert!(remark(0).unwrap().contains("/thought shows it"));
    assert_eq!(remark(1), None);
}

#[test]
fn turns_that_were_forgotten_are_told_in_one_line() {
    let mut events = vec![Event::Forgotten { turns: 2 }];
    events.extend(reply(&[]));
    assert_eq!(
        in_pipes(Thought::Fold, events).1,
        "2 oldest turns left the conversation: it outgrew the context\n"
    );
}

#[test]
fn white_space_within_a_text_stays_and_around_it_goes() {
    let pieces = ["  \n", " a", " ", "\n", "\n", "b ", "c\t", "\n "];
    let mut events: Vec<_> = pieces.iter().map(|piece| say(piece)).collect();
    events.push(done(Finish::Stop));
    assert_eq!(in_pipes(Thought::Fold, events).0, "a \n\nb c\n");
}

#[test]
fn escape_codes_in_an_answer_reach_a_file_but_no_terminal() {
    let events = || vec![say("a\u{1b}[31mb\u{7}"), done(Finish::Stop)];
    assert_eq!(in_pipes(Thought::Fold, events()).0, "a\u{1b}[31mb\u{7}\n");
    let (_, sent) = on_terminal(Thought::Fold, events());
    assert!(!sent.contains("\u{1b}[31m") && !sent.contains('\u{7}'), "{sent:?}");
}

#[test]
fn a_terminal_that_only_gets_text_is_as_safe() {
    let mut screen = pipes();
    screen.console.stdout_terminal = true;
    let events = [Ok(say("a\u{1b}[31mb")), Ok(done(Finish::Stop))];
    run(events.into_iter(), Thought::Fold, &mut screen).unwrap().unwrap();
    assert_eq!(String::from_utf8(screen.out).unwrap(), "a\u{fffd}[31mb\n");
}

#[test]
fn durations_are_said_as_people_do() {
    for (seconds, said) in [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (14.2, "14 s"),
        (59.7, "1 min 0 s"),
        (125.0, "2 min 5 s"),
    ] {
        assert_eq!(duration(seconds), said);
    }
}
