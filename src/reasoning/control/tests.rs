use super::*;

const END: u32 = 1;
const STOP: u32 = 2;

/// A vocabulary of ten: the sentence has five tokens, the end marker and its blank line two.
fn tokens() -> ControlTokens {
    ControlTokens {
        sentence: vec![5; 5],
        line_end: vec![4],
        end: vec![END, 4],
        wait: vec![6],
        repeating: vec![7; 3],
        markers: [Some(0), Some(END)],
        headers: vec![8],
        ends: vec![STOP],
    }
}

fn thinking(thought_tokens: usize) -> Position {
    Position {
        part: Part::Thought,
        in_header: false,
        has_thought: true,
        thought_tokens,
        answer_tokens: 0,
        answer_visible: false,
        written: thought_tokens,
        thought_time: Duration::ZERO,
        sentence_end: false,
    }
}

fn control(bounds: ThoughtBounds, limit: usize) -> Control {
    Control::new(bounds, tokens(), limit, Act::Length)
}

/// Where a model that thinks for ever is stopped, the words that are written, and why.
fn closed(bounds: ThoughtBounds, limit: usize) -> (usize, Vec<u32>, Act) {
    let mut control = control(bounds, limit);
    for n in 0..100_000 {
        if let Decision::Write(words) = control.before(&thinking(n), &mut [0.0; 10]) {
            return (n, words, control.events()[0].what);
        }
    }
    panic!("the thought was never closed")
}

fn budget(tokens: usize) -> ThoughtBounds {
    ThoughtBounds { budget: Some(tokens), ..ThoughtBounds::default() }
}

#[test]
fn the_closing_sentence_counts_within_the_budget() {
    assert_eq!(closed(budget(20), 1000), (15, vec![5, 5, 5, 5, 5, END, 4], Act::Budget));
}

#[test]
fn a_budget_too_small_for_the_sentence_ends_with_the_marker_alone() {
    assert_eq!(closed(budget(5), 1000), (4, vec![4, END, 4], Act::Budget));
    assert_eq!(closed(budget(1), 1000), (0, vec![4, END, 4], Act::Budget));
}

#[test]
fn a_quarter_of_the_tokens_or_512_are_kept_for_the_answer() {
    for (limit, kept) in [(100, 25), (400, 100), (2048, 512), (100_000, 512), (40, 16)] {
        let (at, words, why) = closed(ThoughtBounds::default(), limit);
        assert_eq!((at + words.len() + kept, why), (limit, Act::Length), "{limit}");
    }
}

#[test]
fn the_smallest_limit_has_room_for_the_marker_and_sixteen_tokens() {
    let least = tokens().least_limit();
    assert_eq!(closed(ThoughtBounds::default(), least), (0, vec![4, END, 4], Act::Length));
    assert_eq!(least, 19);
}

#[test]
fn a_thought_ends_when_its_time_is_up() {
    let bounds = ThoughtBounds { time: Some(Duration::from_secs(3)), ..ThoughtBounds::default() };
    let mut control = control(bounds, 1000);
    let late = Position { thought_time: Duration::from_secs(3), ..thinking(7) };
    assert_eq!(control.before(&thinking(7), &mut [0.0; 10]), Decision::Draw);
    assert!(matches!(control.before(&late, &mut [0.0; 10]), Decision::Write(_)));
    assert_eq!(control.events(), [ControlEvent { at: 7, what: Act::Time }]);
}

#[test]
fn near_the_budget_the_end_gains_at_sentence_ends_alone() {
    let mut control = control(budget(100), 1000);
    let mut gain = |n, sentence_end| {
        let mut logits = [0.0; 10];
        control.before(&Position { sentence_end, ..thinking(n) }, &mut logits);
        logits[END as usize]
    };
    assert_eq!((gain(79, true), gain(90, false)), (0.0, 0.0));
    assert!(0.0 < gain(85, true) && gain(85, true) < gain(94, true));
}

#[test]
fn an_end_that_comes_too_early_becomes_wait_but_not_beyond_a_bound() {
    let bounds = ThoughtBounds { min: Some(50), ..ThoughtBounds::default() };
    let mut long = control(bounds, 1000);
    assert_eq!(long.instead(&thinking(49), END), Some(vec![6]));
    assert_eq!(long.instead(&thinking(49), STOP), Some(vec![6]));
    assert_eq!(long.instead(&thinking(50), END), None);
    assert_eq!(long.events().len(), 2);
    let mut short = control(bounds, 40); // 24 for the thought
    assert_eq!(short.instead(&thinking(21), END), None);
    assert_eq!(short.instead(&thinking(21), STOP), Some(vec![4, END, 4]));
}

#[test]
fn a_thought_that_repeats_itself_is_told_so_once_and_then_closed() {
    let mut control = control(ThoughtBounds::default(), 1000);
    assert_eq!(control.looped(&thinking(300)), [7; 3]);
    assert_eq!(control.looped(&thinking(500)), [5, 5, 5, 5, 5, END, 4]);
    let what: Vec<_> = control.events().iter().map(|event| (event.at, event.what)).collect();
    assert_eq!(what, [(300, Act::Repeating), (500, Act::Guard)]);
}

#[test]
fn what_is_written_into_a_thought_stays_within_its_budget() {
    let mut control =
        control(ThoughtBounds { budget: Some(3), min: Some(50), ..ThoughtBounds::default() }, 1000);
    assert_eq!(control.looped(&thinking(0)), [4, END, 4], "three more tokens and a line end are too many");
    assert_eq!(control.instead(&thinking(2), END), None);
    assert_eq!(control.instead(&thinking(1), END), Some(vec![6]));
}

#[test]
fn a_text_that_ends_in_its_thought_goes_on_with_the_answer() {
    let mut control = control(ThoughtBounds::default(), 1000);
    assert_eq!(control.instead(&thinking(9), STOP), Some(vec![4, END, 4]));
    assert_eq!(control.events(), [ControlEvent { at: 9, what: Act::EndOfText }]);
}

#[test]
fn an_answer_has_no_marker_and_does_not_end_before_it_can_be_seen() {
    let mut control = control(ThoughtBounds::default(), 1000);
    let at = |answer_tokens, answer_visible| Position {
        part: Part::Answer,
        answer_tokens,
        answer_visible,
        ..thinking(9)
    };
    let mut logits = [0.0; 10];
    assert_eq!(control.before(&at(0, false), &mut logits), Decision::Draw);
    assert_eq!(logits.map(|l| l == f32::NEG_INFINITY)[..4], [true, true, true, false]);
    assert_eq!(logits[8], f32::NEG_INFINITY);
    assert_eq!(control.before(&at(BLANKS, false), &mut logits), Decision::DrawVisible);
    let mut logits = [0.0; 10];
    assert_eq!(control.before(&at(3, true), &mut logits), Decision::Draw);
    assert_eq!(logits.map(|l| l == f32::NEG_INFINITY)[..4], [true, true, false, false]);
}

#[test]
fn between_two_messages_only_the_bound_on_tokens_closes_a_thought() {
    let bounds = ThoughtBounds { min: Some(50), ..budget(20) };
    let mut control = control(bounds, 100); // 75 for the thought
    let header = |n| Position { in_header: true, ..thinking(n) };
    assert_eq!(control.before(&header(30), &mut [0.0; 10]), Decision::Draw);
    assert_eq!(control.instead(&header(30), END), None, "a message that ends is not held open");
    assert!(matches!(control.before(&header(73), &mut [0.0; 10]), Decision::Write(_)));
}

#[test]
fn no_thought_is_opened_that_could_not_be_closed_before_an_answer() {
    let inline = ControlTokens { headers: vec![], ..tokens() };
    let open = Position { part: Part::Answer, has_thought: false, ..thinking(0) };
    let is_forbidden = |tokens: &ControlTokens, limit| {
        let mut logits = [0.0; 10];
        Control::new(ThoughtBounds::default(), tokens.clone(), limit, Act::Length).before(&open, &mut logits);
        logits[0] == f32::NEG_INFINITY
    };
    let least = inline.least_limit();
    assert_eq!(
        [4, least, least + 1, 1000].map(|limit| is_forbidden(&inline, limit)),
        [true, true, false, false]
    );
    assert!(!is_forbidden(&tokens(), 4), "on channels an answer begins so as well");
}
