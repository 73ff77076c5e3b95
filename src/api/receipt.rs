//! Receipts: the record of a run, and its verification.
//!
//! Logits do not depend on threads, vector width, batch or speculation, and draws do not depend on the past, so a run can
//! be checked without being run again token by token: the recorded tokens are fed like a draft, many in a step, and each
//! must be the one that is chosen there, from logits with the recorded bits. A GPU's logits depend on the batch: what is
//! recorded there is generated without speculation, and repeated by generating it anew on the same GPU.

use std::collections::VecDeque;
use std::fmt;

use sha2::{Digest, Sha256};

use super::events::Finish;
use super::record::{Opening, Record};
use super::start::{Slot, Start};
use super::trace::Trace;
use super::{Model, Options, Stats};
use crate::backend::devices::DeviceChoice;
use crate::engine::Sequence;
use crate::reasoning::ThoughtParser;
use crate::reasoning::control::{Act, ControlEvent, ThoughtBounds};
use crate::{Error, Result, Sampling, SamplingOverrides};

/// The kind of a receipt, and the version of its schema.
pub const SCHEMA: &str = "pensive receipt 1";

/// The record of a run, as JSON. Fields are documented here and nowhere else; a change of their meaning changes
/// [`SCHEMA`].
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of pensive.
    pub pensive: String,
    /// What was run.
    pub model: ReceiptModel,
    /// What it was run on; none: a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<ReceiptDevice>,
    /// The prompt as text, for people.
    pub prompt: String,
    /// The prompt.
    pub prompt_tokens: Vec<u32>,
    /// How keys and values were stored.
    pub kv_type: String,
    /// The context, tokens, where it decides how positions are encoded (LongRoPE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_context: Option<usize>,
    /// What the text began as.
    pub opening: Opening,
    /// Sampling parameters, resolved.
    pub sampling: Sampling,
    /// Seed of the draws.
    pub seed: u64,
    /// Bounds on the thought.
    pub bounds: ThoughtBounds,
    /// Whether the loop guard watched.
    pub loop_guard: bool,
    /// Most generated tokens.
    pub limit: usize,
    /// Whose limit that is: `length` (asked for) or `context`.
    pub limit_is: Act,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// False if a program's hook edited the logits; on a GPU also for a vote, an edited thought, and if keys and values of an earlier
    /// run were used: other steps than a replay's, which there have other bits.
    pub replayable: bool,
    /// One, or those of a vote.
    pub sequences: Vec<RecordedSequence>,
    /// SHA-256 of the receipt, as JSON without white space in which this is empty.
    pub sha256: String,
}

/// The model of a receipt.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptModel {
    /// The name it was loaded by.
    pub name: String,
    /// SHA-256 of its files ([`Model::sha256`]).
    pub sha256: String,
    /// What its weights were quantized to while it was loaded ([`Model::quantized`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<String>,
    /// SHA-256 of its chat template.
    pub template_sha256: Option<String>,
}

/// The device of a receipt. One on a CPU holds for any, whatever its instruction set; one on a GPU for its model alone.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptDevice {
    /// "cpu", "cuda", "metal", …
    pub kind: String,
    /// Of a GPU its name. Of a CPU none: on all of them receipts are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where a GPU takes part: the devices in the order of their layers ("cpu", "cuda:0"), and how many each has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<(String, usize)>,
}

/// The tokens of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordedSequence {
    /// Its number among those of the seed.
    pub sequence: u64,
    /// Why it ended.
    pub finish: Finish,
    /// What the control did.
    pub control: Vec<ControlEvent>,
    /// In order: id; the first 8 bytes, in hexadecimal, of the SHA-256 of the raw logits that it was chosen from (f32,
    /// little-endian, each NaN as 7fc00000); the index of the control event that had it written, null if it was drawn.
    pub tokens: Vec<(u32, String, Option<usize>)>,
}

/// Whether a run could be repeated.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Verdict {
    /// Tokens that were checked and are identical.
    pub tokens: usize,
    /// Where the first difference is; none: the run is identical.
    pub differs: Option<Difference>,
    /// The receipt is not as it was written: its SHA-256 is another.
    pub is_altered: bool,
    /// The weights are others.
    pub other_weights: bool,
    /// The chat template is another.
    pub other_template: bool,
}

/// Where a run and its repetition part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Number of the sequence.
    pub sequence: u64,
    /// Index of the first generated token whose logits differ.
    pub logits: Option<usize>,
    /// Index of the first generated token that differs: with what was recorded and what was found (none: no token).
    pub token: Option<(usize, Option<u32>, Option<u32>)>,
    /// The control acted differently.
    pub control: bool,
}

impl Difference {
    /// How many tokens stand before it.
    fn at(&self) -> usize {
        let token = self.token.map(|(at, ..)| at);
        self.logits.into_iter().chain(token).min().unwrap_or(0)
    }
}

impl Verdict {
    /// Whether all is as it was, but for the chat template: the prompt's tokens stand in the receipt.
    pub fn is_identical(&self) -> bool {
        self.differs.is_none() && !self.is_altered && !self.other_weights
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_identical() {
            write!(f, "identical: {} tokens and their logits", self.tokens)?;
            let note = "; the chat template is another than the receipt's";
            return f.write_str(if self.other_template { note } else { "" });
        }
        let mut parts = Vec::new();
        if self.is_altered {
            parts.push("the receipt was changed after it was written".to_owned());
        }
        if let Some(d) = &self.differs {
            if let Some(at) = d.logits {
                parts.push(format!("sequence {}: the logits of token {at} differ", d.sequence));
            }
            let shown = |id: Option<u32>| id.map_or("the end".to_owned(), |id| id.to_string());
            if let Some((at, recorded, found)) = d.token {
                parts.push(format!(
                    "sequence {}: token {at} is {} and was {}",
                    d.sequence,
                    shown(found),
                    shown(recorded)
                ));
            }
            if d.control {
                parts.push(format!("sequence {}: the control of the thought acted differently", d.sequence));
            }
        }
        if self.other_weights {
            let same = ", though tokens and logits are the same";
            let same = if self.differs.is_none() { same } else { "" };
            parts.push(format!("the weights are others than the receipt's{same}"));
        }
        if self.other_template {
            parts.push("the chat template is another than the receipt's".into());
        }
        write!(f, "not identical: {}", parts.join("; "))
    }
}

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model's name; of a path one that does not depend on the folder that a command runs in.
fn lasting_name(name: &str) -> String {
    match std::path::absolute(name) {
        Ok(path) if path.exists() => path.to_string_lossy().into_owned(),
        _ => name.to_owned(),
    }
}

impl Receipt {
    /// The receipt of a generation, or of the traces of one vote; they must have been recorded
    /// ([`Options::record`]). The model's files are hashed: `progress` is told (bytes done, bytes in all).
    ///
    /// # Errors
    /// [`Error::Usage`] for what was not recorded; files that cannot be read any more.
    pub fn new(model: &Model, traces: &[Stats], progress: impl FnMut(u64, u64)) -> Result<Receipt> {
        let records: Option<Vec<_>> = traces.iter().map(|stats| stats.record.as_deref()).collect();
        let records = records.filter(|records| !records.is_empty());
        let records = records.ok_or_else(|| Error::Usage("the generation was not recorded".into()))?;
        let first = records[0];
        let sequence = |(stats, record): (&Stats, &&Record)| RecordedSequence {
            sequence: record.sequence,
            finish: stats.finish,
            control: stats.control.clone(),
            tokens: (0..stats.tokens.len())
                .map(|i| (stats.tokens[i], format!("{:016x}", record.digests[i]), record.by[i]))
                .collect(),
        };
        let device = model.device();
        let receipt = Receipt {
            schema: SCHEMA.into(),
            pensive: env!("CARGO_PKG_VERSION").into(),
            model: ReceiptModel {
                name: lasting_name(model.name()),
                sha256: model.sha256(progress)?,
                quantized: model.quantized().map(|mix| mix.name.to_owned()),
                template_sha256: model.template_source().map(sha256),
            },
            device: Some(ReceiptDevice {
                kind: device.kind.clone(),
                name: (!device.is_exact()).then(|| device.name.clone()),
                layers: if device.is_exact() { Vec::new() } else { model.placed().to_vec() },
            }),
            prompt: model.tokenizer().decode(&first.prompt),
            prompt_tokens: first.prompt.clone(),
            rope_context: model.rope_context(),
            kv_type: model.kv_type().to_string(),
            opening: first.opening,
            sampling: traces[0].sampling,
            seed: traces[0].seed,
            bounds: first.bounds,
            loop_guard: first.loop_guard,
            limit: first.limit,
            limit_is: first.limit_is,
            stop: first.stop.clone(),
            replayable: records.iter().all(|record| !record.hooked)
                && (device.is_exact() || traces.len() == 1 && has_the_steps_of_a_replay(&traces[0])),
            sequences: traces.iter().zip(&records).map(sequence).collect(),
            sha256: String::new(),
        };
        Ok(Receipt { sha256: receipt.seal(), ..receipt })
    }

    /// Reads a receipt.
    ///
    /// # Errors
    /// [`Error::Saved`] for what is no receipt, or one of another schema.
    pub fn parse(json: &str) -> Result<Receipt> {
        let receipt: Receipt =
            serde_json::from_str(json).map_err(|e| Error::Saved(format!("it is no receipt: {e}")))?;
        if receipt.schema != SCHEMA {
            let what = format!("a `{}`; this pensive reads a `{SCHEMA}`", receipt.schema);
            return Err(Error::Saved(what));
        }
        Ok(receipt)
    }

    /// As JSON, a token a line.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string(self).expect("a receipt is plain data");
        json.replace("],[", "],\n[") + "\n"
    }

    /// What its SHA-256 must be.
    fn seal(&self) -> String {
        let unsealed = Receipt { sha256: String::new(), ..self.clone() };
        sha256(&serde_json::to_string(&unsealed).expect("a receipt is plain data"))
    }

    /// Tokens of context that a replay needs.
    pub fn context(&self) -> usize {
        // of a model whose positions depend on it, that one: it held the run
        self.rope_context.unwrap_or_else(|| {
            let longest = self.sequences.iter().map(|sequence| sequence.tokens.len()).max().unwrap_or(0);
            self.prompt_tokens.len() + longest + 1
        })
    }

    /// Repeats the run on `model`: by feeding what was recorded, many tokens in a step, or (`decode`) by generating it
    /// anew. `progress` is told (tokens done, tokens in all).
    ///
    /// # Errors
    /// A receipt that cannot be replayed, or needs more context than the model was loaded with; model files that cannot
    /// be read any more.
    pub fn verify(
        &self,
        model: &Model,
        decode: bool,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Verdict> {
        self.check(model, decode)?;
        let mut verdict = Verdict {
            tokens: 0,
            differs: None,
            is_altered: self.sha256 != self.seal(),
            other_weights: false,
            other_template: self.model.template_sha256 != model.template_source().map(sha256),
        };
        std::thread::scope(|scope| {
            let hash = scope.spawn(|| model.sha256(|_, _| ()));
            let total = self.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
            for recorded in &self.sequences {
                let before = verdict.tokens;
                let found = self.repeat(model, recorded, decode, |done| progress(before + done, total))?;
                verdict.differs = difference(recorded, &found);
                verdict.tokens += verdict.differs.as_ref().map_or(recorded.tokens.len(), Difference::at);
                if verdict.differs.is_some() {
                    break;
                }
            }
            verdict.other_weights = self.model.sha256 != hash.join().expect("hashing does not panic")?;
            Ok(verdict)
        })
    }

    /// Whether it can be replayed with this model, as it was loaded.
    fn check(&self, model: &Model, decode: bool) -> Result<()> {
        if !self.replayable {
            let what = "a program's hook edited the logits, or a GPU computed a vote, went on from an earlier run or from an edited \
                        thought: it cannot be replayed";
            return Err(Error::Saved(what.into()));
        }
        self.check_device(model, decode)?;
        if self.kv_type != model.kv_type().to_string() {
            let what = format!(
                "keys and values were {}, the model was loaded with {}",
                self.kv_type,
                model.kv_type()
            );
            return Err(Error::Saved(what));
        }
        let quantized = model.quantized().map(|mix| mix.name);
        if self.model.quantized.as_deref() != quantized {
            let shown =
                |mix: Option<&str>| mix.map_or("as stored".to_owned(), |mix| format!("quantized to {mix}"));
            let what = format!(
                "weights were {}, those of the model are {}",
                shown(self.model.quantized.as_deref()),
                shown(quantized)
            );
            return Err(Error::Saved(what));
        }
        if self.rope_context.is_some_and(|context| !model.encodes_positions_as_with(context)) {
            let (recorded, own) = (self.context(), model.context());
            let what = format!(
                "positions were encoded as in a context of {recorded} tokens, which one of {own} does otherwise: load the \
                 model with --context {recorded}"
            );
            return Err(Error::Saved(what));
        }
        if self.prompt_tokens.is_empty() || self.context() > model.context() + 1 {
            return Err(Error::Context { prompt: self.context(), context: model.context() });
        }
        let vocabulary = model.vocabulary() as u32;
        if let Some(at) = self.prompt_tokens.iter().position(|&id| id >= vocabulary) {
            let id = self.prompt_tokens[at];
            let what = format!(
                "token {at} of the prompt is {id}, the model has {vocabulary}: it is of another model"
            );
            return Err(Error::Saved(what));
        }
        Ok(())
    }

    /// Whether it was made on a GPU, whose bits depend on the steps.
    pub fn is_of_gpu(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.kind != "cpu")
    }

    /// The device to replay it on, and the layers that go to GPUs; none: the CPU.
    ///
    /// # Errors
    /// [`Error::Saved`] for devices that have no name together.
    pub fn placement(&self) -> Result<Option<(DeviceChoice, Option<usize>)>> {
        let Some(device) = self.device.as_ref().filter(|_| self.is_of_gpu()) else { return Ok(None) };
        let gpus: Vec<&(String, usize)> = device.layers.iter().filter(|(name, _)| name != "cpu").collect();
        let layers = (!gpus.is_empty()).then(|| gpus.iter().map(|(_, layers)| layers).sum());
        // of several GPUs: "cuda:0,1"
        let name = match gpus.split_first() {
            None => device.kind.clone(),
            Some(((first, _), others)) => {
                let numbers = others.iter().map(|(name, _)| name.split(':').nth(1).unwrap_or(name));
                numbers.fold(first.clone(), |all, number| format!("{all},{number}"))
            }
        };
        let choice = name.parse().map_err(|_| {
            Error::Saved(format!("the device `{name}` of the receipt is none: name one with --device"))
        })?;
        Ok(Some((choice, layers)))
    }

    /// Logits are equal to the bit on all CPUs; on a GPU only on the same one, in the same steps.
    fn check_device(&self, model: &Model, decode: bool) -> Result<()> {
        let device = model.device();
        let what = match &self.device {
            Some(recorded) if self.is_of_gpu() => {
                let (kind, name) = (&recorded.kind, recorded.name.as_deref().unwrap_or("unknown"));
                if (kind.as_str(), name) != (device.kind.as_str(), device.name.as_str()) {
                    format!("it was made on {kind} ({name}), whose bits {device} has not")
                } else if !recorded.layers.is_empty() && shares(&recorded.layers) != shares(model.placed()) {
                    let shown = |layers: &[(String, usize)]| {
                        layers
                            .iter()
                            .map(|(device, n)| format!("{n} on {device}"))
                            .collect::<Vec<_>>()
                            .join(", ")
                    };
                    format!(
                        "of its layers {} were computed, now {}: --device and --gpu-layers say where",
                        shown(&recorded.layers),
                        shown(model.placed())
                    )
                } else if self.pensive != env!("CARGO_PKG_VERSION") {
                    format!("it was made on a GPU by pensive {}, whose steps may be others", self.pensive)
                } else if self.sequences.len() > 1 {
                    "a vote on a GPU computes its thoughts together, whose bits depend on it".to_owned()
                } else if !decode {
                    "it was made on a GPU, which repeats the same steps only: use --decode".to_owned()
                } else {
                    return Ok(());
                }
            }
            _ if device.is_exact() => return Ok(()),
            _ => format!("it was made on a CPU, whose bits {device} has not: use --device cpu"),
        };
        Err(Error::Saved(what))
    }

    /// One sequence as it was begun; unless `decode`, with the recorded tokens as its script.
    fn begin(&self, model: &Model, recorded: &RecordedSequence, decode: bool) -> Trace {
        let s = &self.sampling;
        let options = Options {
            sampling: SamplingOverrides {
                temperature: Some(s.temperature),
                top_k: Some(s.top_k),
                top_p: Some(s.top_p),
                min_p: Some(s.min_p),
                repeat_penalty: Some(s.repeat_penalty),
                presence_penalty: Some(s.presence_penalty),
                frequency_penalty: Some(s.frequency_penalty),
                repeat_last_n: Some(s.repeat_last_n),
            },
            thought: self.bounds,
            loop_guard: self.loop_guard,
            stop: self.stop.clone(),
            record: true,
            ..Options::default()
        };
        let markers = model.markers().clone();
        let start = Start {
            prompt: self.prompt_tokens.clone(),
            parser: match self.opening {
                Opening::Thought => ThoughtParser::new(markers, true),
                Opening::Open => ThoughtParser::new(markers, false),
                Opening::Answer => ThoughtParser::answering(markers),
                Opening::Raw => ThoughtParser::verbatim(),
            },
            opening: self.opening,
            sampling: self.sampling,
            seed: self.seed,
            sequence: recorded.sequence,
            slot: Slot::default(),
        };
        let mut trace = Trace::new(model.clone(), start, &options, Sequence::new());
        // what the model cannot have said is no text to feed: the run is generated up to there
        let vocabulary = model.vocabulary() as u32;
        let fed = recorded.tokens.iter().map(|token| token.0).take_while(|&id| id < vocabulary);
        let script = (!decode).then(|| fed.collect());
        trace.repeat((self.limit, self.limit_is), &recorded.control, edits(recorded), script);
        trace
    }

    /// Repeats one sequence.
    fn repeat(
        &self,
        model: &Model,
        recorded: &RecordedSequence,
        decode: bool,
        mut progress: impl FnMut(usize),
    ) -> Result<Stats> {
        let mut trace = self.begin(model, recorded, decode);
        let mut engine = model.inner.engine.lock();
        while trace.stats.tokens.len() < recorded.tokens.len() {
            let most = engine.max_rows();
            if trace.prompt_left().len() > most {
                engine.step(&mut [trace.prompt_feed(most)])?;
            } else if trace.prepare(engine.max_logit_rows()) {
                let logits = engine.step(&mut [trace.feed()])?;
                trace.take(logits);
            } else {
                break;
            }
            if trace.left_script() {
                break;
            }
            progress(trace.stats.tokens.len());
        }
        Ok(trace.stats())
    }
}

/// Kinds of devices and their layers: which of several equal GPUs it was makes no difference.
fn shares(layers: &[(String, usize)]) -> Vec<(&str, usize)> {
    layers.iter().map(|(device, n)| (device.split(':').next().unwrap_or(device), *n)).collect()
}

/// Whether a replay takes the same tokens together in its steps.
fn has_the_steps_of_a_replay(run: &Stats) -> bool {
    run.cached_tokens == 0 && run.control.iter().all(|event| event.what != Act::Edit)
}

/// What the user wrote, and where.
fn edits(recorded: &RecordedSequence) -> VecDeque<(usize, Vec<u32>)> {
    let edit = |(index, event): (usize, &ControlEvent)| {
        let tokens = recorded.tokens[event.at.min(recorded.tokens.len())..].iter();
        let tokens = tokens.take_while(|token| token.2 == Some(index)).map(|token| token.0);
        (event.what == Act::Edit).then(|| (event.at, tokens.collect()))
    };
    recorded.control.iter().enumerate().filter_map(edit).collect()
}

fn difference(recorded: &RecordedSequence, found: &Stats) -> Option<Difference> {
    let record = found.record.as_deref().expect("a repetition is recorded");
    let tokens = &recorded.tokens;
    let logits =
        tokens.iter().zip(&record.digests).position(|(token, digest)| token.1 != format!("{digest:016x}"));
    let at = (0..tokens.len()).find(|&i| {
        let same = found.tokens.get(i) == Some(&tokens[i].0);
        // a digest is known one token further than the tokens are
        !same && (i < found.tokens.len() || logits.is_none())
    });
    let token = at.map(|i| (i, Some(tokens[i].0), found.tokens.get(i).copied()));
    let by = tokens.iter().zip(&record.by).any(|(token, by)| token.2 != *by);
    // what was done where the record ends has written nothing: an edit that was interrupted at once
    let acts = |acts: &[ControlEvent]| -> Vec<ControlEvent> {
        acts.iter().filter(|act| act.at < tokens.len()).copied().collect()
    };
    let acts = acts(&recorded.control) != acts(&found.control);
    let control = token.is_none() && logits.is_none() && (by || acts);
    (logits.is_some() || token.is_some() || control).then_some(Difference {
        sequence: recorded.sequence,
        logits,
        token,
        control,
    })
}
