//! What a step brings to the device, and graphs: a step of few rows is recorded when its like comes for the second time, and from
//! then on goes to the queue as one.

use std::collections::{HashMap, HashSet};

use super::CudaBackend;
use super::attention::{FEW_ROWS, FLASH_ROWS, reach};
use super::driver::{Graph, Launch};
use super::params::{Address, Params, Rows};
use super::program::{List, Program};
use crate::Result;
use crate::backend::PAGE_LEN;

/// Graphs that are kept.
const MOST_GRAPHS: usize = 64;

/// Steps that consist of the same launches: so many rows, all of which want logits, and positions up to so many.
type Like = (usize, usize);

/// Whether a list has all of a step.
type Whole = bool;

/// How far a step is.
#[derive(Default)]
pub(super) struct Progress {
    state: State,
    like: Like,
    seen: HashSet<Like>,
    graphs: HashMap<Like, Graph>,
    programs: HashMap<Like, Program>,
    /// Whether steps of one row are programs.
    pub(super) in_programs: bool,
}

#[derive(Default)]
enum State {
    /// Launches are queued.
    #[default]
    Queueing,
    /// They are recorded from the first one on.
    Waiting,
    /// They are recorded.
    Recording,
    /// They were recorded before.
    Known(Graph),
    /// They are listed, all of the step's or those that were not run yet.
    Listing(List, Whole),
    /// They were listed before.
    Listed(Program),
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
        progress.like = like;
        progress.state = if progress.in_programs && like.0 == 1 {
            match progress.programs.get(&like) {
                Some(&program) => State::Listed(program),
                None => State::Listing(List::default(), true),
            }
        } else {
            match progress.graphs.get(&like) {
                Some(&graph) => State::Known(graph),
                None if progress.seen.insert(like) => State::Queueing,
                None => State::Waiting,
            }
        };
    }

    /// Queues, records or lists a launch, unless it is known.
    pub(super) fn put(&mut self, launch: Launch, params: &impl Params) -> Result<()> {
        if !self.fits_program(&launch) {
            self.give_up_program()?;
        }
        if let State::Listing(list, _) = &mut self.progress.state {
            list.push(launch, params.bytes());
            return Ok(());
        }
        if self.before_launch()? { self.launch_now(launch, params) } else { Ok(()) }
    }

    /// Whether attention is a program's operation.
    pub(super) fn is_program(&self) -> bool {
        matches!(self.progress.state, State::Listing(..) | State::Listed(_))
    }

    /// From here on this model's steps are launches.
    pub(super) fn give_up_program(&mut self) -> Result<()> {
        let State::Listing(list, _) = &mut self.progress.state else { return Ok(()) };
        let list = std::mem::take(list);
        self.progress.state = State::Queueing;
        self.progress.in_programs = false;
        self.launch_list(list)
    }

    /// Whether a launch is to be queued (or recorded) now.
    pub(super) fn before_launch(&mut self) -> Result<bool> {
        if let State::Waiting = self.progress.state {
            if self.progress.graphs.len() >= MOST_GRAPHS {
                self.forget_graphs();
            }
            self.driver.begin_graph()?;
            self.progress.state = State::Recording;
        }
        Ok(!matches!(self.progress.state, State::Known(_) | State::Listed(_)))
    }

    /// What was recorded or listed, now or before, goes to the queue.
    pub(super) fn finish_graph(&mut self) -> Result<()> {
        let graph = match std::mem::take(&mut self.progress.state) {
            State::Queueing | State::Waiting => return Ok(()),
            State::Known(graph) => graph,
            State::Recording => {
                let graph = self.driver.end_graph()?;
                self.progress.graphs.insert(self.progress.like, graph);
                graph
            }
            State::Listed(program) => return self.run_program(program),
            State::Listing(list, true) => return self.finish_list(list),
            State::Listing(list, false) => return self.run_list(list),
        };
        self.driver.run_graph(graph)
    }

    /// Runs what is listed so far, so that memory that it uses may move.
    pub(super) fn run_listed(&mut self) -> Result<()> {
        let State::Listing(list, whole) = &mut self.progress.state else { return Ok(()) };
        *whole &= list.is_empty();
        let list = std::mem::take(list);
        self.run_list(list)
    }

    fn finish_list(&mut self, mut list: List) -> Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        if self.progress.programs.len() >= MOST_GRAPHS {
            self.forget_graphs();
        }
        let program = list.store(&*self.driver)?;
        self.progress.programs.insert(self.progress.like, program);
        self.run_program(program)
    }

    /// Ends a step that something failed in. Memory may have moved, or be gone: every like begins anew, as a record must not
    /// allocate.
    pub(super) fn abandon_step(&mut self) {
        if let State::Recording = std::mem::take(&mut self.progress.state) {
            let _ = self.driver.end_graph();
        }
        self.forget_graphs();
        self.progress.seen.clear();
    }

    /// Graphs and programs hold addresses: once memory has moved they are of no use.
    pub(super) fn forget_graphs(&mut self) {
        self.driver.drop_graphs();
        self.progress.graphs.clear();
        for program in std::mem::take(&mut self.progress.programs).into_values() {
            self.drop_program(program);
        }
    }
}
