//! Which layers go to which device.

use super::memory::Needs;
use crate::backend::Backend;
use crate::backend::cpu::{CpuBackend, CpuOptions};
use crate::backend::devices::Gpu;
use crate::backend::split::SplitBackend;
use crate::model::LayerBytes;
use crate::{Error, Result};

/// Bytes of a GPU that stay free: for the driver, libraries and what operations make on the way.
const RESERVE: u64 = 512 << 20;

/// What a model takes of devices.
pub(super) struct Demand {
    /// Weights as GPUs hold them.
    pub weights: LayerBytes,
    /// Weights as the CPU holds them; of experts those count that may stay in the file.
    pub on_cpu: LayerBytes,
    /// Keys and values of a layer, for each page of the context.
    pub page: u64,
    /// Activations on the CPU.
    pub cpu_buffers: u64,
    /// Activations and what operations make on the way, on each GPU.
    pub buffers: u64,
    /// The same that grows with the context: for each page.
    pub page_buffers: u64,
    /// The context.
    pub pages: usize,
}

/// A number of last layers on GPUs, in order; the others are the CPU's.
pub(super) struct Placement {
    /// With their layers, none without.
    pub gpus: Vec<(Gpu, usize)>,
    /// First layers, which stay on the CPU.
    pub on_cpu: usize,
}

impl Demand {
    fn layers(&self) -> usize {
        self.weights.layers.len()
    }

    /// Bytes of layer i and its keys and values; the last one has the output matrix beside it.
    fn layer(&self, i: usize) -> u64 {
        let output = if i + 1 == self.layers() { self.weights.output } else { 0 };
        self.weights.layers[i] + output + (self.pages as u64).saturating_mul(self.page)
    }

    fn capacity(&self, gpu: &Gpu) -> u64 {
        let on_the_way = (self.pages as u64).saturating_mul(self.page_buffers);
        gpu.free_bytes.saturating_sub((RESERVE + self.buffers).saturating_add(on_the_way))
    }

    /// How many of the last layers fit into GPUs.
    pub fn fitting(&self, gpus: &[Gpu]) -> usize {
        let capacities: Vec<u64> = gpus.iter().map(|gpu| self.capacity(gpu)).collect();
        self.fill(&capacities, self.layers()).iter().sum()
    }

    /// Gives the context the most pages, up to `most`, beside which `wanted` layers fit into GPUs: layers go before a
    /// longer context, where they fit at all.
    pub fn grow(&mut self, gpus: &[Gpu], wanted: usize, most: usize) {
        let (mut least, mut most) = (self.pages, most);
        while least < most {
            self.pages = least + (most - least).div_ceil(2);
            if self.fitting(gpus) >= wanted {
                least = self.pages;
            } else {
                most = self.pages - 1;
            }
        }
        self.pages = least;
    }

    /// What the CPU needs for the first layers.
    pub fn of_cpu(&self, layers: usize) -> Needs {
        let LayerBytes { layers: weights, experts, .. } = &self.on_cpu;
        Needs {
            weights: weights[..layers].iter().sum(),
            experts: experts[..layers].iter().sum(),
            buffers: self.cpu_buffers,
            page: layers as u64 * self.page,
        }
    }

    /// Shares the layers out: as many as fit, or `wanted`.
    ///
    /// # Errors
    /// [`Error::Memory`] where `wanted` do not fit, unless `force`.
    pub fn place(&self, gpus: Vec<Gpu>, wanted: Option<usize>, force: bool) -> Result<Placement> {
        let layers = self.layers();
        let fitting = self.fitting(&gpus);
        let wanted = wanted.map_or(fitting, |wanted| wanted.min(layers));
        if wanted > fitting && !force {
            return Err(Error::Memory(format!(
                "--gpu-layers {wanted}: {fitting} of {layers} layers fit into {}; a smaller --context makes room, --force \
                 tries all the same",
                gpus.iter().map(|gpu| gpu.label.as_str()).collect::<Vec<_>>().join(", ")
            )));
        }
        let capacities: Vec<u64> = gpus.iter().map(|gpu| self.capacity(gpu)).collect();
        let counts = self.shares(&capacities, wanted);
        let gpus = gpus.into_iter().zip(counts).filter(|(_, layers)| *layers > 0).collect();
        Ok(Placement { gpus, on_cpu: layers - wanted })
    }

    /// Layers for each GPU if they are filled up one by one, the last layers first.
    fn fill(&self, capacities: &[u64], most: usize) -> Vec<usize> {
        let mut next = self.layers();
        let first = next - most;
        let mut counts = vec![0; capacities.len()];
        for (count, &capacity) in counts.iter_mut().zip(capacities).rev() {
            let mut used = 0;
            while next > first && used + self.layer(next - 1) <= capacity {
                next -= 1;
                used += self.layer(next);
                *count += 1;
            }
        }
        counts
    }

    /// The last `wanted` layers by the GPUs' shares of free memory, so that each computes a part; filled up one by one
    /// where that does not come out even.
    fn shares(&self, capacities: &[u64], wanted: usize) -> Vec<usize> {
        let layers = self.layers();
        let bytes = |range: std::ops::Range<usize>| range.map(|i| self.layer(i)).sum::<u64>();
        let (all, room) = (bytes(layers - wanted..layers), capacities.iter().sum::<u64>().max(1));
        let mut counts = Vec::new();
        let (mut next, mut room_before) = (layers - wanted, 0);
        for capacity in capacities {
            room_before += capacity;
            let target = (all as f64 * room_before as f64 / room as f64) as u64;
            let first = next;
            while next < layers && bytes(layers - wanted..next + 1) <= target {
                next += 1;
            }
            counts.push(next - first);
        }
        if let Some(last) = counts.last_mut() {
            *last += layers - next;
        }
        let mut first = layers - wanted;
        let fits = counts.iter().zip(capacities).all(|(&count, &capacity)| {
            first += count;
            bytes(first - count..first) <= capacity
        });
        let filled = self.fill(capacities, wanted);
        if !fits && filled.iter().sum::<usize>() == wanted { filled } else { counts }
    }
}

impl Placement {
    /// "28 of 36 layers are on cuda:0, the others on the CPU"; nothing where all are on one device.
    pub fn notice(&self) -> Option<String> {
        let all: usize = self.on_cpu + self.gpus.iter().map(|(_, layers)| layers).sum::<usize>();
        let part = |(gpu, layers): &(Gpu, usize)| format!("{layers} on {}", gpu.label);
        let mut parts: Vec<String> = self.gpus.iter().map(part).collect();
        match (parts.len(), self.on_cpu) {
            (0 | 1, 0) | (0, _) => return None,
            (_, 0) => {}
            (_, rest) => parts.push(format!("{rest} on the CPU")),
        }
        Some(format!("of {all} layers {}", parts.join(", ")))
    }

    /// Devices in the order of their layers, and how many each has.
    pub fn placed(&self) -> Vec<(String, usize)> {
        let first = Some(("cpu".to_owned(), self.on_cpu)).filter(|_| self.on_cpu > 0);
        let rest = self.gpus.iter().map(|(gpu, layers)| (gpu.label.clone(), *layers));
        first.into_iter().chain(rest).collect()
    }

    /// The backends as one, without weights.
    ///
    /// # Errors
    /// What the CPU's says.
    pub fn backend(self, cpu: CpuOptions) -> Result<Box<dyn Backend>> {
        let mut parts: Vec<(Box<dyn Backend>, usize)> = Vec::new();
        if self.on_cpu > 0 {
            parts.push((Box::new(CpuBackend::new(cpu)?), self.on_cpu));
        }
        parts.extend(self.gpus.into_iter().map(|(gpu, layers)| (gpu.backend, layers)));
        Ok(match parts.len() {
            1 => parts.remove(0).0,
            _ => Box::new(SplitBackend::new(parts)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn demand(layers: usize) -> Demand {
        let weights = |layer| LayerBytes {
            layers: vec![layer; layers],
            experts: vec![60 * MIB; layers],
            output: 50 * MIB,
            widened: 0,
        };
        Demand {
            weights: weights(90 * MIB),
            on_cpu: weights(70 * MIB),
            page: MIB,
            cpu_buffers: 30 * MIB,
            buffers: 68 * MIB,
            page_buffers: 2 * MIB,
            pages: 10,
        }
    }

    /// With room for so many MiB of layers.
    fn gpu(label: &str, room: u64) -> Gpu {
        let bytes = room * MIB + RESERVE + 88 * MIB;
        let backend = Box::new(CpuBackend::new(CpuOptions::default()).unwrap());
        Gpu {
            label: label.into(),
            name: "test".into(),
            free_bytes: bytes,
            total_bytes: bytes,
            rows: 512,
            backend,
        }
    }

    fn counts(placement: &Placement) -> (usize, Vec<(&str, usize)>) {
        let gpus = placement.gpus.iter().map(|(gpu, layers)| (gpu.label.as_str(), *layers)).collect();
        (placement.on_cpu, gpus)
    }

    #[test]
    fn all_layers_go_to_a_gpu_that_has_room() {
        let placement = demand(10).place(vec![gpu("a", 1050)], None, false).unwrap();
        assert_eq!(counts(&placement), (0, vec![("a", 10)]));
        assert_eq!(placement.notice(), None);
    }

    #[test]
    fn first_layers_stay_on_the_cpu_where_memory_is_short() {
        let placement = demand(10).place(vec![gpu("a", 449)], None, false).unwrap();
        assert_eq!(counts(&placement), (7, vec![("a", 3)]), "three, as the output matrix has to fit too");
        assert_eq!(placement.notice().unwrap(), "of 10 layers 3 on a, 7 on the CPU");
        let none = demand(10).place(vec![gpu("a", 100)], None, false).unwrap();
        assert_eq!(counts(&none), (10, vec![]));
    }

    #[test]
    fn several_gpus_share_the_layers_by_free_memory() {
        let placement = demand(12).place(vec![gpu("a", 3000), gpu("b", 1000)], None, false).unwrap();
        assert_eq!(counts(&placement), (0, vec![("a", 9), ("b", 3)]));
        let tight = demand(4).place(vec![gpu("a", 200), gpu("b", 250)], None, false).unwrap();
        assert_eq!(counts(&tight), (0, vec![("a", 2), ("b", 2)]));
    }

    #[test]
    fn layers_go_before_a_longer_context() {
        let grown = |room, wanted| {
            let mut demand = demand(10);
            demand.grow(&[gpu("a", room)], wanted, 1000);
            demand.pages
        };
        assert_eq!(grown(1049, 10), 10, "nine layers fit, and no more context");
        assert_eq!(
            grown(1050 + 5 * 12, 10),
            15,
            "a page more takes a MiB for each layer, and two on the way"
        );
        assert_eq!(grown(449, 3), 29, "99 MiB are left beside three layers");
        assert_eq!(grown(1 << 20, 10), 1000, "no more than asked for");
    }

    #[test]
    fn on_the_cpu_layers_have_their_own_types_and_experts_may_stay_in_the_file() {
        let needs = demand(10).of_cpu(4);
        assert_eq!((needs.weights, needs.experts, needs.page), (280 * MIB, 240 * MIB, 4 * MIB));
        // 40 MiB beside the experts, 30 of buffers, 40 of keys and values
        assert_eq!(needs.context(None, 640, 110 * MIB, false).unwrap(), 640);
        assert!(needs.context(Some(640), 640, 109 * MIB, false).is_err());
    }

    #[test]
    fn a_number_of_layers_that_does_not_fit_is_refused_with_the_one_that_does() {
        let error = demand(10).place(vec![gpu("a", 449)], Some(5), false).err().unwrap().to_string();
        assert!(error.contains("3 of 10 layers fit into a"), "{error}");
        let forced = demand(10).place(vec![gpu("a", 449)], Some(5), true).unwrap();
        assert_eq!(counts(&forced), (5, vec![("a", 5)]));
        let more = demand(10).place(vec![gpu("a", 2000)], Some(99), false).unwrap();
        assert_eq!(counts(&more), (0, vec![("a", 10)]));
    }
}
