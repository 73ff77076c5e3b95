//! Memory is planned, devices are chosen, weights go to them.

use std::path::PathBuf;

use super::super::Quantize;
use super::super::expectation;
use super::super::memory::{self, Needs};
use super::super::placement::Demand;
use super::super::quantize_on_load::ROOM;
use super::{ModelBuilder, Progress};
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::devices::{Chosen, DeviceChoice, Gpu};
use crate::backend::{Backend, KvType, Plan};
use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::model::{Conversion, Decoder, Hyperparameters, Reads, layer_bytes, loaded_bytes, restored_types};
use crate::quant::Mix;
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
        self.notice(notice);
        let of_gpus: u64 = gpus.iter().map(|gpu| gpu.free_bytes).sum();
        let conversion = self.conversion(checkpoint, h, of_gpus);
        let weight_bytes = loaded_bytes(checkpoint, conversion.as_ref());
        let (mut backend, context) = if gpus.is_empty() {
            self.on_cpu(checkpoint, h, conversion.as_ref())?
        } else {
            self.on_gpus(checkpoint, h, conversion.as_ref(), gpus)?
        };
        let h = &Hyperparameters { context_limit: context, ..h.clone() };
        let progress = &mut self.progress;
        let decoder =
            Decoder::load_as(checkpoint, h, conversion.as_ref(), &mut *backend, &mut |done, total| {
                progress(Progress::Load { done, total });
            })?;
        let plan = Plan {
            rows: self.sizes.chunk.min(context),
            logit_rows: self.sizes.logit_rows.max(self.sizes.sequences).min(self.sizes.chunk).min(context),
            sequences: self.sizes.sequences,
            pages: memory::pages(context) * self.sizes.sequences,
            kv_type: self.sizes.kv_type,
        };
        let engine = Engine::new(backend, decoder, plan)?;
        Ok(Loaded { engine, context, quantized: conversion.map(|conversion| conversion.mix), weight_bytes })
    }

    fn notice(&mut self, text: Option<String>) {
        if let Some(text) = text {
            (self.progress)(Progress::Notice(text));
        }
    }

    /// All layers on the CPU; the backend and the context.
    fn on_cpu(
        &mut self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        conversion: Option<&Conversion>,
    ) -> Result<(Box<dyn Backend>, usize)> {
        let reads = Reads::of(checkpoint, h, conversion);
        // what was converted or never was in a file lies in memory once, interleaved or not
        let is_made = conversion.is_some() || self.synthetic.is_some();
        let matrices = match self.synthetic {
            Some(_) => loaded_bytes(checkpoint, None), // the embedding lies in memory too
            None => reads.matrices(),
        };
        let weights = matrices + Decoder::made_bytes(checkpoint, h);
        let experts = if is_made { 0 } else { reads.all_experts };
        let needs = Needs::new(h, weights, experts, self.sizes);
        let available = memory::available_and_total_bytes().0;
        let context = self.plan_context(h, &needs, available)?;
        let in_memory = needs.weights_in_memory(context, available);
        if in_memory < weights && !is_made {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            let speed = match experts {
                0 => None,
                _ => self.expected_speed(checkpoint, &reads, needs.room_for_experts(context, available))?,
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
        Ok((Box::new(CpuBackend::new(options)?), context))
    }

    /// Tokens per second to expect of the CPU with so much room for experts.
    fn expected_speed(&self, checkpoint: &Checkpoint, reads: &Reads, room: u64) -> Result<Option<f64>> {
        let file = checkpoint.files.first().map(PathBuf::as_path);
        let setting = expectation::Setting { threads: self.threads, room, file };
        expectation::tokens_per_second(reads, setting)
    }

    /// Layers on GPUs as far as they fit, the others on the CPU; the backend and the context.
    fn on_gpus(
        &mut self,
        checkpoint: &Checkpoint,
        h: &Hyperparameters,
        conversion: Option<&Conversion>,
        gpus: Vec<Gpu>,
    ) -> Result<(Box<dyn Backend>, usize)> {
        if self.sizes.kv_type == KvType::Q8_0 {
            return Err(Error::Usage(format!(
                "keys and values in q8_0 are for the CPU: on {} use f16 or f32, or --device cpu",
                gpus[0].label
            )));
        }
        let stores = |kind, columns| gpus[0].backend.stores(kind, columns);
        let weights = layer_bytes(checkpoint, conversion, h, stores);
        let restored = restored_types(checkpoint, conversion, stores);
        let all = weights.layers.iter().sum::<u64>() + weights.output;
        let needs = Needs::new(h, all, 0, self.sizes);
        let mut demand = Demand { weights, kv: 0, buffers: needs.buffers };
        // a context that fits beside all layers goes before layers on the CPU, as long as it is of use
        let (room, available) = (demand.room(&gpus), memory::available_and_total_bytes().0);
        let of_use = self.context.unwrap_or(h.context_limit.min(ROOM));
        let all_fit = self.gpu_layers.is_none_or(|layers| layers >= h.layers)
            && Needs { buffers: 0, ..needs }.total(of_use) <= room;
        let context = match all_fit {
            true => self.plan_context(h, &Needs { buffers: 0, ..needs }, room)?,
            false => self.plan_context(h, &needs, room.saturating_add(available))?,
        };
        demand.kv = memory::pages(context) as u64 * needs.page / h.layers as u64;
        let placement = demand.place(gpus, self.gpu_layers, self.force)?;
        self.notice(placement.notice());
        if !restored.is_empty() && !placement.gpus.is_empty() {
            let types = restored.iter().map(|(from, to)| format!("{from} as {to}")).collect::<Vec<_>>();
            self.notice(Some(format!(
                "{} does not know some types of the weights and holds {}: the layers take {:.1} GiB",
                placement.gpus[0].0.label,
                types.join(", "),
                all as f64 / f64::from(1 << 30)
            )));
        }
        let on_cpu: u64 = demand.weights.layers[..placement.on_cpu].iter().sum();
        let beside = placement.on_cpu as u64 * demand.kv + needs.buffers;
        let interleaved_bytes = match conversion {
            None if on_cpu + beside > available => (available - available / 8).saturating_sub(beside),
            _ => u64::MAX,
        };
        let options = CpuOptions { threads: self.threads, isa: None, interleaved_bytes };
        Ok((placement.backend(options)?, context))
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
        if self.context.is_none() && context < h.context_limit {
            self.notice(Some(format!(
                "the context is {context} tokens, what fits into memory (the model's own is {})",
                h.context_limit
            )));
        } else if context > h.context {
            self.notice(Some(format!(
                "a context of {context} tokens is more than the {} that the model was made for",
                h.context
            )));
        }
        Ok(context)
    }
}

/// What [`ModelBuilder::engine`] made.
pub(super) struct Loaded {
    pub engine: Engine,
    pub context: usize,
    pub quantized: Option<Mix>,
    pub weight_bytes: u64,
}
