//! Sequences, KV pages, batches, sampling.
//!
//! An [`Engine`] owns a backend with a model on it. A [`Sequence`] owns its tokens and, by reference count, its KV
//! pages: it is cut back to a position, or forked to share a prefix, without copying (a shared page that is only
//! partly full is copied when one of its owners writes to it).

pub mod lookup;
mod pages;
pub mod philox;
pub mod sampling;
mod saved;

use crate::backend::{Backend, Device, KvType, Limits, PAGE_LEN, Plan, Row, Step};
use crate::model::Decoder;
use crate::{Error, Result};
use pages::{Page, PagePool};

/// The tokens of a sequence and the pages that hold their keys and values.
#[derive(Debug, Default)]
pub struct Sequence {
    tokens: Vec<u32>,
    pages: Vec<Page>,
}

impl Sequence {
    /// An empty sequence.
    pub fn new() -> Self {
        Self::default()
    }

    /// The tokens that are in the cache.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens in the cache.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is in the cache.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Cuts the sequence back to its first `len` tokens; pages that are not needed are given back.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.pages.truncate(self.tokens.len().div_ceil(PAGE_LEN));
    }

    /// A sequence with the same first `len` tokens, sharing their pages.
    pub fn fork(&self, len: usize) -> Sequence {
        let tokens = self.tokens[..len].to_vec();
        let pages = self.pages[..len.div_ceil(PAGE_LEN)].to_vec();
        Sequence { tokens, pages }
    }

    /// How many of `tokens` stand at the beginning of the cache.
    pub fn common_prefix(&self, tokens: &[u32]) -> usize {
        self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count()
    }
}

/// Which rows of a feed want logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// None.
    Nothing,
    /// The last one.
    Last,
    /// All.
    All,
}

/// Rows of logits, if they are numbers: where one activation of a row is none, no logit is one.
fn numbers(logits: &mut [f32], vocabulary: usize) -> Result<&mut [f32]> {
    match logits.iter().step_by(vocabulary).any(|first| first.is_nan()) {
        true => Err(Error::Numbers),
        false => Ok(logits),
    }
}

/// Tokens that a step appends to a sequence.
#[derive(Debug)]
pub struct Feed<'a> {
    /// The sequence.
    pub sequence: &'a mut Sequence,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// Whose logits are asked for.
    pub wants: Wants,
}

/// A model on a backend, and the pages of its KV cache.
pub struct Engine {
    backend: Box<dyn Backend>,
    decoder: Decoder,
    pool: PagePool,
    plan: Plan,
    rows: Vec<Row>,
    tables: Vec<Vec<u32>>, // one per sequence of the step, reused
}

impl Engine {
    /// Puts a loaded decoder to work: the backend allocates what `plan` asks for.
    ///
    /// # Errors
    /// Memory that the system does not give.
    pub fn new(mut backend: Box<dyn Backend>, decoder: Decoder, plan: Plan) -> Result<Self> {
        backend.prepare(plan, &decoder.hyperparameters().rope())?;
        Ok(Engine {
            backend,
            decoder,
            pool: PagePool::new(plan.pages),
            plan,
            rows: Vec::with_capacity(plan.rows),
            tables: (0..plan.sequences).map(|_| Vec::with_capacity(plan.pages)).collect(),
        })
    }

    /// The model.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What it computes on.
    pub fn device(&self) -> Device {
        self.backend.device()
    }

    /// Measures what the device can do at most; takes a second or two.
    ///
    /// # Errors
    /// Memory that the system does not give.
    pub fn limits(&self) -> Result<Limits> {
        self.backend.limits()
    }

    /// How keys and values are stored.
    pub fn kv_type(&self) -> KvType {
        self.plan.kv_type
    }

    /// Bytes of the keys and values of one position, in all layers.
    pub fn kv_bytes(&self) -> usize {
        let h = self.decoder.hyperparameters();
        h.layers * h.kv_shape().position_bytes(self.plan.kv_type)
    }

    /// Bytes of keys and values that a step of so many rows of one sequence reads, which then has `filled` positions: in a
    /// layer with a window no more than its rows see.
    pub fn kv_read_bytes(&self, rows: usize, filled: usize) -> u64 {
        let h = self.decoder.hyperparameters();
        let seen = |layer: usize| match h.windows.get(layer).copied().flatten() {
            Some(window) => filled.min(window + rows.saturating_sub(1)),
            None => filled,
        };
        let positions: usize = (0..h.layers).map(seen).sum();
        (positions * h.kv_shape().position_bytes(self.plan.kv_type)) as u64
    }

    /// Most rows in a step: the size of a prefill chunk.
    pub fn max_rows(&self) -> usize {
        self.plan.rows
    }

    /// Most sequences of a step.
    pub fn max_sequences(&self) -> usize {
        self.plan.sequences
    }

    /// Most rows of a step that want logits.
    pub fn max_logit_rows(&self) -> usize {
        self.plan.logit_rows
    }

    /// Runs one step over all feeds and appends their tokens to their sequences.
    /// Returns the logits asked for, [rows that want them, vocabulary], in order of the feeds; they may be edited. Without tokens
    /// nothing happens.
    ///
    /// # Errors
    /// [`Error::Usage`] for more rows than planned, a token beyond the vocabulary or another engine's sequence, [`Error::Memory`] where the KV cache has
    /// no free page, [`Error::Device`] for what a GPU says, [`Error::Numbers`] for logits that are no numbers. The sequences are then as before.
    pub fn step(&mut self, feeds: &mut [Feed<'_>]) -> Result<&mut [f32]> {
        self.check(feeds)?;
        if feeds.iter().all(|feed| feed.tokens.is_empty()) {
            return Ok(&mut []);
        }
        for feed in feeds.iter_mut() {
            if let Err(error) = self.make_room(feed.sequence, feed.tokens.len()) {
                feeds.iter_mut().for_each(|f| f.sequence.truncate(f.sequence.len()));
                return Err(error);
            }
        }
        self.rows.clear();
        for (index, feed) in feeds.iter().enumerate() {
            let table = &mut self.tables[index];
            table.clear();
            table.extend(feed.sequence.pages.iter().map(Page::id));
            let start = feed.sequence.len();
            self.rows.extend(feed.tokens.iter().enumerate().map(|(i, &token)| Row {
                sequence: index,
                position: start + i,
                token,
                wants_logits: match feed.wants {
                    Wants::Nothing => false,
                    Wants::Last => i + 1 == feed.tokens.len(),
                    Wants::All => true,
                },
            }));
        }
        self.run(feeds.len());
        let logits = match self.backend.end() {
            Ok(()) if self.rows.iter().any(|row| row.wants_logits) => {
                let vocabulary = self.decoder.hyperparameters().vocabulary;
                self.backend.read(self.decoder.logits()).and_then(|logits| numbers(logits, vocabulary))
            }
            ended => ended.map(|()| &mut [][..]),
        };
        for feed in feeds.iter_mut() {
            match &logits {
                Ok(_) => feed.sequence.tokens.extend_from_slice(feed.tokens),
                Err(_) => feed.sequence.truncate(feed.sequence.len()),
            }
        }
        logits
    }

    fn run(&mut self, sequences: usize) {
        // slices of the tables live on the stack for the usual few sequences
        const FEW: usize = 8;
        if sequences <= FEW {
            let mut tables: [&[u32]; FEW] = [&[]; FEW];
            tables.iter_mut().zip(&self.tables).for_each(|(to, table)| *to = table);
            let step = Step { rows: &self.rows, tables: &tables[..sequences] };
            self.decoder.step(&mut *self.backend, &step);
        } else {
            let tables: Vec<&[u32]> = self.tables[..sequences].iter().map(Vec::as_slice).collect();
            self.decoder.step(&mut *self.backend, &Step { rows: &self.rows, tables: &tables });
        }
    }

    fn check(&self, feeds: &[Feed<'_>]) -> Result<()> {
        let rows: usize = feeds.iter().map(|f| f.tokens.len()).sum();
        let logits: usize = feeds
            .iter()
            .map(|f| match f.wants {
                Wants::Nothing => 0,
                Wants::Last => f.tokens.len().min(1),
                Wants::All => f.tokens.len(),
            })
            .sum();
        let plan = &self.plan;
        if rows > plan.rows || logits > plan.logit_rows || feeds.len() > plan.sequences {
            return Err(Error::Usage(format!(
                "a step of {rows} rows, {logits} with logits, over {} sequences; planned for {}, {} and {}",
                feeds.len(),
                plan.rows,
                plan.logit_rows,
                plan.sequences
            )));
        }
        if !feeds.iter().all(|feed| self.has(feed.sequence)) {
            return Err(Error::Usage("a sequence's keys and values are another engine's".into()));
        }
        let vocabulary = self.decoder.hyperparameters().vocabulary;
        match feeds.iter().flat_map(|f| f.tokens).find(|&&t| t as usize >= vocabulary) {
            Some(token) => {
                Err(Error::Usage(format!("token {token} is beyond the model's vocabulary of {vocabulary}")))
            }
            None => Ok(()),
        }
    }

    /// Whether a sequence's pages are of this cache.
    fn has(&self, sequence: &Sequence) -> bool {
        // all are of the pool that the first is of
        sequence.pages.first().is_none_or(|page| self.pool.has(page))
    }

    /// Pages for `more` tokens, the first of them not shared with another sequence.
    fn make_room(&mut self, sequence: &mut Sequence, more: usize) -> Result<()> {
        let (len, filled) = (sequence.len(), sequence.len() % PAGE_LEN);
        if more > 0 && filled > 0 {
            let last = len / PAGE_LEN;
            if sequence.pages[last].is_shared() {
                let copy = self.pool.take()?;
                self.backend.copy_page(sequence.pages[last].id(), copy.id(), filled);
                self.backend.end()?; // else the sequence would have a page that nothing was copied to
                sequence.pages[last] = copy;
            }
        }
        while sequence.pages.len() * PAGE_LEN < len + more {
            sequence.pages.push(self.pool.take()?);
        }
        Ok(())
    }
}
