//! The state machine that separates thought from answer.
//!
//! It sees tokens as bytes, so a marker is found whether it is one token, several, or part of one. Bytes that may
//! be the beginning of a marker are held back until the next token decides.
//!
//! What models do, and what is made of it:
//! - the start marker is missing and nothing but text comes: it is answer;
//! - the start marker is missing and an end marker comes: what came before was the thought ([`Piece::WasThought`]);
//! - a marker is repeated within the thought: it is dropped; a start marker before the first visible character of the
//!   answer reopens the thought;
//! - a marker stands in an answer that can be seen: it is text, and so is an end marker behind it;
//! - the end marker never comes: everything is thought.
//!
//! gpt-oss writes messages on channels. What stands between `<|end|>`, `<|start|>` or `<|channel|>` and `<|message|>` is
//! a header and never visible; a header that names the channel `final` does what an end marker does, one that names
//! another (`analysis`, `commentary`) what a start marker does.

use std::collections::VecDeque;

use super::Markers;
use super::markers::Mark;

/// What a byte of the trace belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Between the markers.
    Thought,
    /// After them, or without them.
    Answer,
}

/// What the parser says, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of a part.
    Text(Part, Vec<u8>),
    /// The thought is closed; answer follows.
    Closed,
    /// All that was given as answer so far was a thought without a start marker; it is closed now.
    WasThought,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far.
    Before,
    Thinking,
    Answering,
    /// No markers are looked for.
    Verbatim,
}

/// A token of which bytes are held back.
#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: usize,
    in_marker: bool,
}

/// Separates thought from answer, token by token.
#[derive(Clone, Debug)]
pub struct ThoughtParser {
    markers: Markers,
    state: State,
    /// What came of a header after its last marker, within one.
    header: Option<Vec<u8>>,
    held: Vec<u8>,
    held_tokens: VecDeque<Held>,
    thought_tokens: usize,
    answer_tokens: usize,
    thought_seen: bool,
    answer_visible: bool,
    /// The answer speaks of a start marker: an end marker does not make it a thought.
    quotes: bool,
}

impl ThoughtParser {
    /// A parser of what follows the prompt; `open` says that the prompt ended with the start marker.
    pub fn new(markers: Markers, open: bool) -> Self {
        Self::in_state(markers, if open { State::Thinking } else { State::Before })
    }

    /// A parser for which everything is answer, markers included.
    pub fn verbatim() -> Self {
        Self::in_state(Markers::default(), State::Verbatim)
    }

    /// A parser after an empty thought in the prompt.
    pub fn answering(markers: Markers) -> Self {
        let mut parser = Self::in_state(markers, State::Answering);
        parser.thought_seen = true;
        parser
    }

    fn in_state(markers: Markers, state: State) -> Self {
        ThoughtParser {
            markers,
            state,
            header: None,
            held: Vec::new(),
            held_tokens: VecDeque::new(),
            thought_tokens: 0,
            answer_tokens: 0,
            thought_seen: state == State::Thinking,
            answer_visible: false,
            quotes: false,
        }
    }

    /// What the next byte belongs to, as far as is known.
    pub fn part(&self) -> Part {
        if self.state == State::Thinking { Part::Thought } else { Part::Answer }
    }

    /// Whether a header was begun and not ended.
    pub fn in_header(&self) -> bool {
        self.header.is_some()
    }

    /// Whether there was a thought, closed or not, or it is certain that none comes.
    pub fn has_thought(&self) -> bool {
        self.thought_seen
    }

    /// Tokens of the thought so far; those that hold a marker or a part of one are not counted.
    pub fn thought_tokens(&self) -> usize {
        self.thought_tokens
    }

    /// Tokens of the answer so far; those that hold a marker or a part of one are not counted.
    pub fn answer_tokens(&self) -> usize {
        self.answer_tokens
    }

    /// Whether something of the answer can be seen.
    pub fn answer_visible(&self) -> bool {
        self.answer_visible
    }

    /// Takes a token's bytes; what is decided by them is added to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<Piece>) {
        if bytes.is_empty() {
            return;
        }
        self.held.extend_from_slice(bytes);
        self.held_tokens.push_back(Held { bytes: bytes.len(), in_marker: false });
        while let Some((at, len, mark)) = self.find_marker() {
            self.release(at, out);
            if self.is_text(mark) {
                self.quotes = true;
                self.release(len, out);
            } else {
                self.consume(len, None);
                self.marker(mark, out);
            }
        }
        let keep = self.possible_marker();
        self.release(self.held.len() - keep, out);
    }

    /// Bytes that are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The end of the trace: what is held back is text.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        self.release(self.held.len(), out);
    }

    /// The first marker in the held bytes: where, its length, what it does.
    fn find_marker(&self) -> Option<(usize, usize, Mark)> {
        if self.state == State::Verbatim {
            return None;
        }
        let find = |(marker, mark): (&str, Mark)| {
            let at = self.held.windows(marker.len()).position(|w| w == marker.as_bytes())?;
            Some((at, marker.len(), mark))
        };
        self.markers.marks().into_iter().filter_map(find).min_by_key(|found| found.0)
    }

    /// Whether a marker that stands here is a part of the answer. An end marker may still close a thought that nothing
    /// opened.
    fn is_text(&self, mark: Mark) -> bool {
        self.state == State::Answering
            && self.answer_visible
            && match mark {
                Mark::Open => true,
                Mark::Close => self.thought_seen || self.quotes,
                Mark::Header | Mark::Message => false,
            }
    }

    /// Length of the longest end of the held bytes that may become a marker.
    fn possible_marker(&self) -> usize {
        if self.state == State::Verbatim {
            return 0;
        }
        let marks = self.markers.marks();
        let longest = marks.iter().map(|(marker, _)| marker.len()).max().unwrap_or(0);
        let may = |len: usize| {
            let tail = &self.held[self.held.len() - len..];
            marks.iter().any(|(marker, _)| marker.len() > len && marker.as_bytes().starts_with(tail))
        };
        (1..longest.min(self.held.len() + 1)).rev().find(|&len| may(len)).unwrap_or(0)
    }

    /// Gives the first `len` held bytes out as text.
    fn release(&mut self, len: usize, out: &mut Vec<Piece>) {
        if len == 0 {
            return;
        }
        if let Some(header) = &mut self.header {
            header.extend_from_slice(&self.held[..len]);
            return self.consume(len, None);
        }
        let visible = self.held[..len].iter().any(|b| !b.is_ascii_whitespace());
        if self.state == State::Before && visible {
            self.state = State::Answering;
        }
        let part = self.part();
        self.answer_visible |= visible && part == Part::Answer;
        out.push(Piece::Text(part, self.held[..len].to_vec()));
        self.consume(len, Some(part));
    }

    /// Drops the first `len` held bytes and counts the tokens that end in them: for `part`, or as a marker's.
    fn consume(&mut self, mut len: usize, part: Option<Part>) {
        self.held.drain(..len);
        while len > 0 {
            let token = self.held_tokens.front_mut().expect("held bytes belong to held tokens");
            token.in_marker |= part.is_none();
            if token.bytes > len {
                token.bytes -= len;
                return;
            }
            len -= token.bytes;
            match part {
                _ if token.in_marker => {}
                Some(Part::Thought) => self.thought_tokens += 1,
                Some(Part::Answer) => self.answer_tokens += 1,
                None => {}
            }
            self.held_tokens.pop_front();
        }
    }

    fn marker(&mut self, mark: Mark, out: &mut Vec<Piece>) {
        match mark {
            Mark::Open => self.open(),
            Mark::Close => self.close(out),
            Mark::Header => self.header = Some(Vec::new()),
            Mark::Message => match self.header.take() {
                Some(header) if Markers::is_final(&header) => {
                    self.close(out);
                    self.thought_seen = true;
                }
                Some(_) => self.open(),
                None => {} // ends no header: dropped
            },
        }
    }

    fn open(&mut self) {
        match self.state {
            State::Before => {
                self.state = State::Thinking;
                self.thought_seen = true;
            }
            State::Answering if !self.answer_visible => self.state = State::Thinking,
            _ => {} // repeated: dropped
        }
    }

    fn close(&mut self, out: &mut Vec<Piece>) {
        match self.state {
            State::Thinking => {
                self.state = State::Answering;
                out.push(Piece::Closed);
            }
            State::Before => self.state = State::Answering,
            State::Answering if !self.thought_seen => {
                self.thought_seen = true;
                self.answer_visible = false;
                self.thought_tokens = std::mem::take(&mut self.answer_tokens);
                out.push(Piece::WasThought);
            }
            _ => {} // repeated: dropped
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (thought, answer, thought tokens, answer tokens) of a trace given as tokens.
    fn parse(mut parser: ThoughtParser, tokens: &[&str]) -> (String, String, usize, usize) {
        let mut pieces = Vec::new();
        tokens.iter().for_each(|t| parser.push(t.as_bytes(), &mut pieces));
        parser.finish(&mut pieces);
        let (mut thought, mut answer) = (Vec::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(Part::Thought, bytes) => thought.extend(bytes),
                Piece::Text(Part::Answer, bytes) => answer.extend(bytes),
                Piece::Closed => {}
                Piece::WasThought => thought.append(&mut answer),
            }
        }
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(thought), text(answer), parser.thought_tokens(), parser.answer_tokens())
    }

    fn closed() -> ThoughtParser {
        ThoughtParser::new(Markers::default(), false)
    }

    fn open() -> ThoughtParser {
        ThoughtParser::new(Markers::default(), true)
    }

    fn expect(parser: ThoughtParser, tokens: &[&str], thought: &str, answer: &str, counts: (usize, usize)) {
        assert_eq!(parse(parser, tokens), (thought.into(), answer.into(), counts.0, counts.1));
    }

    #[test]
    fn the_model_writes_both_markers() {
        expect(closed(), &["<think>", "\n", "hm", "</think>", "4"], "\nhm", "4", (2, 1));
    }

    #[test]
    fn the_template_has_opened_the_thought() {
        expect(open(), &["hm", "</think>", "4", "2"], "hm", "42", (1, 2));
    }

    #[test]
    fn a_marker_may_be_split_over_tokens_and_share_them_with_text() {
        expect(open(), &["so", " 4.</", "th", "ink", ">\n", "4"], "so 4.", "\n4", (1, 1));
    }

    #[test]
    fn what_only_looks_like_a_marker_is_text() {
        expect(open(), &["a <", "/t", "able> b"], "a </table> b", "", (3, 0));
        expect(closed(), &["<th", "ree"], "", "<three", (0, 2));
    }

    #[test]
    fn without_a_start_marker_text_is_answer() {
        expect(closed(), &["\n", "The", " sky"], "", "\nThe sky", (0, 3));
    }

    #[test]
    fn an_end_marker_without_a_start_makes_what_came_before_the_thought() {
        expect(closed(), &["hm", "</think>", "4"], "hm", "4", (1, 1));
    }

    #[test]
    fn a_thought_that_never_ends_is_all_thought() {
        expect(open(), &["on", " and", " on </thi"], "on and on </thi", "", (3, 0));
    }

    #[test]
    fn repeated_markers_are_dropped_before_the_answer_is_visible() {
        expect(open(), &["<think>", "a", "<think>", "b", "</think>", "</think>", "c"], "ab", "c", (2, 1));
    }

    #[test]
    fn markers_in_a_visible_answer_are_a_part_of_it() {
        let answer = ["cut '<", "think", ">.*</", "think", ">'"];
        let said = "cut '<think>.*</think>'";
        expect(closed(), &answer, "", said, (0, 5));
        expect(ThoughtParser::answering(Markers::default()), &answer, "", said, (0, 5));
        expect(open(), &[&["hm", "</think>"], &answer[..]].concat(), "hm", said, (1, 5));
        expect(open(), &["a", "</think>b</think>", "c"], "a", "b</think>c", (1, 1));
        // behind a thought that nothing opened as well
        expect(closed(), &["hm", "</think>", "b", "<think>", "c"], "hm", "b<think>c", (1, 3));
    }

    #[test]
    fn a_thought_may_be_reopened_before_the_answer_is_visible() {
        expect(open(), &["a", "</think>", "\n", "<think>", "b", "</think>", "c"], "ab", "\nc", (2, 2));
    }

    #[test]
    fn verbatim_text_keeps_its_markers() {
        expect(ThoughtParser::verbatim(), &["<think>", "a"], "", "<think>a", (0, 2));
    }

    fn channels() -> ThoughtParser {
        ThoughtParser::new(Markers::channels(), false)
    }

    #[test]
    fn on_channels_the_analysis_is_thought_and_the_final_channel_answer() {
        let trace = [
            "<|channel|>",
            "analysis",
            "<|message|>",
            "hm",
            " 4",
            "<|end|>",
            "<|start|>",
            "assistant",
            "<|channel|>",
            "final",
            "<|message|>",
            "4",
            "2",
        ];
        expect(channels(), &trace, "hm 4", "42", (2, 2));
        expect(channels(), &trace[9..], "", "final42", (0, 3));
        let open = ThoughtParser::new(Markers::channels(), true);
        expect(open, &trace[3..], "hm 4", "42", (2, 2));
    }

    #[test]
    fn a_model_may_go_to_the_final_channel_at_once() {
        let mut parser = channels();
        let mut pieces = Vec::new();
        for token in ["<|channel|>", "final", "<|message|>"] {
            assert!(!parser.has_thought());
            parser.push(token.as_bytes(), &mut pieces);
        }
        assert!(parser.has_thought() && !parser.in_header() && pieces.is_empty());
        expect(channels(), &["<|channel|>", "final", "<|message|>", "4"], "", "4", (0, 1));
    }

    #[test]
    fn what_is_on_other_channels_is_thought() {
        let commentary =
            ["<|end|>", "<|start|>", "assistant", "<|channel|>", "commentary", "<|message|>", "so"];
        let trace = ["<|channel|>", "analysis", "<|message|>", "a"];
        let end = ["<|end|>", "<|start|>", "assistant", "<|channel|>", "final", "<|message|>", "4"];
        expect(channels(), &[&trace[..], &commentary, &trace, &end].concat(), "asoa", "4", (3, 1));
        let call =
            ["<|channel|>", "commentary", " to=functions.f ", "<|constrain|>", "json", "<|message|>", "{}"];
        expect(channels(), &call, "{}", "", (1, 0));
    }

    #[test]
    fn a_header_that_is_not_ended_is_not_visible() {
        let mut parser = channels();
        parser.push(b"<|channel|>ana", &mut Vec::new());
        assert!(parser.in_header());
        expect(parser, &["lysis"], "", "", (0, 0));
        expect(channels(), &["<|message|>", "4"], "", "4", (0, 1));
    }

    #[test]
    fn an_answer_on_the_final_channel_stays_one() {
        let trace = ["<|channel|>final<|message|>", "4", "<|end|><|channel|>analysis<|message|>", "2"];
        expect(channels(), &trace, "", "42", (0, 2));
    }

    proptest::proptest! {
        #[test]
        fn how_channels_are_cut_into_tokens_changes_neither_thought_nor_answer(
            parts in proptest::collection::vec(
                proptest::sample::select(vec![
                    "<|channel|>", "<|message|>", "<|end|>", "<|start|>", "analysis", "final", "a", "<", "|", "é", "\n"
                ]), 0..14),
            cuts in proptest::collection::vec(proptest::bool::ANY, 200),
        ) {
            let text = parts.concat();
            let mut tokens = vec![String::new()];
            for (c, cut) in text.chars().zip(&cuts) {
                tokens.last_mut().unwrap().push(c);
                if *cut { tokens.push(String::new()); }
            }
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let (thought, answer, ..) = parse(channels(), &tokens);
            let (whole_thought, whole_answer, ..) = parse(channels(), &[&text]);
            proptest::prop_assert_eq!((thought, answer), (whole_thought, whole_answer));
        }

        #[test]
        fn how_a_trace_is_cut_into_tokens_changes_neither_thought_nor_answer(
            parts in proptest::collection::vec(
                proptest::sample::select(vec!["<think>", "</think>", "a", "<", "/", "think", ">", "é", "\n"]), 0..12),
            cuts in proptest::collection::vec(proptest::bool::ANY, 120),
        ) {
            let text = parts.concat();
            let mut tokens = vec![String::new()];
            for (c, cut) in text.chars().zip(&cuts) {
                tokens.last_mut().unwrap().push(c);
                if *cut { tokens.push(String::new()); }
            }
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let (thought, answer, ..) = parse(closed(), &tokens);
            let (whole_thought, whole_answer, ..) = parse(closed(), &[&text]);
            proptest::prop_assert_eq!((thought, answer), (whole_thought, whole_answer));
        }
    }
}
