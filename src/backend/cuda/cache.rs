//! The memory of the KV pages: for each layer keys [slots, heads * key_dim] and values [slots, heads * value_dim], where a page is
//! [`PAGE_LEN`] slots. Where values are a part of the keys, there are only keys.

use super::driver::Driver;
use super::params::Address;
use crate::Result;
use crate::backend::{KvShape, KvType, PAGE_LEN, Plan};

/// KV pages of some layers.
pub struct Cache {
    layers: Vec<Layer>,
    kv_type: KvType,
}

/// One layer's.
#[derive(Clone, Copy)]
pub struct Layer {
    /// As declared.
    pub shape: KvShape,
    pub keys: Address,
    /// The keys themselves where values are a part of them.
    pub values: Address,
}

impl Layer {
    /// Numbers of a position's keys.
    pub fn key_width(&self) -> usize {
        self.shape.heads * self.shape.key_dim
    }

    /// Numbers of a position's values.
    pub fn value_width(&self) -> usize {
        self.shape.heads * self.shape.value_dim
    }

    /// What is cached, each once, and its width.
    fn cached(&self) -> impl Iterator<Item = (Address, usize)> {
        let values = Some((self.values, self.value_width())).filter(|_| !self.shape.value_in_key);
        std::iter::once((self.keys, self.key_width())).chain(values)
    }
}

/// Bytes of a number in the cache.
fn number_bytes(kv_type: KvType) -> usize {
    if kv_type == KvType::F32 { 4 } else { 2 }
}

impl Cache {
    /// With the plan's pages.
    pub fn new(shapes: &[KvShape], plan: Plan, driver: &dyn Driver) -> Result<Cache> {
        let bytes = plan.pages * PAGE_LEN * number_bytes(plan.kv_type);
        let layer = |&shape: &KvShape| {
            let keys = driver.alloc(bytes * shape.heads * shape.key_dim)?;
            let values = if shape.value_in_key {
                keys
            } else {
                driver.alloc(bytes * shape.heads * shape.value_dim)?
            };
            Ok(Layer { shape, keys, values })
        };
        let layers = shapes.iter().map(layer).collect::<Result<_>>()?;
        Ok(Cache { layers, kv_type: plan.kv_type })
    }

    /// Keys and values of a layer.
    pub fn layer(&self, layer: usize) -> &Layer {
        &self.layers[layer]
    }

    /// Where a page of something cached begins.
    fn page(&self, (cached, width): (Address, usize), page: u32) -> Address {
        cached + (page as usize * PAGE_LEN * width * number_bytes(self.kv_type)) as Address
    }

    /// See [`Backend::copy_page`](crate::backend::Backend::copy_page).
    pub fn copy_page(&self, driver: &dyn Driver, from: u32, to: u32, positions: usize) -> Result<()> {
        self.layers.iter().flat_map(Layer::cached).try_for_each(|cached| {
            let bytes = positions * cached.1 * number_bytes(self.kv_type);
            driver.copy(self.page(cached, from), self.page(cached, to), bytes)
        })
    }

    /// See [`Backend::read_page`](crate::backend::Backend::read_page): a head's keys dimension by dimension, without what is in
    /// the values, then its values position by position, filled up.
    pub fn read_page(
        &self,
        driver: &dyn Driver,
        page: u32,
        positions: usize,
        to: &mut Vec<u8>,
    ) -> Result<()> {
        let size = number_bytes(self.kv_type);
        for layer in &self.layers {
            let mut host = Vec::new();
            for cached in layer.cached() {
                let bytes = positions * cached.1 * size;
                let from = driver.download(self.page(cached, page), bytes)?;
                // SAFETY: the driver gave so many bytes, valid until its next call.
                host.push(unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec());
            }
            let keys = &host[0];
            let values = host.last().expect("keys at least");
            layer.for_each_number(positions, self.kv_type, |place| match place {
                Place::Key(i) => to.extend_from_slice(&keys[i * size..][..size]),
                Place::Value(i) => to.extend_from_slice(&values[i * size..][..size]),
                Place::Filler => to.extend(std::iter::repeat_n(0, size)),
            });
        }
        Ok(())
    }

    /// See [`Backend::write_page`](crate::backend::Backend::write_page).
    pub fn write_page(&self, driver: &dyn Driver, page: u32, positions: usize, from: &[u8]) -> Result<()> {
        let bytes = |layer: &Layer| positions * layer.shape.position_bytes(self.kv_type);
        let all: usize = self.layers.iter().map(bytes).sum();
        assert_eq!(from.len(), all, "bytes of {positions} positions");
        let size = number_bytes(self.kv_type);
        let mut rest = from;
        for layer in &self.layers {
            let mut host: Vec<Vec<u8>> =
                layer.cached().map(|(_, width)| vec![0; positions * width * size]).collect();
            let values = host.len() - 1;
            layer.for_each_number(positions, self.kv_type, |place| {
                let (number, after) = rest.split_at(size);
                rest = after;
                match place {
                    Place::Key(i) => host[0][i * size..][..size].copy_from_slice(number),
                    Place::Value(i) => host[values][i * size..][..size].copy_from_slice(number),
                    Place::Filler => {}
                }
            });
            for (cached, host) in layer.cached().zip(&host) {
                driver.upload(self.page(cached, page), host)?;
            }
        }
        Ok(())
    }
}

/// Where a number of a saved page is on the device.
enum Place {
    Key(usize),
    /// Of the keys where values are a part of them.
    Value(usize),
    Filler,
}

impl Layer {
    /// The numbers of a saved page in order.
    fn for_each_number(&self, positions: usize, kv_type: KvType, mut visit: impl FnMut(Place)) {
        let KvShape { heads, key_dim, value_dim, value_in_key } = self.shape;
        let value_width = if value_in_key { key_dim } else { value_dim };
        for head in 0..heads {
            for dim in key_dim - self.shape.cached_key_dim()..key_dim {
                (0..positions).for_each(|i| visit(Place::Key((i * heads + head) * key_dim + dim)));
            }
            for i in 0..positions {
                let first = (i * heads + head) * value_width;
                (0..value_dim).for_each(|dim| visit(Place::Value(first + dim)));
                (value_dim..self.shape.value_stride(kv_type)).for_each(|_| visit(Place::Filler));
            }
        }
    }
}
