//! pensive's own operations on candle's tensors: on the CPU as they are written here, on CUDA as kernels/kernels.cu says the
//! same. Metal has none: there, and where asked to, the backend is made of candle's own operations.

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp2, CustomOp3, DType, InplaceOp3, Layout, Result, Shape, Tensor as Values,
};
use half::f16;

#[cfg(feature = "cuda")]
use super::cuda;
use crate::backend::{KvShape, PAGE_LEN};

/// The contiguous values of an operand.
fn values<'a, T: candle_core::WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(not_contiguous)?;
    Ok(&storage.as_slice::<T>()?[from..to])
}

fn not_contiguous() -> candle_core::Error {
    candle_core::Error::Msg("an operand is not contiguous".into())
}

/// The values of a tensor on the CPU.
fn host<T: candle_core::WithDType>(tensor: &Values) -> Result<Vec<T>> {
    tensor.flatten_all()?.to_vec1()
}

/// `(sum, y, weight)`: `[sum + y, rms_norm(sum + y) * weight]`, [2, rows, width].
pub struct AddRmsNorm {
    /// Keeps a row of zeros finite.
    pub epsilon: f32,
}

impl CustomOp3 for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add-rms-norm"
    }

    fn cpu_fwd(
        &self,
        sum: &CpuStorage,
        sum_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (sum, y) = (values::<f32>(sum, sum_layout)?, values::<f32>(y, y_layout)?);
        let weight = values::<f32>(weight, weight_layout)?;
        let (rows, width) = sum_layout.shape().dims2()?;
        let mut both: Vec<f32> = sum.iter().zip(y).map(|(a, b)| a + b).collect();
        for row in 0..rows {
            let total = &both[row * width..][..width];
            let squares: f32 = total.iter().map(|x| x * x).sum();
            let factor = 1.0 / (squares / width as f32 + self.epsilon).sqrt();
            let normed: Vec<f32> = total.iter().zip(weight).map(|(x, w)| x * factor * w).collect();
            both.extend(normed);
        }
        Ok((CpuStorage::F32(both), (2, rows, width).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        sum: &CudaStorage,
        sum_layout: &Layout,
        y: &CudaStorage,
        y_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let shape = sum_layout.shape().dims2()?;
        let to = cuda::add_rms_norm(
            (sum, sum_layout),
            (y, y_layout),
            (weight, weight_layout),
            shape,
            self.epsilon,
        )?;
        Ok((to, (2, shape.0, shape.1).into()))
    }
}

/// `(gate, up)`: `silu(gate) * up`.
pub struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values::<f32>(gate, gate_layout)?, values::<f32>(up, up_layout)?);
        let made = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        Ok((CpuStorage::F32(made), gate_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Ok((cuda::swiglu((gate, gate_layout), (up, up_layout))?, gate_layout.shape().clone()))
    }
}

/// `(x, cos, sin)`: the heads of each row, normed, rotated, without their center. x is [rows, heads * dim], cos and sin are
/// [rows, 1, pairs].
pub struct RotateHeads<'a> {
    /// Width of a head.
    pub dim: usize,
    /// For a head's first values, as many as it has; and epsilon.
    pub norm: Option<(&'a Values, f32)>,
    /// The first value that is rotated.
    pub from: usize,
    /// Pairs (2i, 2i + 1) instead of (i, i + pairs).
    pub interleaved: bool,
    /// Taken off at last, [heads * dim].
    pub center: Option<&'a Values>,
}

impl CustomOp3 for RotateHeads<'_> {
    fn name(&self) -> &'static str {
        "rotate-heads"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut y = values::<f32>(x, x_layout)?.to_vec();
        let (cos, sin) = (values::<f32>(cos, cos_layout)?, values::<f32>(sin, sin_layout)?);
        let (pairs, heads) = (cos_layout.dims()[2], x_layout.dims()[1] / self.dim);
        let norm = self
            .norm
            .map(|(weight, epsilon)| Ok::<_, candle_core::Error>((host::<f32>(weight)?, epsilon)))
            .transpose()?;
        let center = self.center.map(host::<f32>).transpose()?;
        for (i, head) in y.chunks_exact_mut(self.dim).enumerate() {
            if let Some((weight, epsilon)) = &norm {
                let n = weight.len();
                let squares: f32 = head[..n].iter().map(|x| x * x).sum();
                let factor = 1.0 / (squares / n as f32 + epsilon).sqrt();
                head.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * factor * w);
            }
            let angles = &(i / heads * pairs..(i / heads + 1) * pairs);
            for (pair, (c, s)) in cos[angles.clone()].iter().zip(&sin[angles.clone()]).enumerate() {
                let (first, second) =
                    if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                let (a, b) = (head[self.from + first], head[self.from + second]);
                head[self.from + first] = a * c - b * s;
                head[self.from + second] = a * s + b * c;
            }
            if let Some(center) = &center {
                let center = &center[i % heads * self.dim..][..self.dim];
                head.iter_mut().zip(center).for_each(|(x, c)| *x -= c);
            }
        }
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        cos: &CudaStorage,
        cos_layout: &Layout,
        sin: &CudaStorage,
        sin_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let to = cuda::rotate_heads(self, (x, x_layout), (cos, cos_layout), (sin, sin_layout))?;
        Ok((to, x_layout.shape().clone()))
    }
}

/// Widest head that [`RotateHeads`]'s kernel takes.
pub const WIDEST_HEAD: usize = 1024;

/// `(cache, x, slots)`: the first values of x's rows, as many as the cache is wide, go to their slots of it.
pub struct Append;

impl InplaceOp3 for Append {
    fn name(&self) -> &'static str {
        "append-kv"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        x: &CpuStorage,
        x_layout: &Layout,
        slots: &CpuStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        let (x, slots) = (values::<f32>(x, x_layout)?, values::<u32>(slots, slots_layout)?);
        let (width, stride) = (cache_layout.dims()[1], x_layout.dims()[1]);
        for (row, &slot) in x.chunks_exact(stride).zip(slots) {
            let at = cache_layout.start_offset() + slot as usize * width;
            match cache {
                CpuStorage::F32(cache) => cache[at..at + width].copy_from_slice(&row[..width]),
                CpuStorage::F16(cache) => {
                    cache[at..at + width].iter_mut().zip(row).for_each(|(to, &x)| *to = f16::from_f32(x));
                }
                _ => candle_core::bail!("a cache is f16 or f32"),
            }
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        cache: &mut CudaStorage,
        cache_layout: &Layout,
        x: &CudaStorage,
        x_layout: &Layout,
        slots: &CudaStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        cuda::append((cache, cache_layout), (x, x_layout), (slots, slots_layout))
    }
}

/// `(query, keys, values)`: attention of each row over the pages of its sequence. `values` are the keys where values are a
/// part of them.
pub struct PagedAttention<'a> {
    /// Of the cache.
    pub kv: KvShape,
    /// Query heads.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Positions that are seen, 0: all.
    pub window: usize,
    /// `[heads]`
    pub sinks: Option<&'a Values>,
    /// [rows, 2]: where the row's block table begins in `tables`, and its position.
    pub rows: &'a Values,
    /// Block tables, one after the other.
    pub tables: &'a Values,
    /// The greatest position of the rows.
    pub last_position: usize,
}

impl PagedAttention<'_> {
    /// Whether there is a CUDA kernel for these heads and this cache.
    pub fn has_kernel(kv: KvShape, dtype: DType) -> bool {
        let even = kv.key_dim.is_multiple_of(2) && kv.value_dim.is_multiple_of(2);
        let narrow = kv.key_dim <= 128 && kv.value_dim <= 128;
        let latent = kv.key_dim <= 576 && kv.value_dim <= 512;
        dtype == DType::F16 && even && (narrow || latent)
    }

    /// Numbers from one head's value to the next.
    pub(super) fn value_width(&self) -> usize {
        if self.kv.value_in_key { self.kv.key_dim } else { self.kv.value_dim }
    }

    fn attend<T: Copy>(
        &self,
        query: &[f32],
        keys: &[T],
        values: &[T],
        wide: fn(T) -> f32,
    ) -> Result<Vec<f32>> {
        let KvShape { heads: kv_heads, key_dim, value_dim, .. } = self.kv;
        let value_width = self.value_width();
        let (rows, tables) = (host::<u32>(self.rows)?, host::<u32>(self.tables)?);
        let sinks = self.sinks.map(host::<f32>).transpose()?;
        let mut out = vec![0.0; rows.len() / 2 * self.heads * value_dim];
        let mut scores = Vec::new();
        for (i, (query, out)) in query.chunks_exact(key_dim).zip(out.chunks_exact_mut(value_dim)).enumerate()
        {
            let (row, head) = (i / self.heads, i % self.heads);
            let kv_head = head / (self.heads / kv_heads);
            let (table, position) = (rows[2 * row] as usize, rows[2 * row + 1] as usize);
            let first = if self.window > 0 { (position + 1).saturating_sub(self.window) } else { 0 };
            let at = |p: usize| {
                let slot = tables[table + p / PAGE_LEN] as usize * PAGE_LEN + p % PAGE_LEN;
                slot * kv_heads + kv_head
            };
            let key = |p: usize| &keys[at(p) * key_dim..][..key_dim];
            let score = |p| self.scale * query.iter().zip(key(p)).map(|(q, &k)| q * wide(k)).sum::<f32>();
            scores.clear();
            scores.extend((first..=position).map(score));
            let sink = sinks.as_ref().map_or(f32::NEG_INFINITY, |sinks| sinks[head]);
            let most = scores.iter().copied().fold(sink, f32::max);
            let mut sum = (sink - most).exp();
            for (p, score) in (first..).zip(&scores) {
                let weight = (score - most).exp();
                sum += weight;
                let value = &values[at(p) * value_width..][..value_dim];
                out.iter_mut().zip(value).for_each(|(o, &v)| *o += weight * wide(v));
            }
            out.iter_mut().for_each(|o| *o /= sum);
        }
        Ok(out)
    }
}

impl CustomOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged-attention"
    }

    fn cpu_fwd(
        &self,
        query: &CpuStorage,
        query_layout: &Layout,
        keys: &CpuStorage,
        keys_layout: &Layout,
        cached: &CpuStorage,
        cached_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let query = values::<f32>(query, query_layout)?;
        let out = match keys {
            CpuStorage::F32(_) => {
                self.attend::<f32>(query, values(keys, keys_layout)?, values(cached, cached_layout)?, |x| x)?
            }
            _ => self.attend::<f16>(
                query,
                values(keys, keys_layout)?,
                values(cached, cached_layout)?,
                f16::to_f32,
            )?,
        };
        Ok((CpuStorage::F32(out), (query_layout.dims()[0], self.heads * self.kv.value_dim).into()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        query: &CudaStorage,
        query_layout: &Layout,
        keys: &CudaStorage,
        keys_layout: &Layout,
        cached: &CudaStorage,
        cached_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let rows = query_layout.dims()[0];
        let to =
            cuda::attention(self, rows, (query, query_layout), (keys, keys_layout), (cached, cached_layout))?;
        Ok((to, (rows, self.heads * self.kv.value_dim).into()))
    }
}
