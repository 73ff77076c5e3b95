//! Sampling parameters: what a model's authors recommend, and what a user asks for. `engine/sampling.rs` draws by them.

use crate::{Error, Result};

/// Sampling parameters, all resolved.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens that holds this much probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely as a share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides (multiplies, if negative) the logits of tokens seen lately; 1 is off.
    pub repeat_penalty: f32,
    /// Subtracted once from the logits of tokens seen lately; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was seen lately; 0 is off.
    pub frequency_penalty: f32,
    /// How many of the last tokens (prompt included) the penalties look at; 0 is none.
    pub repeat_last_n: usize,
}

impl Default for Sampling {
    /// What a model gets of which nothing is known: temperature 0.7, top-p 0.95.
    fn default() -> Self {
        Sampling {
            temperature: 0.7,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repeat_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repeat_last_n: 64,
        }
    }
}

/// Sampling parameters of which some are given.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct SamplingOverrides {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub repeat_last_n: Option<usize>,
}

impl SamplingOverrides {
    /// What is given here, else what is given there.
    pub fn or(self, other: SamplingOverrides) -> SamplingOverrides {
        SamplingOverrides {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
            presence_penalty: self.presence_penalty.or(other.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(other.frequency_penalty),
            repeat_last_n: self.repeat_last_n.or(other.repeat_last_n),
        }
    }

    /// The given parameters over `base`.
    pub fn over(self, base: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(base.repeat_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(base.repeat_last_n),
        }
    }
}

impl Sampling {
    /// # Errors
    /// A parameter out of its range, named.
    pub fn check(&self) -> Result<()> {
        let fault = |name: &str, value: f32, range: &str| {
            Err(Error::Usage(format!("{name} of {value}: must be {range}")))
        };
        match self {
            s if !(0.0..=100.0).contains(&s.temperature) => {
                fault("temperature", s.temperature, "from 0 to 100")
            }
            s if !(s.top_p > 0.0 && s.top_p <= 1.0) => fault("top-p", s.top_p, "above 0 and at most 1"),
            s if !(0.0..=1.0).contains(&s.min_p) => fault("min-p", s.min_p, "from 0 to 1"),
            s if !(s.repeat_penalty > 0.0 && s.repeat_penalty.is_finite()) => {
                fault("repeat-penalty", s.repeat_penalty, "above 0")
            }
            s if !s.presence_penalty.is_finite() => fault("presence-penalty", s.presence_penalty, "a number"),
            s if !s.frequency_penalty.is_finite() => {
                fault("frequency-penalty", s.frequency_penalty, "a number")
            }
            _ => Ok(()),
        }
    }

    /// Whether what was seen lately counts.
    pub(crate) fn penalizes(&self) -> bool {
        self.repeat_last_n > 0
            && (self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_out_of_range_are_named() {
        let s = Sampling { top_p: 0.0, ..Sampling::default() };
        assert_eq!(s.check().unwrap_err().to_string(), "top-p of 0: must be above 0 and at most 1");
    }
}
