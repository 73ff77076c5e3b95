//! Thoughts: what of a trace is thought and what is answer.

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
