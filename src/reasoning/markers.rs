//! The strings between which a model thinks, and what is written to open a thought or to leave it out.

/// The strings between which a model thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markers {
    /// Opens a thought.
    pub start: String,
    /// Closes it; what follows is answer.
    pub end: String,
}

/// How markers stand in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// R1's: on lines of their own.
    Lines,
    /// Magistral's: right before and behind the thought.
    Inline,
    /// gpt-oss's: thought and answer are messages on channels, each with a header.
    Channels,
}

/// Begins a header; the channel's name follows.
const CHANNEL: &str = "<|channel|>";
/// Ends a header; the message follows.
const MESSAGE: &str = "<|message|>";
/// Begins the header of a message; its author follows.
const START: &str = "<|start|>";
/// Ends a message.
const END: &str = "<|end|>";
/// The channel of the answer.
const FINAL: &str = "final";

/// What a marker in a text does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Opens a thought.
    Open,
    /// Closes it.
    Close,
    /// Begins a header.
    Header,
    /// Ends a header.
    Message,
}

impl Default for Markers {
    /// R1's: `<think>` and `</think>`.
    fn default() -> Self {
        Markers { start: "<think>".into(), end: "</think>".into() }
    }
}

impl Markers {
    /// Magistral's, since its second version: `[THINK]` and `[/THINK]`.
    pub fn brackets() -> Self {
        Markers { start: "[THINK]".into(), end: "[/THINK]".into() }
    }

    /// gpt-oss's: what is on the channel `analysis` is thought, what is on `final` answer.
    pub fn channels() -> Self {
        Markers {
            start: format!("{CHANNEL}analysis{MESSAGE}"),
            end: format!("{END}{START}assistant{CHANNEL}{FINAL}{MESSAGE}"),
        }
    }

    /// Those of a model that is not in the catalog: the ones that its chat template speaks of (of several, those that
    /// are tokens of its vocabulary), else those that are tokens.
    pub fn find(template: Option<&str>, is_token: impl Fn(&str) -> bool) -> Option<Self> {
        let known = [Markers::default(), Markers::brackets(), Markers::channels()];
        let template = template.unwrap_or_default();
        let is_named = |m: &&Markers| template.contains(&m.start) || template.contains(&m.end);
        let are_tokens = |m: &&Markers| m.tokens().into_iter().all(&is_token);
        let found = known.iter().find(|m| is_named(m) && are_tokens(m));
        found.or_else(|| known.iter().find(is_named)).or_else(|| known.iter().find(are_tokens)).cloned()
    }

    fn form(&self) -> Form {
        if self.start.starts_with(CHANNEL) {
            Form::Channels
        } else if self.start.starts_with('[') {
            Form::Inline
        } else {
            Form::Lines
        }
    }

    /// What the start marker is, or begins with, where it is a token.
    pub fn start_token(&self) -> &str {
        if self.form() == Form::Channels { CHANNEL } else { &self.start }
    }

    /// What the end marker is, or begins with, where it is a token.
    pub fn end_token(&self) -> &str {
        if self.form() == Form::Channels { END } else { &self.end }
    }

    /// All tokens that markers are made of and that are no text.
    pub fn tokens(&self) -> Vec<&str> {
        match self.form() {
            Form::Channels => vec![CHANNEL, END, START, MESSAGE],
            Form::Lines | Form::Inline => vec![&self.start, &self.end],
        }
    }

    /// What is looked for in a text.
    pub(super) fn marks(&self) -> Vec<(&str, Mark)> {
        match self.form() {
            Form::Channels => {
                vec![
                    (CHANNEL, Mark::Header),
                    (START, Mark::Header),
                    (END, Mark::Header),
                    (MESSAGE, Mark::Message),
                ]
            }
            Form::Lines | Form::Inline => vec![(&self.start, Mark::Open), (&self.end, Mark::Close)],
        }
    }

    /// Whether a header's text, from the channel's name on, is that of an answer.
    pub(super) fn is_final(header: &[u8]) -> bool {
        header.trim_ascii().starts_with(FINAL.as_bytes())
    }

    /// The start marker as the engine writes it.
    pub fn opening(&self) -> String {
        let line_end = if self.form() == Form::Lines { "\n" } else { "" };
        format!("{}{line_end}", self.start)
    }

    /// The end marker as the engine writes it behind a thought.
    pub fn closing(&self) -> String {
        let blank_line = if self.form() == Form::Lines { "\n\n" } else { "" };
        format!("{}{blank_line}", self.end)
    }

    /// What leaves a thought out: an empty one, or the answer's channel at once.
    fn nothing(&self) -> String {
        match self.form() {
            Form::Lines => format!("{}\n\n{}\n\n", self.start, self.end),
            Form::Inline => format!("{}{}", self.start, self.end),
            Form::Channels => self.answer_opening().to_owned(),
        }
    }

    /// The end of a prompt behind which an answer begins.
    fn answer_opening(&self) -> &str {
        match self.form() {
            Form::Channels => self.end.rfind(CHANNEL).map_or(&self.end, |at| &self.end[at..]),
            Form::Lines | Form::Inline => &self.end,
        }
    }

    /// Whether a prompt that ends so has opened a thought.
    pub fn opens_thought(&self, tail: &str) -> bool {
        tail.trim_end().ends_with(&self.start)
    }

    /// Whether a prompt that ends so has opened the answer, behind a thought or without one.
    pub fn opens_answer(&self, tail: &str) -> bool {
        tail.trim_end().ends_with(self.answer_opening())
    }
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Think {
    /// A thought is opened if the template did not.
    On,
    /// An empty thought is written, or none: the answer begins at once.
    Off,
    /// As the template has it.
    #[default]
    Auto,
}

impl Think {
    /// What is to be appended to a rendered prompt that ends in `tail`, so that the model's first token is part
    /// of a thought (`On`) or of the answer (`Off`).
    pub fn suffix(self, tail: &str, markers: &Markers) -> String {
        let open = markers.opens_thought(tail);
        match self {
            Think::On if !open => markers.opening(),
            Think::Off if open && markers.form() == Form::Lines => format!("\n{}", markers.closing()),
            Think::Off if open => markers.closing(),
            Think::Off if !markers.opens_answer(tail) => markers.nothing(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_opens_the_marker_only_where_the_template_did_not() {
        let markers = Markers::default();
        assert_eq!(Think::On.suffix("<|Assistant|>", &markers), "<think>\n");
        assert_eq!(Think::On.suffix("<|Assistant|><think>\n", &markers), "");
        assert_eq!(Think::Auto.suffix("<|Assistant|>", &markers), "");
    }

    #[test]
    fn not_thinking_writes_an_empty_thought_once() {
        let markers = Markers::default();
        assert_eq!(Think::Off.suffix("<|Assistant|>", &markers), "<think>\n\n</think>\n\n");
        assert_eq!(Think::Off.suffix("<|Assistant|><think>\n", &markers), "\n</think>\n\n");
        assert_eq!(Think::Off.suffix("assistant\n<think>\n\n</think>\n\n", &markers), "");
    }

    #[test]
    fn brackets_stand_right_beside_the_thought() {
        let markers = Markers::brackets();
        assert_eq!(Think::On.suffix("[/INST]", &markers), "[THINK]");
        assert_eq!(Think::Off.suffix("[/INST]", &markers), "[THINK][/THINK]");
        assert_eq!(Think::Off.suffix("[/INST][THINK]", &markers), "[/THINK]");
        assert_eq!(markers.closing(), "[/THINK]");
    }

    #[test]
    fn thinking_on_channels_opens_the_analysis_and_not_thinking_the_answer() {
        let markers = Markers::channels();
        let prompt = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
        assert_eq!(Think::On.suffix(prompt, &markers), "<|channel|>analysis<|message|>");
        assert_eq!(Think::Auto.suffix(prompt, &markers), "");
        let off = Think::Off.suffix(prompt, &markers);
        assert_eq!(off, "<|channel|>final<|message|>");
        assert!(markers.opens_answer(&(prompt.to_owned() + &off)) && !markers.opens_answer(prompt));
        assert_eq!(Think::Off.suffix(&(prompt.to_owned() + &off), &markers), "");
        let open = prompt.to_owned() + &markers.start;
        assert!(markers.opens_thought(&open));
        assert_eq!(Think::Off.suffix(&open, &markers), markers.end);
    }

    #[test]
    fn markers_are_those_that_the_template_speaks_of() {
        let of = |template| Markers::find(Some(template), |_| false);
        assert_eq!(of("{{ content.split('</think>') }}"), Some(Markers::default()));
        assert_eq!(of("{{ '[THINK]' + thinking + '[/THINK]' }}"), Some(Markers::brackets()));
        assert_eq!(of("<|start|>assistant<|channel|>analysis<|message|>"), Some(Markers::channels()));
        assert_eq!(of("{{ content }}"), None);
        let template = Some("{{ content.split('</think>') }}");
        assert_eq!(Markers::find(template, |token| token == "[/THINK]"), Some(Markers::default()));
    }

    #[test]
    fn without_a_word_in_the_template_markers_are_those_that_are_tokens() {
        let with = |tokens: &[&str]| Markers::find(None, |token| tokens.contains(&token));
        assert_eq!(with(&["<think>", "</think>"]), Some(Markers::default()));
        assert_eq!(with(&["[THINK]", "[/THINK]"]), Some(Markers::brackets()));
        assert_eq!(with(&["<|channel|>", "<|end|>", "<|start|>", "<|message|>"]), Some(Markers::channels()));
        assert_eq!(with(&["<|end|>", "<|user|>"]), None, "Phi's turns end so");
    }
}
