//! Memory is planned, devices are chosen, weights go to them.

use std::path::PathBuf;

use super::super::Quantize;
use super::super::expectation;
use super::super::memory::{self, Needs, Sizes};
use super::super::placement::Demand;
use super::super::quantize_on_load::ROOM;
use super::{ModelBuilder, Progress};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::devices::{self, Chosen, DeviceChoice, Gpu};
use crate::backend::{Backend, KvType, PAGE_LEN, Plan};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::model::{Conversion, Decoder, Hyperparameters, Reads, layer_bytes, loaded_bytes, restored_types};
use crate::quant::{BlockType, Mix};
use crate::{Error, Result};

/// Most tokens of context: what a checkpoint's header may say too.
const MOST_CONTEXT: usize = 1 << 30;

impl ModelBuilder {
    /// Whether the context is one.
    pub(super) fn check_context(&self) -> Result<()> {
        match self.context.filter(|tokens| !(1..=MOST_CONTEXT).contains(tokens)) {
            Some(tokens) => {
                Err(Error::Usage(format!("a context of {tokens} tokens: must be from 1 to {MOST_CONTEXT}")))
            }
            None => Ok(()),
        }
    }

    /// The backend with the weights on it, and the context it is planned for.
    pub(super) fn engine(&mut self, checkpoint: &Checkpoint, h: &Hyperparameters) -> Result<Loaded> {
        let Chosen { gpus, notice } = match self.gpu_layers {
            Some(0) => DeviceChoice::Cpu.open()?,
            _ => self.device.open()?,
        };
        let notice = match self.gpu_layers {
            Some(layers @ 1..) if gpus.is_empty() => {
                let why = notice.unwrap_or_else(|| match self.device {
                    DeviceChoice::Cpu => "the device is the CPU".into(),
                    _ => "there is no GPU that can be used (`pensive doctor`)".into(),
                });
                Some(format!("--gpu-layers {layers} does nothing: {why}"))
            }
            _ => notice,
        };
        self.notice(notice);
        let steps = gpus.iter().map(|gpu| gpu.rows).max();
        self.sizes.chunk = self.chunk.or(steps).unwrap_or(memory::CHUNK);
        let of_gpus: u64 = gpus.iter().map(|gpu| gpu.free_bytes).sum();
        let conversion = self.conversion(checkpoint, h, of_gpus);
        let weight_bytes = loaded_bytes(checkpoint, conversion.as_ref());
        let is_free = self.device == DeviceChoice::Auto && self.gpu_layers.is_none();
        let Planned { mut backend, context, placed } = match gpus.is_empty() {
            true => self.on_cpu(checkpoint, h, conversion.as_ref())?,
            false => match self.on_gpus(checkpoint, h, conversion.as_ref(), gpus) {
                Err(Error::Memory(why)) if is_free => {
                    self.notice(Some(format!("the GPU is not used: {why}")));
                    self.on_cpu(checkpoint, h, conversion.as_ref())?
                }
                planned => planned?,
            },
        };
        let h = &Hyperparameters { context_limit: context, ..h.clone() };
        let progress = &mut self.progress;
        let decoder =
            Decoder::load_as(checkpoint, h, conversion.as_ref(), &mut *backend, &mut |done, total| {
                progress(Progress::Load { done, total });
            })?;
        let Sizes { chunk, logit_rows, sequences, kv_type } = self.sizes;
        // as many rows as a step may have: a token of each sequence, and of one no more than it holds
        let rows = chunk.max(sequences).min(context.saturating_mul(sequences));
        let pages = memory::pages(context) * sequences;
        let plan = Plan { rows, logit_rows: logit_rows.max(sequences).min(rows), sequences, pages, kv_type };
        let engine = Engine::new(backend, decoder, plan)?;
        let quantized = conversion.map(|conversion| conversion.mix);
        Ok(Loaded { engine, context, placed, quantized, weight_bytes })
    }

    fn notice(&mut self, text: Option<String>) {
        if let Some(text) = text {
            (self.progress)(Progress::Notice(text));
        }
    }

    /// All layers on the CPU.
    fn on_cpu(
        &mut self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        conversion: Option<&Conversion>,
    ) -> Result<Planned> {
        self.sizes.chunk = self.chunk.unwrap_or(memory::CHUNK);
        let reads = Reads::of(checkpoint, h, conversion);
        // what was converted or never was in a file lies in memory once, interleaved or not
        let is_made = conversion.is_some() || self.synthetic.is_some();
        let matrices = match self.synthetic {
            Some(_) => loaded_bytes(checkpoint, None), // the embedding lies in memory too
            None => reads.matrices(),
        };
        let weights = matrices.saturating_add_signed(Decoder::made_bytes(checkpoint, h, conversion));
        let needs = Needs::new(h, weights, reads.experts_in_file, self.sizes);
        let available = memory::available_and_total_bytes().0;
        let context = self.plan_context(h, &needs, available)?;
        let in_memory = needs.weights_in_memory(context, available);
        if in_memory < weights && !is_made {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let all_experts = Needs { experts: reads.all_experts, ..needs };
            let room = all_experts.room_for_experts(context, available);
            let speed = match needs.experts {
                0 => None,
                _ => self.expected_speed(checkpoint, &reads, room)?,
            };
            self.notice(Some(format!(
                "{:.1} of {:.1} GiB of weights are read from the file as they are needed: expect {}",
                gib(weights - in_memory),
                gib(weights),
                speed.map_or("it to be slow".into(), |speed| format!("about {speed:.1} tokens/s"))
            )));
        }
        let interleaved_bytes = if is_made { u64::MAX } else { in_memory };
        let options = CpuOptions { threads: self.threads, isa: None, interleaved_bytes };
        let placed = vec![("cpu".to_owned(), h.layers)];
        Ok(Planned { backend: Box::new(CpuBackend::new(options)?), context, placed })
    }

    /// Tokens per second to expect of the CPU with so much room for experts.
    fn expected_speed(&self, checkpoint: &Checkpoint, reads: &Reads, room: u64) -> Result<Option<f64>> {
        let file = checkpoint.files.first().map(PathBuf::as_path);
        let setting = expectation::Setting { threads: self.threads, room, file };
        expectation::tokens_per_second(reads, setting)
    }

    /// Layers on GPUs as far as they fit, the others on the CPU.
    fn on_gpus(
        &mut self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        conversion: Option<&Conversion>,
        gpus: Vec<Gpu>,
    ) -> Result<Planned> {
        if self.sizes.kv_type == KvType::Q8_0 {
            return Err(Error::Usage(format!(
                "keys and values in q8_0 are for the CPU: on {} use f16 or f32, or --device cpu",
                gpus[0].label
            )));
        }
        let stores = |kind, columns| gpus[0].backend.stores(kind, columns);
        let restored = restored_types(checkpoint, conversion, stores);
        let of_use = self.context.unwrap_or(h.context_limit.min(ROOM));
        let mut demand = self.demand(checkpoint, h, conversion, &stores);
        demand.pages = memory::pages(of_use);
        let most = self.context.unwrap_or(h.context_limit);
        demand.grow(
            &gpus,
            self.gpu_layers.map_or(h.layers, |wanted| wanted.min(h.layers)),
            memory::pages(most),
        );
        let fitting = self.gpu_layers.map_or_else(|| demand.fitting(&gpus), |wanted| wanted.min(h.layers));
        if fitting == 0 {
            self.notice(Some("no layer fits into the GPU's memory: all are on the CPU".into()));
            return self.on_cpu(checkpoint, h, conversion);
        }
        let beside = most.min(demand.pages * PAGE_LEN);
        let available = memory::available_and_total_bytes().0;
        let context = match h.layers - fitting {
            0 => beside,
            on_cpu => demand.of_cpu(on_cpu).context(self.context, beside, available, self.force)?,
        };
        demand.pages = memory::pages(context);
        let placement = demand.place(gpus, self.gpu_layers, self.force)?;
        if placement.on_cpu > 0 {
            self.sizes.chunk = self.chunk.unwrap_or(memory::CHUNK);
        }
        self.context_notice(h, context);
        self.notice(placement.notice());
        if !restored.is_empty() {
            let types = restored.iter().map(|(from, to)| format!("{from} as {to}")).collect::<Vec<_>>();
            let all = demand.weights.layers.iter().sum::<u64>() + demand.weights.output;
            self.notice(Some(format!(
                "{} does not know some types of the weights and holds {}: the layers take {:.1} GiB",
                placement.gpus[0].0.label,
                types.join(", "),
                all as f64 / f64::from(1 << 30)
            )));
        }
        let is_made = conversion.is_some() || self.synthetic.is_some();
        let needs = demand.of_cpu(placement.on_cpu);
        let interleaved_bytes = if is_made { u64::MAX } else { needs.weights_in_memory(context, available) };
        let options = CpuOptions { threads: self.threads, isa: None, interleaved_bytes };
        let placed = placement.placed();
        Ok(Planned { backend: placement.backend(options)?, context, placed })
    }

    /// What layers take on GPUs, which store matrices as told, and on the CPU; without a context yet.
    fn demand(
        &self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        conversion: Option<&Conversion>,
        stores: &dyn Fn(BlockType, usize) -> BlockType,
    ) -> Demand {
        let weights = layer_bytes(checkpoint, conversion, h, Some(stores));
        let mut on_cpu = layer_bytes(checkpoint, conversion, h, None);
        if self.synthetic.is_some() || Reads::of(checkpoint, h, conversion).experts_in_file == 0 {
            on_cpu.experts.fill(0); // none may stay in a file
        }
        let Needs { buffers, page, .. } = Needs::new(h, 0, 0, self.sizes);
        // of each row what its experts make, and once more as f16 what the last of their matrices takes
        let of_experts = h.experts.as_ref().map_or(0, |e| {
            let values = 4 * (2 * e.feed_forward + h.width) + 2 * e.feed_forward;
            self.sizes.chunk * e.routing.used * values
        });
        Demand {
            page: page.div_ceil(h.layers as u64),
            cpu_buffers: buffers,
            buffers: buffers + weights.widened + devices::SCORE_BYTES + of_experts as u64,
            page_buffers: devices::gathered_page_bytes(h.kv_shape()),
            pages: 0,
            weights,
            on_cpu,
        }
    }

    /// What weights are converted to, and says so if nobody asked for it. `of_gpus`: bytes of GPUs that are free.
    fn conversion(
        &mut self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        of_gpus: u64,
    ) -> Option<Conversion> {
        let available = match of_gpus {
            0 => memory::available_and_total_bytes().0,
            bytes => bytes,
        };
        let context = self.context.unwrap_or(h.context_limit.min(ROOM));
        let fits = |weights| Needs::new(h, weights, 0, self.sizes).total(context) <= available / 4 * 3;
        let conversion = self.quantize.conversion(checkpoint, h, fits)?;
        if self.quantize == Quantize::Auto {
            self.notice(Some(format!(
                "the weights are quantized to {} while they are loaded: as they are stored they take {:.1} of {:.1} GiB of \
                 memory that are available; --quantize none leaves them as they are",
                conversion.mix.name,
                loaded_bytes(checkpoint, None) as f64 / f64::from(1 << 30),
                available as f64 / f64::from(1 << 30)
            )));
        }
        Some(conversion)
    }

    /// The context: as asked for, or what fits.
    fn plan_context(&mut self, h: &Hyperparameters, needs: &Needs, available: u64) -> Result<usize> {
        let context = needs.context(self.context, h.context_limit, available, self.force)?;
        self.context_notice(h, context);
        Ok(context)
    }

    fn context_notice(&mut self, h: &Hyperparameters, context: usize) {
        if self.context.is_none() && context < h.context_limit {
            self.notice(Some(format!(
                "the context is {context} tokens, what fits into memory (the model's own is {})",
                h.context_limit
            )));
        } else if self.context.is_none() && h.context_limit < h.context {
            self.notice(Some(format!(
                "the context is {context} tokens, for which the model encodes positions best; --context gives up to {}",
                h.context
            )));
        } else if context > h.context {
            self.notice(Some(format!(
                "a context of {context} tokens is more than the {} that the model was made for",
                h.context
            )));
        }
    }
}

/// A backend without weights, and what it was made for.
struct Planned {
    backend: Box<dyn Backend>,
    context: usize,
    placed: Vec<(String, usize)>,
}

/// What [`ModelBuilder::engine`] made.
pub(super) struct Loaded {
    pub engine: Engine,
    pub context: usize,
    /// See [`Model::placed`](super::Model::placed).
    pub placed: Vec<(String, usize)>,
    pub quantized: Option<Mix>,
    pub weight_bytes: u64,
}
