//! Grouped-query attention: how the work of a step is cut, and the scratch memory for it.
//!
//! A *unit* is a block of consecutive rows of one sequence and query heads that share a kv head; it goes through its chunks
//! once and uses each key and value for all its query vectors. With many units (prefill, batches) a thread takes whole
//! units and merges each chunk at once; with few (decode) threads share out single chunks and merge afterwards. The
//! operations on a query's numbers, and their order, are the same in both.

use std::ops::Range;

use half::f16;

use super::kernels::Isa;
use super::kernels::attention::{
    Cached, Chunk, Q8_0, Span, chunk as attend_chunk, finish, merge, prepare, record_len, sink_record,
    whole_keys,
};
use super::kv::KvCache;
use super::memory::{Memory, Shared};
use super::pool::{Claims, Pool, Tasks, Worker};
use super::step::{SMALL, StepRows};
use crate::Result;
use crate::backend::{Attention, KvShape, KvType, PAGE_LEN};

/// Most query vectors of a unit.
const QUERIES: usize = 64;

/// Records for chunks that are merged afterwards, per KV page.
const RECORDS_PER_PAGE: usize = 128;

/// Memory of the attention, allocated once.
pub struct Scratch {
    memory: Memory,
    /// f32 of a thread's part.
    worker_len: usize,
    queries_len: usize,
    keys_len: usize,
    /// f32 of the longest record.
    record_len: usize,
    /// Where the shared records begin, and how many f32 they may take.
    shared: Range<usize>,
    blocks: Vec<Block>,
}

/// Consecutive rows of one sequence, with the chunks that they see.
#[derive(Clone, Debug)]
struct Block {
    rows: Range<usize>,
    chunks: Range<usize>,
    /// Chunks of the blocks before.
    chunks_before: usize,
}

/// One call on the current step.
pub struct Call<'a> {
    /// Kernels to use.
    pub isa: Isa,
    /// Keys and values.
    pub cache: &'a KvCache,
    /// Layer of the cache.
    pub layer: usize,
    /// The step.
    pub step: &'a StepRows,
    /// [rows, heads * key_dim]
    pub query: Shared<f32>,
    /// [rows, heads * value_dim]
    pub to: Shared<f32>,
    /// Heads, scale, window.
    pub attention: Attention,
    /// [heads], see [`Attention::sinks`].
    pub sinks: Option<&'a [f32]>,
}

/// A block and some query heads of one kv head.
struct Unit<'a> {
    block: &'a Block,
    kv_head: usize,
    /// First query head.
    head: usize,
    /// Query heads.
    heads: usize,
}

/// A thread's scratch memory.
struct Local {
    /// [QUERIES], made ready
    queries: *mut u8,
    /// Of a chunk, put together
    keys: *mut u8,
    /// [2 * QUERIES, PAGE_LEN]
    scores: *mut f32,
    /// [QUERIES] of the present chunk
    records: *mut f32,
    /// [QUERIES] of all chunks so far
    states: *mut f32,
    /// One, of a sink
    sink: *mut f32,
}

impl Scratch {
    /// For `threads` threads, steps of `rows` rows and `pages` pages of this cache.
    ///
    /// # Errors
    /// The system refuses the memory.
    pub fn new(cache: &KvCache, threads: usize, rows: usize, pages: usize) -> Result<Self> {
        let layers = cache.layers.iter();
        let query =
            layers.clone().map(|layer| query_bytes(cache.kind, layer.shape.key_dim)).max().unwrap_or(0);
        let in_keys = layers.clone().filter(|layer| layer.shape.value_in_key);
        let keys =
            in_keys.map(|layer| PAGE_LEN * cache.kind.key_bytes(layer.shape.key_dim)).max().unwrap_or(0);
        let record = layers.map(|layer| record_len(layer.value_stride)).max().unwrap_or(0);
        let [queries_len, keys_len] =
            [QUERIES * query, keys].map(|bytes| (bytes / size_of::<f32>()).next_multiple_of(16));
        let worker_len = queries_len + keys_len + QUERIES * 2 * (PAGE_LEN + record) + record;
        let shared = threads * worker_len..threads * worker_len + RECORDS_PER_PAGE * pages * record;
        let memory = Memory::floats(shared.end, "attention")?;
        let blocks = Vec::with_capacity(rows);
        Ok(Scratch { memory, worker_len, queries_len, keys_len, record_len: record, shared, blocks })
    }
}

/// The chunks of all blocks.
fn chunks_of(blocks: &[Block]) -> usize {
    blocks.last().map_or(0, |last| last.chunks_before + last.chunks.len())
}

/// Bytes of records that the decoding of one sequence leaves for a KV page of this shape.
pub fn page_bytes(shape: KvShape, kv_type: KvType, heads: usize) -> usize {
    heads.min(RECORDS_PER_PAGE) * record_len(shape.value_stride(kv_type)) * size_of::<f32>()
}

/// Bytes of a query that was made ready.
fn query_bytes(kind: KvType, key_dim: usize) -> usize {
    match kind {
        KvType::F32 => f32::query_bytes(key_dim),
        KvType::F16 => f16::query_bytes(key_dim),
        KvType::Q8_0 => Q8_0::query_bytes(key_dim),
    }
}

impl Call<'_> {
    fn shape(&self) -> KvShape {
        self.cache.layers[self.layer].shape
    }

    fn value_stride(&self) -> usize {
        self.cache.layers[self.layer].value_stride
    }

    fn query_bytes(&self) -> usize {
        query_bytes(self.cache.kind, self.shape().key_dim)
    }

    fn record(&self) -> usize {
        record_len(self.value_stride())
    }

    /// Query heads of a kv head.
    fn group(&self) -> usize {
        self.attention.heads / self.shape().heads
    }

    /// Units that share a kv head's rows: 1 unless a group has more than QUERIES heads.
    fn parts(&self) -> usize {
        self.group().div_ceil(QUERIES)
    }

    fn units_per_block(&self) -> usize {
        self.shape().heads * self.parts()
    }

    fn unit<'b>(&self, block: &'b Block, index: usize) -> Unit<'b> {
        let (group, parts) = (self.group(), self.parts());
        let (kv_head, part) = (index / parts, index % parts);
        let (from, to) = (part * group / parts, (part + 1) * group / parts);
        Unit { block, kv_head, head: kv_head * group + from, heads: to - from }
    }

    /// The chunks that hold the positions a row sees.
    fn chunks(&self, row: usize) -> Range<usize> {
        let seen = self.seen(row);
        seen.start / PAGE_LEN..seen.end.div_ceil(PAGE_LEN)
    }

    /// The positions that a row sees.
    fn seen(&self, row: usize) -> Range<usize> {
        let end = self.step.rows[row].position + 1;
        end.saturating_sub(self.attention.window.unwrap_or(usize::MAX).max(1))..end
    }

    /// Cuts the step's rows into blocks.
    fn cut(&self, blocks: &mut Vec<Block>) {
        let most = (QUERIES / self.group().div_ceil(self.parts())).max(1);
        let rows = &self.step.rows;
        let (mut from, mut chunks_before) = (0, 0);
        blocks.clear();
        while from < rows.len() {
            let same = rows[from..].iter().take_while(|row| row.sequence == rows[from].sequence).count();
            let to = from + same.min(most);
            let chunks = self.chunks(from).start..self.chunks(to - 1).end;
            chunks_before += chunks.len();
            blocks.push(Block { rows: from..to, chunks_before: chunks_before - chunks.len(), chunks });
            from = to;
        }
    }

    /// Executes the call.
    pub fn run(&self, pool: &Pool, scratch: &mut Scratch) {
        self.cut(&mut scratch.blocks);
        let start = scratch.memory.shared::<f32>();
        let scratch = &*scratch;
        let blocks = &scratch.blocks[..];
        let chunks = chunks_of(blocks);
        let width = self.shape().key_dim + self.shape().value_dim;
        let rows_of_block = blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
        let slots = rows_of_block * self.group().div_ceil(self.parts()); // records of an item
        let units = blocks.len() * self.units_per_block();
        let items = chunks * self.units_per_block();
        let fits = items * slots * self.record() <= scratch.shared.len();

        if chunks * PAGE_LEN * self.attention.heads * rows_of_block * width < SMALL {
            pool.solo(|worker| {
                self.whole_units(blocks, Tasks::new(units, 1, 1).claims(worker), scratch.local(start, worker))
            });
        } else if units >= 4 * pool.threads() || !fits {
            let tasks = Tasks::new(units, 1, pool.threads());
            pool.run(|worker| self.whole_units(blocks, tasks.claims(worker), scratch.local(start, worker)));
        } else {
            let tasks = Tasks::new(items, 1, pool.threads());
            let merges = Tasks::new(units * slots, 1, pool.threads());
            pool.run(|worker| {
                // SAFETY: the shared records lie in the memory, and `fits`.
                let shared = Shared::from(unsafe { start.at(scratch.shared.start) });
                self.single_chunks(blocks, tasks.claims(worker), slots, scratch.local(start, worker), shared);
                worker.wait(&tasks);
                self.merge_chunks(
                    blocks,
                    merges.claims(worker),
                    slots,
                    scratch.local(start, worker).sink,
                    shared,
                );
            });
        }
    }

    /// Takes units, last (longest) first in each thread's share; goes through all chunks of each.
    fn whole_units(&self, blocks: &[Block], claims: Claims, local: Local) {
        let record = self.record();
        for range in claims {
            for task in range {
                let block = &blocks[blocks.len() - 1 - task % blocks.len()];
                let unit = self.unit(block, task / blocks.len());
                self.prepare_queries(&unit, local.queries);
                for chunk in unit.block.chunks.clone() {
                    let next = (chunk + 1 < unit.block.chunks.end).then(|| self.cached(&unit, chunk + 1));
                    let rows = self.attend(&unit, chunk, next, &local, local.records);
                    for (i, row) in rows.enumerate() {
                        let first = self.chunks(row).start == chunk;
                        for head in 0..unit.heads {
                            let state = ((row - unit.block.rows.start) * unit.heads + head) * record;
                            // SAFETY: a unit has at most QUERIES query vectors, and so many records has `local`.
                            unsafe {
                                let next = local.records.add((i * unit.heads + head) * record);
                                let state = local.states.add(state);
                                if first {
                                    std::ptr::copy_nonoverlapping(next, state, record);
                                } else {
                                    merge(self.isa, state, next, self.value_stride());
                                }
                            }
                        }
                    }
                }
                for query in 0..unit.block.rows.len() * unit.heads {
                    // SAFETY: as above.
                    self.finish(&unit, query, unsafe { local.states.add(query * record) }, local.sink);
                }
            }
        }
    }

    /// Takes single chunks of units; leaves `slots` records for each.
    fn single_chunks(
        &self,
        blocks: &[Block],
        mut claims: Claims,
        slots: usize,
        local: Local,
        shared: Shared<f32>,
    ) {
        let mut present = None; // the unit whose queries are in `local`
        // A look at the next item claims it: so it is this thread's own that is asked for ahead.
        // `claims` outlives the iterator, which lets go of what it iterates over before its last item is done.
        let mut items = claims.by_ref().flatten().map(|item| (item, self.item(blocks, item))).peekable();
        while let Some((item, (unit, chunk))) = items.next() {
            let queries = (unit.block.rows.start, unit.head);
            if present.replace(queries) != Some(queries) {
                self.prepare_queries(&unit, local.queries);
            }
            let next = items.peek().map(|(_, (unit, chunk))| self.cached(unit, *chunk));
            let first = self.rows(&unit, chunk).start - unit.block.rows.start;
            // SAFETY: item < items, and `fits`.
            let records = unsafe { shared.at((item * slots + first * unit.heads) * self.record()) };
            self.attend(&unit, chunk, next, &local, records);
        }
    }

    /// Items run over heads, for each over blocks, in a block over chunks.
    fn item<'b>(&self, blocks: &'b [Block], item: usize) -> (Unit<'b>, usize) {
        let chunks = chunks_of(blocks);
        let (index, within) = (item / chunks, item % chunks);
        let block = &blocks[blocks.partition_point(|block| block.chunks_before <= within) - 1];
        (self.unit(block, index), block.chunks.start + within - block.chunks_before)
    }

    /// Keys and values of a unit's chunk.
    fn cached(&self, unit: &Unit, chunk: usize) -> Chunk {
        let sequence = self.step.rows[unit.block.rows.start].sequence;
        self.cache.chunk(self.layer, self.step.page(sequence, chunk), unit.kv_head)
    }

    /// The same, ready for the kernels, with what they ask for ahead.
    fn cached_ahead(&self, unit: &Unit, chunk: usize, next: Option<Chunk>, local: &Local) -> Chunk {
        let mut cached = self.cached(unit, chunk);
        let next = next.unwrap_or(cached);
        cached.next_keys = next.keys;
        if !self.shape().value_in_key {
            return Chunk { next_values: next.values, ..cached };
        }
        let put_together = match self.cache.kind {
            KvType::F32 => whole_keys::<f32>,
            KvType::F16 => whole_keys::<f16>,
            KvType::Q8_0 => whole_keys::<Q8_0>,
        };
        // SAFETY: `local` has room for the keys of a chunk; the page is the cache's.
        unsafe { put_together(self.isa, cached, local.keys) };
        // whole keys are as long as a head's keys and values, which lie one behind the other: all are asked for with them
        Chunk { keys: local.keys, key_dim: self.shape().key_dim, ..cached }
    }

    /// Merges what `single_chunks` left, query by query.
    fn merge_chunks(
        &self,
        blocks: &[Block],
        claims: Claims,
        slots: usize,
        sink: *mut f32,
        shared: Shared<f32>,
    ) {
        for range in claims {
            for task in range {
                let (index, query) = (task / slots, task % slots);
                let block = &blocks[index % blocks.len()];
                let unit = self.unit(block, index / blocks.len());
                if query >= block.rows.len() * unit.heads {
                    continue;
                }
                let first_item = index / blocks.len() * chunks_of(blocks) + block.chunks_before;
                let mut chunks = self.chunks(block.rows.start + query / unit.heads);
                // SAFETY: the items' records, which were waited for; a query belongs to one task.
                let record = |chunk: usize| unsafe {
                    let item = first_item + chunk - block.chunks.start;
                    shared.at((item * slots + query) * self.record())
                };
                let state = record(chunks.next().unwrap_or(block.chunks.start));
                for chunk in chunks {
                    // SAFETY: as above.
                    unsafe { merge(self.isa, state, record(chunk), self.value_stride()) };
                }
                self.finish(&unit, query, state, sink);
            }
        }
    }

    /// Makes the unit's query vectors ready.
    fn prepare_queries(&self, unit: &Unit, to: *mut u8) {
        let (isa, key_dim, scale) = (self.isa, self.shape().key_dim, self.attention.scale);
        let prepare = match self.cache.kind {
            KvType::F32 => prepare::<f32>,
            KvType::F16 => prepare::<f16>,
            KvType::Q8_0 => prepare::<Q8_0>,
        };
        for (i, row) in unit.block.rows.clone().enumerate() {
            let from = (row * self.attention.heads + unit.head) * key_dim; // a row's heads lie side by side
            // SAFETY: row and heads are of the query buffer; `to` has room for QUERIES vectors.
            unsafe {
                let to = to.add(i * unit.heads * self.query_bytes());
                prepare(isa, self.query.at(from), unit.heads, key_dim, scale, to);
            }
        }
    }

    /// The rows of a unit that see something of a chunk: positions ascend, so they are consecutive.
    fn rows(&self, unit: &Unit, chunk: usize) -> Range<usize> {
        let rows = unit.block.rows.clone();
        let from = rows.clone().take_while(|&row| self.chunks(row).end <= chunk).count();
        let seeing = rows.clone().skip(from).take_while(|&row| self.chunks(row).start <= chunk).count();
        rows.start + from..rows.start + from + seeing
    }

    /// One chunk for the unit's rows that see it; their records go to `records`, one after the other. `next`: the chunk
    /// that this thread reads next.
    fn attend(
        &self,
        unit: &Unit,
        chunk: usize,
        next: Option<Chunk>,
        local: &Local,
        records: *mut f32,
    ) -> Range<usize> {
        let rows = self.rows(unit, chunk);
        if rows.is_empty() {
            return rows; // a window, and rows that lie far apart
        }
        let mut spans = [Span { from: 0, to: 0 }; QUERIES];
        for (span, row) in spans.iter_mut().zip(rows.clone()) {
            let (seen, base) = (self.seen(row), chunk * PAGE_LEN);
            *span = Span { from: seen.start.saturating_sub(base), to: (seen.end - base).min(PAGE_LEN) };
        }
        let cached = self.cached_ahead(unit, chunk, next, local);
        let spans = &spans[..rows.len()];
        let skipped = (rows.start - unit.block.rows.start) * unit.heads * self.query_bytes();
        let attend = match self.cache.kind {
            KvType::F32 => attend_chunk::<f32>,
            KvType::F16 => attend_chunk::<f16>,
            KvType::Q8_0 => attend_chunk::<Q8_0>,
        };
        // SAFETY: at most QUERIES query vectors, for which `local` and `records` have room; the page is the cache's.
        unsafe {
            let queries = local.queries.add(skipped);
            attend(self.isa, cached, spans, unit.heads, queries, local.scores, records);
        }
        rows
    }

    /// Writes the result of one of a unit's query vectors. A sink is merged last, as if it were a chunk more.
    fn finish(&self, unit: &Unit, query: usize, record: *mut f32, sink: *mut f32) {
        let (row, head) = (unit.block.rows.start + query / unit.heads, unit.head + query % unit.heads);
        let width = self.shape().value_dim;
        if let Some(sinks) = self.sinks {
            // SAFETY: `sink` is a record of this thread, which nobody else uses; `record` is of this query.
            unsafe {
                sink_record(sink, self.value_stride(), sinks[head]);
                merge(self.isa, record, sink, self.value_stride());
            }
        }
        // SAFETY: row and head are of the output buffer; each is finished by one thread.
        unsafe {
            let to = self.to.at((row * self.attention.heads + head) * width);
            finish(self.isa, record, self.value_stride(), to, width);
        }
    }
}

impl Scratch {
    fn local(&self, start: Shared<f32>, worker: &Worker) -> Local {
        let record_area = QUERIES * self.record_len;
        // SAFETY: a thread's part lies in the memory, and its pieces in the part.
        unsafe {
            let queries = start.at(worker.index * self.worker_len);
            let keys = queries.add(self.queries_len);
            let scores = keys.add(self.keys_len);
            let records = scores.add(2 * QUERIES * PAGE_LEN);
            let states = records.add(record_area);
            let sink = states.add(record_area);
            Local { queries: queries.cast(), keys: keys.cast(), scores, records, states, sink }
        }
    }
}
