//! The search for entries of the i-quants' grids. For each group of values several scales are tried; under each, parts of the
//! group get the entry with the least square error, of those that stand near their rounded values; the scale that leaves the
//! least is kept. The square of each value's error counts by its weight.

use super::{farthest, inverse, to_f16};

/// Entries that a part is compared with.
const NEAR: usize = 24;
/// Scales that are tried for a group.
const TRIED: usize = 12;

/// The entries of a grid.
struct Grid<const N: usize> {
    entries: Vec<[f32; N]>,
    /// What the values of entries can be, ascending, and the numbers in the middle between them.
    levels: Vec<f32>,
    middles: Vec<f32>,
    /// The entries nearest to each choice of levels, nearest first. The first value's level counts one, the second's as many
    /// as there are levels, and so on.
    near: Vec<[u16; NEAR]>,
}

impl<const N: usize> Grid<N> {
    fn new(entries: Vec<[f32; N]>, levels: Vec<f32>) -> Self {
        let choice = |index: usize, i: usize| levels[index / levels.len().pow(i as u32) % levels.len()];
        let near = |index: usize| {
            let point: [f32; N] = std::array::from_fn(|i| choice(index, i));
            let distance = |entry: &[f32; N]| -> f32 { (0..N).map(|i| (entry[i] - point[i]).powi(2)).sum() };
            let mut order: Vec<(f32, u16)> = entries.iter().map(distance).zip(0..).collect();
            let nearest_first = |a: &(f32, u16), b: &(f32, u16)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            order.select_nth_unstable_by(NEAR, nearest_first);
            order[..NEAR].sort_unstable_by(nearest_first);
            std::array::from_fn(|i| order[i].1)
        };
        let near = (0..levels.len().pow(N as u32)).map(near).collect();
        let middles = levels.windows(2).map(|two| (two[0] + two[1]) / 2.0).collect();
        Grid { entries, levels, middles, near }
    }

    /// The entry for N values.
    fn nearest(&self, x: &[f32; N], weights: &[f32; N]) -> u16 {
        let (mut index, mut unit) = (0, 1);
        let mut point = [0.0; N];
        for (x, point) in x.iter().zip(&mut point) {
            let level: usize = self.middles.iter().map(|middle| usize::from(x > middle)).sum();
            *point = self.levels[level];
            index += unit * level;
            unit *= self.levels.len();
        }
        let near = &self.near[index];
        if self.entries[usize::from(near[0])] == point {
            return near[0]; // no value can come nearer
        }
        let mut best = (near[0], f32::INFINITY);
        for &entry in near {
            let values = &self.entries[usize::from(entry)];
            let mut errors = [0.0; 4]; // as wide as the narrowest vector
            for i in 0..N {
                errors[i % 4] += weights[i] * (values[i] - x[i]) * (values[i] - x[i]);
            }
            let error = (errors[0] + errors[2]) + (errors[1] + errors[3]);
            if error < best.1 {
                best = (entry, error);
            }
        }
        best.0
    }
}

/// An entry, and which of the two numbers is added to its values, where there are two.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Code {
    pub(super) entry: u16,
    pub(super) second: bool,
}

/// What 256 values become: value = d * unit * (scale + offset) * (entry's value + delta).
pub(super) struct Found {
    pub(super) d: f32,
    /// Of each group.
    pub(super) scales: Vec<u8>,
    /// Of each N values.
    pub(super) codes: Vec<Code>,
}

/// Sums over values: x by what stands for it, and that by itself. With the scale s the square error is
/// `x² - 2 s xq + s² qq`.
#[derive(Clone, Copy, Default)]
struct Sums {
    xq: f32,
    qq: f32,
}

impl Sums {
    fn add(&mut self, other: Sums, scale: f32) {
        self.xq += scale * other.xq;
        self.qq += scale * scale * other.qq;
    }

    /// The square error under this scale, less that of zeros.
    fn change(self, scale: f32) -> f32 {
        scale * (scale * self.qq - 2.0 * self.xq)
    }

    /// The scale with the least error, which is not negative.
    fn scale(self) -> f32 {
        if self.qq > 0.0 { (self.xq / self.qq).max(0.0) } else { 0.0 }
    }
}

/// How a format of the i-quants is made.
pub(super) struct Search<const N: usize> {
    grid: Grid<N>,
    /// Values under one scale.
    group: usize,
    /// unit, offset and largest of the scales.
    scales: (f32, f32, f32),
    /// What may be added to the values of entries, and for how many values it is the same.
    deltas: (&'static [f32], usize),
    /// The scales that are tried: from and to this share of the one that fits the largest value.
    tried: (f32, f32),
}

impl<const N: usize> Search<N> {
    /// Entries of magnitudes.
    pub(super) fn signed(
        entries: Vec<[f32; N]>,
        levels: Vec<f32>,
        group: usize,
        scales: (f32, f32, f32),
    ) -> Self {
        Search { grid: Grid::new(entries, levels), group, scales, deltas: (&[0.0], N), tried: (0.6, 1.25) }
    }

    /// Entries of -1, 0 and 1, with a delta for so many values.
    pub(super) fn ternary(entries: Vec<[f32; N]>, group: usize, deltas: (&'static [f32], usize)) -> Self {
        let grid = Grid::new(entries, vec![-1.0, 0.0, 1.0]);
        Search { grid, group, scales: (2.0, 0.5, 7.0), deltas, tried: (0.3, 1.1) }
    }

    /// A super-block.
    pub(super) fn block(&self, x: &[f32; 256], weights: &[f32; 256]) -> Found {
        let groups = || x.chunks(self.group).zip(weights.chunks(self.group));
        let (unit, offset, most) = self.scales;
        let fits: Vec<f32> = groups().map(|(x, weights)| self.scale(x, weights)).collect();
        let d = fits.iter().copied().fold(0.0, f32::max) / (unit * (most + offset));
        let mut d = to_f16(d).to_f32();
        let mut codes = vec![Code::default(); 256 / N];
        let mut scales = vec![0; fits.len()];
        let mut all = Sums::default();
        for (g, (x, weights)) in groups().enumerate() {
            let middle = (fits[g] * inverse(d * unit) - offset).round();
            let mut best = f32::INFINITY;
            for s in [middle - 1.0, middle, middle + 1.0].map(|s| s.clamp(0.0, most)) {
                let scale = unit * (s + offset);
                let change =
                    self.assign(x, weights, d * scale, &mut codes[..self.group / N]).change(d * scale);
                if change < best {
                    (best, scales[g]) = (change, s as u8);
                }
            }
            let scale = unit * (f32::from(scales[g]) + offset);
            all.add(self.assign(x, weights, d * scale, &mut codes[..self.group / N]), scale);
        }
        // the best d under these scales
        if all.scale() > 0.0 {
            d = to_f16(all.scale()).to_f32();
        }
        let codes_of_groups = codes.chunks_mut(self.group / N);
        for ((&s, (x, weights)), codes) in scales.iter().zip(groups()).zip(codes_of_groups) {
            self.assign(x, weights, d * unit * (f32::from(s) + offset), codes);
        }
        Found { d, scales, codes }
    }

    /// The scale of a group.
    fn scale(&self, x: &[f32], weights: &[f32]) -> f32 {
        let largest = self.grid.levels.last().copied().unwrap_or(1.0);
        let fits = farthest(x).abs() / largest;
        let (from, to) = self.tried;
        let mut codes = vec![Code::default(); x.len() / N];
        let mut best = (0.0, 0.0);
        for i in 0..TRIED {
            let share = from + (to - from) * i as f32 / (TRIED - 1) as f32;
            let sums = self.assign(x, weights, share * fits, &mut codes);
            let change = sums.change(sums.scale());
            if change < best.1 {
                best = (sums.scale(), change);
            }
        }
        best.0
    }

    /// Gives a group its codes under this scale.
    fn assign(&self, x: &[f32], weights: &[f32], scale: f32, codes: &mut [Code]) -> Sums {
        let inverse = inverse(scale);
        let (deltas, len) = self.deltas;
        let mut all = Sums::default();
        let parts = x.chunks(len).zip(weights.chunks(len)).zip(codes.chunks_mut(len / N));
        for ((x, weights), codes) in parts {
            let (x, weights) = (x.as_chunks::<N>().0, weights.as_chunks::<N>().0);
            let mut best = (f32::INFINITY, Sums::default());
            for (i, &delta) in deltas.iter().enumerate() {
                let mut sums = Sums::default();
                let mut found = [0; 8];
                for ((x, weights), found) in x.iter().zip(weights).zip(&mut found) {
                    *found = self.grid.nearest(&x.map(|x| x * inverse - delta), weights);
                    for (n, value) in self.grid.entries[usize::from(*found)].iter().enumerate() {
                        sums.xq += weights[n] * x[n] * (value + delta);
                        sums.qq += weights[n] * (value + delta) * (value + delta);
                    }
                }
                let change = sums.change(scale);
                if change < best.0 || i == 0 {
                    best = (change, sums);
                    for (code, entry) in codes.iter_mut().zip(found) {
                        *code = Code { entry, second: i > 0 };
                    }
                }
            }
            all.add(best.1, 1.0);
        }
        all
    }
}

/// Values without their signs, and the signs of each 8 as bits. Where their number must be even and is not, the value that
/// counts least takes the other sign, and is left negative.
pub(super) fn without_signs(values: &[f32; 256], weights: &[f32; 256], even: bool) -> ([f32; 256], [u8; 32]) {
    let (mut x, mut signs) = (*values, [0; 32]);
    let eights = x.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0);
    for (signs, (x, weights)) in signs.iter_mut().zip(eights) {
        *signs = x.iter().enumerate().fold(0u8, |signs, (i, &v)| signs | u8::from(v < 0.0) << i);
        if even && !signs.count_ones().is_multiple_of(2) {
            let counts = |&i: &usize| weights[i] * x[i] * x[i];
            let least = (0..8).min_by(|a, b| counts(a).total_cmp(&counts(b))).unwrap_or(0);
            *signs ^= 1 << least;
        }
        for (i, x) in x.iter_mut().enumerate() {
            *x = if *signs >> i & 1 == 0 { *x } else { -*x };
        }
    }
    (x, signs)
}
