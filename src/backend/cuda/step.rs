//! What a step brings to the device, and graphs: a step of few rows is recorded when its like comes for the second time, and from
//! then on goes to the queue as one.

use std::collections::{HashMap, HashSet};

use super::CudaBackend;
use super::attention::{FEW_ROWS, FLASH_ROWS, reach};
use super::driver::Graph;
use super::params::{Address, Rows};
use crate::Result;
use crate::backend::PAGE_LEN;

/// Graphs that are kept.
const MOST_GRAPHS: usize = 64;

/// Steps that consist of the same launches: so many rows, all of which want logits, and positions up to so many.
type Like = (usize, usize);

/// How far a step is.
#[derive(Default)]
pub(super) struct Progress {
    state: State,
    seen: HashSet<Like>,
    graphs: HashMap<Like, Graph>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// Launches are queued.
    #[default]
    Queueing,
    /// They are recorded from the first one on.
    Waiting(Like),
    /// They are recorded.
    Recording(Like),
    /// They were recorded before.
    Known(Graph),
}

impl CudaBackend {
    /// Brings a step's rows to the device.
    pub(super) fn begin_step(&mut self) -> Result<()> {
        self.progress.state = State::Queueing;
        let last = self.rows.iter().map(|row| row.position).max().unwrap_or(0);
        self.know_angles(last);
        let pairs = self.ready().rope.inverse_frequencies.len();
        let mut numbers: Vec<u32> = Vec::new();
        let mut starts = Vec::new();
        let mut tables = 0;
        for table in &self.tables {
            starts.push(tables);
            tables += table.len() as u32;
        }
        numbers.extend(self.rows.iter().flat_map(|row| [starts[row.sequence], row.position as u32]));
        let slots = numbers.len();
        numbers.extend(self.rows.iter().map(|row| {
            let page = self.tables[row.sequence][row.position / PAGE_LEN];
            page * PAGE_LEN as u32 + (row.position % PAGE_LEN) as u32
        }));
        let angles = numbers.len();
        for row in &self.rows {
            let of_row = &self.ready().angles[row.position * 2 * pairs..][..2 * pairs];
            numbers.extend(of_row.iter().map(|angle| angle.to_bits()));
        }
        let wanted = numbers.len();
        let wants = self.rows.iter().zip(0u32..).filter(|(row, _)| row.wants_logits);
        numbers.extend(wants.map(|(_, i)| i));
        let tiles = numbers.len();
        let mut first = 0;
        // few rows make no tiles, so that their numbers stand at the same places each time
        let tiled = if self.rows.len() > FEW_ROWS { &self.rows[..] } else { &[] };
        for rows in tiled.chunk_by(|a, b| a.sequence == b.sequence && a.position + 1 == b.position) {
            for tile in rows.chunks(FLASH_ROWS) {
                numbers.extend([first, tile.len() as u32]);
                first += tile.len() as u32;
            }
        }
        let tables = numbers.len();
        numbers.extend(self.tables.iter().flatten());

        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let at = self.room(bytes.len(), |this| &mut this.scratch.step)?;
        self.driver.upload(at, &bytes)?;
        let place = |index: usize| at + 4 * index as Address;
        self.on_device =
            Rows { places: at, slots: place(slots), tables: place(tables), angles: place(angles) };
        self.wanted = place(wanted);
        self.tiles = (place(tiles), (tables - tiles) / 2);

        let all_want = self.rows.iter().all(|row| row.wants_logits);
        if self.rows.len() <= FEW_ROWS && all_want {
            self.look_up((self.rows.len(), reach(last)));
        }
        Ok(())
    }

    /// Positions' cosines and sines up to this one: in f64, as on the CPU.
    fn know_angles(&mut self, last: usize) {
        let ready = self.ready.as_mut().expect("checked by `begin`");
        let width = 2 * ready.rope.inverse_frequencies.len();
        let known = ready.angles.len().checked_div(width).unwrap_or(last + 1);
        for position in known..=last {
            for part in 0..2 {
                for frequency in &ready.rope.inverse_frequencies {
                    let (sin, cos) = libm::sincos(position as f64 * frequency);
                    ready.angles.push(([cos, sin][part] * ready.rope.magnitude) as f32);
                }
            }
        }
    }

    fn look_up(&mut self, like: Like) {
        let progress = &mut self.progress;
        progress.state = match progress.graphs.get(&like) {
            Some(&graph) => State::Known(graph),
            None if progress.seen.insert(like) => State::Queueing,
            None => State::Waiting(like),
        };
    }

    /// Whether a launch is to be queued (or recorded) now.
    pub(super) fn before_launch(&mut self) -> Result<bool> {
        if let State::Waiting(like) = self.progress.state {
            if self.progress.graphs.len() >= MOST_GRAPHS {
                self.forget_graphs();
            }
            self.driver.begin_graph()?;
            self.progress.state = State::Recording(like);
        }
        Ok(!matches!(self.progress.state, State::Known(_)))
    }

    /// What was recorded, now or before, goes to the queue.
    pub(super) fn finish_graph(&mut self) -> Result<()> {
        let graph = match std::mem::take(&mut self.progress.state) {
            State::Queueing | State::Waiting(_) => return Ok(()),
            State::Known(graph) => graph,
            State::Recording(like) => {
                let graph = self.driver.end_graph()?;
                self.progress.graphs.insert(like, graph);
                graph
            }
        };
        self.driver.run_graph(graph)
    }

    /// Ends a step that something failed in. Memory may have moved, or be gone: every like begins anew, as a record must not
    /// allocate.
    pub(super) fn abandon_step(&mut self) {
        if let State::Recording(_) = std::mem::take(&mut self.progress.state) {
            let _ = self.driver.end_graph();
        }
        self.forget_graphs();
        self.progress.seen.clear();
    }

    /// Graphs hold addresses: once memory has moved they are of no use.
    pub(super) fn forget_graphs(&mut self) {
        self.driver.drop_graphs();
        self.progress.graphs.clear();
    }
}
