//! The memory of the KV pages: for each layer keys [slots, heads * key_dim] and values [slots, heads * value_dim], where a
//! page is [`PAGE_LEN`] slots. Where values are a part of the keys, there are only keys. Allocated once and written in place.

use candle_core::{DType, Device, Result, Tensor as Values};
use half::f16;

use super::kv_dtype;
use crate::backend::{KvShape, KvType, PAGE_LEN, Plan};

/// KV pages of some layers.
pub struct Cache {
    layers: Vec<Layer>,
    kv_type: KvType,
    /// Where the rows of the step go.
    slots: Vec<u32>,
}

/// One layer's.
pub struct Layer {
    /// As declared.
    pub shape: KvShape,
    /// [slots, heads * key_dim]
    pub keys: Values,
    /// [slots, heads * value_dim]; the keys themselves where values are a part of them
    pub values: Values,
}

impl Layer {
    /// What is cached, each once.
    fn cached(&self) -> impl Iterator<Item = &Values> {
        let values = Some(&self.values).filter(|_| !self.shape.value_in_key);
        std::iter::once(&self.keys).chain(values)
    }
}

impl Cache {
    /// With the plan's pages.
    pub fn new(shapes: &[KvShape], plan: Plan, device: &Device) -> Result<Cache> {
        let slots = plan.pages * PAGE_LEN;
        let zeros = |width: usize| Values::zeros((slots, width), kv_dtype(plan.kv_type), device);
        let layer = |&shape: &KvShape| {
            let keys = zeros(shape.heads * shape.key_dim)?;
            let values =
                if shape.value_in_key { keys.clone() } else { zeros(shape.heads * shape.value_dim)? };
            Ok(Layer { shape, keys, values })
        };
        Ok(Cache {
            layers: shapes.iter().map(layer).collect::<Result<_>>()?,
            kv_type: plan.kv_type,
            slots: Vec::new(),
        })
    }

    /// A step's rows go to these slots.
    pub fn begin(&mut self, slots: Vec<u32>) {
        self.slots = slots;
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> &Layer {
        &self.layers[layer]
    }

    /// Stores the first columns of the rows' keys and values.
    pub fn append(&self, layer: usize, key: &Values, value: &Values) -> Result<()> {
        let layer = &self.layers[layer];
        for (cached, rows) in layer.cached().zip([key, value]) {
            let rows = rows.narrow(1, 0, cached.dim(1)?)?.to_dtype(cached.dtype())?.contiguous()?;
            let mut first = 0;
            for run in self.slots.chunk_by(|a, b| a + 1 == *b) {
                cached.slice_set(&rows.narrow(0, first, run.len())?, 0, run[0] as usize)?;
                first += run.len();
            }
        }
        Ok(())
    }

    /// See [`Backend::copy_page`](crate::backend::Backend::copy_page).
    pub fn copy_page(&self, from: u32, to: u32, positions: usize) -> Result<()> {
        let [from, to] = [from, to].map(|page| page as usize * PAGE_LEN);
        for cached in self.layers.iter().flat_map(Layer::cached) {
            cached.slice_set(&cached.narrow(0, from, positions)?.copy()?, 0, to)?;
        }
        Ok(())
    }

    /// See [`Backend::read_page`](crate::backend::Backend::read_page): a head's keys dimension by dimension, without what is in
    /// the values, then its values position by position, filled up.
    pub fn read_page(&self, page: u32, positions: usize, to: &mut Vec<u8>) -> Result<()> {
        for layer in &self.layers {
            match self.kv_type {
                KvType::F32 => {
                    let f32_bytes = |value: f32, to: &mut Vec<u8>| to.extend_from_slice(&value.to_le_bytes());
                    read_layer(layer, self.kv_type, page, positions, to, f32_bytes)?;
                }
                KvType::F16 | KvType::Q8_0 => {
                    let f16_bytes = |value: f16, to: &mut Vec<u8>| to.extend_from_slice(&value.to_le_bytes());
                    read_layer(layer, self.kv_type, page, positions, to, f16_bytes)?;
                }
            }
        }
        Ok(())
    }

    /// See [`Backend::write_page`](crate::backend::Backend::write_page).
    pub fn write_page(&self, page: u32, positions: usize, from: &[u8]) -> Result<()> {
        let bytes = |layer: &Layer| positions * layer.shape.position_bytes(self.kv_type);
        assert_eq!(
            from.len(),
            self.layers.iter().map(bytes).sum::<usize>(),
            "bytes of {positions} positions"
        );
        let mut rest = from;
        for layer in &self.layers {
            let (own, after) = rest.split_at(bytes(layer));
            rest = after;
            match self.kv_type {
                KvType::F32 => write_layer(layer, self.kv_type, page, positions, own, f32::from_le_bytes)?,
                KvType::F16 | KvType::Q8_0 => {
                    write_layer(layer, self.kv_type, page, positions, own, f16::from_le_bytes)?;
                }
            }
        }
        Ok(())
    }
}

/// Appends what a page holds of a layer.
fn read_layer<T: candle_core::WithDType>(
    layer: &Layer,
    kv_type: KvType,
    page: u32,
    positions: usize,
    to: &mut Vec<u8>,
    put: impl Fn(T, &mut Vec<u8>),
) -> Result<()> {
    let KvShape { heads, key_dim, value_dim, value_in_key } = layer.shape;
    let value_width = if value_in_key { key_dim } else { value_dim };
    let host = |cached: &Values| {
        cached.narrow(0, page as usize * PAGE_LEN, positions)?.flatten_all()?.to_vec1::<T>()
    };
    let (keys, values) = (host(&layer.keys)?, host(&layer.values)?);
    for head in 0..heads {
        for dim in key_dim - layer.shape.cached_key_dim()..key_dim {
            (0..positions).for_each(|i| put(keys[(i * heads + head) * key_dim + dim], to));
        }
        for i in 0..positions {
            let value = &values[(i * heads + head) * value_width..][..value_dim];
            value.iter().for_each(|&value| put(value, to));
            (value_dim..layer.shape.value_stride(kv_type)).for_each(|_| put(T::zero(), to));
        }
    }
    Ok(())
}

/// Takes back what `read_layer` gave.
fn write_layer<T: candle_core::WithDType, const N: usize>(
    layer: &Layer,
    kv_type: KvType,
    page: u32,
    positions: usize,
    from: &[u8],
    get: impl Fn([u8; N]) -> T,
) -> Result<()> {
    let KvShape { heads, key_dim, value_dim, value_in_key } = layer.shape;
    let mut elements = from.as_chunks::<N>().0.iter().map(|&bytes| get(bytes));
    let mut next = || elements.next().expect("the length was checked");
    let mut keys = vec![T::zero(); positions * heads * key_dim];
    let mut values = vec![T::zero(); if value_in_key { 0 } else { positions * heads * value_dim }];
    for head in 0..heads {
        for dim in key_dim - layer.shape.cached_key_dim()..key_dim {
            (0..positions).for_each(|i| keys[(i * heads + head) * key_dim + dim] = next());
        }
        for i in 0..positions {
            let value = match value_in_key {
                true => &mut keys[(i * heads + head) * key_dim..][..value_dim],
                false => &mut values[(i * heads + head) * value_dim..][..value_dim],
            };
            value.iter_mut().for_each(|value| *value = next());
            (value_dim..layer.shape.value_stride(kv_type)).for_each(|_| {
                next();
            });
        }
    }
    for (cached, host) in layer.cached().zip([keys, values]) {
        let shape = (positions, cached.dim(1)?);
        cached.slice_set(&Values::from_vec(host, shape, cached.device())?, 0, page as usize * PAGE_LEN)?;
    }
    Ok(())
}

/// A sequence's pages of some cached tensor as f32, [heads, positions, dim]: from position `first` (of the pages' first) on.
pub fn gathered(cached: &Values, pages: &[u32], first: usize, len: usize, heads: usize) -> Result<Values> {
    let width = cached.dim(1)?;
    let adjacent = pages.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    let slots = if adjacent {
        cached.narrow(0, pages[0] as usize * PAGE_LEN + first, len)?
    } else {
        let pages = Values::new(pages, cached.device())?;
        let paged = cached.reshape((cached.dim(0)? / PAGE_LEN, PAGE_LEN * width))?.index_select(&pages, 0)?;
        paged.reshape((paged.dim(0)? * PAGE_LEN, width))?.narrow(0, first, len)?
    };
    slots.reshape((len, heads, width / heads))?.transpose(0, 1)?.contiguous()?.to_dtype(DType::F32)
}
