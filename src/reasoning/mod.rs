//! Thoughts: what of a trace is thought and what is answer, and what keeps a thought within bounds.

pub mod answers;
pub mod control;
pub mod guard;
mod thought;

pub use thought::{Part, Piece, ThoughtParser};

/// The strings between which a model thinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markers {
    /// Opens a thought.
    pub start: String,
    /// Closes it.
    pub end: String,
}

impl Default for Markers {
    /// R1's: `<think>` and `</think>`.
    fn default() -> Self {
        Markers { start: "<think>".into(), end: "</think>".into() }
    }
}

/// Whether the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Think {
    /// The start marker is opened if the template did not.
    On,
    /// An empty thought is written: the answer begins at once.
    Off,
    /// As the template has it.
    #[default]
    Auto,
}

impl Think {
    /// What is to be appended to a rendered prompt that ends in `tail`, so that the model's first token is part
    /// of a thought (`On`) or of the answer (`Off`).
    pub fn suffix(self, tail: &str, markers: &Markers) -> String {
        let tail = tail.trim_end();
        let (start, end) = (&markers.start, &markers.end);
        let open = tail.ends_with(start.as_str());
        match self {
            Think::On if !open => format!("{start}\n"),
            Think::Off if open => format!("\n{end}\n\n"),
            Think::Off if !tail.ends_with(end.as_str()) => format!("{start}\n\n{end}\n\n"),
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
}
