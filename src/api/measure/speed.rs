//! Tokens per second, and what the machine allows.

use std::time::Instant;

use crate::api::Model;
use crate::backend::{KvType, Limits};
use crate::engine::{Feed, Sequence, Wants};
use crate::model::Work;
use crate::{Error, Result};

/// What is timed: a prompt of so many tokens, or the generation of so many, after so many in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeedTest {
    /// Tokens of the prompt; 0 for a test of generation.
    pub prompt: usize,
    /// Tokens generated, one at a time; 0 for a test of a prompt.
    pub generate: usize,
    /// Tokens in the cache before.
    pub depth: usize,
    /// How many sequences generate together, each so many tokens, after the same cache: 1 or more.
    pub sequences: usize,
}

impl SpeedTest {
    /// Reading a prompt.
    pub fn of_prompt(prompt: usize, depth: usize) -> Self {
        SpeedTest { prompt, generate: 0, depth, sequences: 1 }
    }

    /// Generating.
    pub fn of_generation(generate: usize, depth: usize) -> Self {
        SpeedTest { prompt: 0, generate, depth, sequences: 1 }
    }

    /// Tokens that are timed.
    pub fn tokens(&self) -> usize {
        self.prompt.saturating_add(self.generate.saturating_mul(self.sequences))
    }

    /// Context that it needs, of each sequence.
    pub fn context(&self) -> usize {
        self.depth.saturating_add(self.prompt).saturating_add(self.generate)
    }

    /// Its steps in order: (rows, rows that want logits, tokens in a cache after it).
    fn steps(self, max_rows: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let prompt = (0..self.prompt).step_by(max_rows).map(move |first| {
            let end = (first + max_rows).min(self.prompt);
            (end - first, usize::from(end == self.prompt), self.depth + end)
        });
        let before = self.depth + self.prompt;
        prompt.chain((1..=self.generate).map(move |token| (self.sequences, self.sequences, before + token)))
    }

    /// Seconds that it takes at least. Each step, of so many rows and rows with logits, reads matrices, and of the so many
    /// positions in the cache keys and values; it multiplies each row with the matrices; it takes the longer of the two.
    /// None where that is not known: for prompts, if matrices are not quantized, so that their products are not int8.
    fn least_seconds(
        self,
        max_rows: usize,
        limits: &Limits,
        work: impl Fn(usize, usize) -> Work,
        kv_bytes: impl Fn(usize, usize) -> u64,
    ) -> Option<f64> {
        let seconds = self.steps(max_rows).map(|(rows, logits, filled)| {
            let work = work(rows, logits);
            if self.prompt > 0 && !work.int8 {
                return None;
            }
            let bytes = (work.bytes + kv_bytes(rows, filled)) as f64;
            let products = if work.int8 { work.products as f64 } else { 0.0 };
            Some((bytes / limits.read_bandwidth).max(products / limits.int8_rate))
        });
        seconds.sum()
    }
}

impl std::fmt::Display for SpeedTest {
    /// `pp512`, `tg128`, `tg128@d4096`; of eight sequences `tg128x8`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prompt {
            0 => write!(f, "tg{}", self.generate)?,
            n => write!(f, "pp{n}")?,
        }
        if self.sequences > 1 {
            write!(f, "x{}", self.sequences)?;
        }
        match self.depth {
            0 => Ok(()),
            depth => write!(f, "@d{depth}"),
        }
    }
}

/// Some samples in few numbers.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// Their sum, divided by their number.
    pub mean: f64,
    /// Sample standard deviation (n - 1); 0 for one sample.
    pub stddev: f64,
    /// In the order of measuring.
    pub samples: Vec<f64>,
}

impl Summary {
    /// # Panics
    /// If there are no samples.
    pub fn of(samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "a summary of no samples");
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let mean = sorted.iter().sum::<f64>() / n as f64;
        let squares: f64 = sorted.iter().map(|x| (x - mean).powi(2)).sum();
        Summary {
            median: (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0,
            min: sorted[0],
            max: sorted[n - 1],
            mean,
            stddev: (squares / (n - 1).max(1) as f64).sqrt(),
            samples,
        }
    }
}

/// What a test came to.
#[derive(Debug)]
pub struct Measurement {
    /// Tokens per second, of all sequences together.
    pub speed: Summary,
    /// What the device can do at most: medians over the repetitions. A CPU is measured before and after each, because a
    /// virtual machine's cores move: memory was read at 36 or at 62 GB/s where two of them shared a cache, or did not,
    /// and either lasted seconds.
    pub limits: Result<Limits>,
    /// Tokens per second that these allow, where that is known.
    pub limit: Option<f64>,
    /// The median of each repetition's share of what was allowed around it.
    pub share: Option<f64>,
}

/// Steps to warm up: after so many the weights stand where they stay.
const WARM_UP: usize = 16;

/// Times a model. The cache of a depth is filled once and used by all tests at that depth.
pub struct Stopwatch {
    model: Model,
    /// At least as long as the depth of the last test, and cut back to it after each.
    cache: Sequence,
    is_warm: bool,
}

impl Stopwatch {
    /// A stopwatch for this model.
    pub fn new(model: &Model) -> Self {
        Stopwatch { model: model.clone(), cache: Sequence::new(), is_warm: false }
    }

    /// Measures what the model's device can do at most; takes half a second.
    ///
    /// # Errors
    /// Memory that the system does not give.
    pub fn limits(&self) -> Result<Limits> {
        self.model.inner.engine.lock().limits()
    }

    /// How the model stores keys and values.
    pub fn kv_type(&self) -> KvType {
        self.model.kv_type()
    }

    /// Tokens per second that the device allows in a test: weights, keys and values are read at its bandwidth, the
    /// products of int8 matrices done at its rate, whichever takes longer. Attention's own work is not counted.
    /// None for prompts if matrices are not quantized.
    pub fn limit(&self, test: SpeedTest, limits: &Limits) -> Option<f64> {
        let engine = self.model.inner.engine.lock();
        let work = |rows, logits| engine.decoder().work(rows, logits);
        let kv_bytes = |rows, filled| match test.prompt {
            0 => rows as u64 * engine.kv_read_bytes(1, filled), // of each sequence
            _ => engine.kv_read_bytes(rows, filled),
        };
        let seconds = test.least_seconds(engine.max_rows(), limits, work, kv_bytes)?;
        Some(test.tokens() as f64 / seconds)
    }

    /// Runs a test `repetitions` times, after a run to warm up (of generation: 16 tokens), and measures the device's limits
    /// meanwhile. `progress` is told (tokens done, tokens in all), those of the cache and of warming up included.
    ///
    /// The first test of all is preceded by 16 steps, so that none meets weights on their way to where they stay.
    ///
    /// # Errors
    /// A test that the context or the sequences of the model do not hold, or no repetitions.
    pub fn measure(
        &mut self,
        test: SpeedTest,
        repetitions: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Measurement> {
        if repetitions == 0 {
            return Err(Error::Usage("0 repetitions measure nothing: take 1 or more".into()));
        }
        let warm_up = SpeedTest { generate: test.generate.min(WARM_UP), ..test };
        if !self.is_warm {
            (0..WARM_UP).try_for_each(|_| self.run(SpeedTest::of_generation(1, 0)).map(drop))?;
            self.is_warm = true;
        }
        let missing = test.depth.saturating_sub(self.cache.len());
        let total = missing + warm_up.tokens() + repetitions * test.tokens();
        self.fill(test, |done| progress(done, total))?;
        self.run(warm_up)?;
        let mut done = missing + warm_up.tokens();
        progress(done, total);
        let mut limits = vec![self.limits()];
        let mut samples = Vec::with_capacity(repetitions);
        for _ in 0..repetitions {
            samples.push(self.run(test)?);
            if self.limits_vary() && limits[0].is_ok() {
                limits.push(self.limits());
            }
            done += test.tokens();
            progress(done, total);
        }
        Ok(self.summarize(test, samples, limits.into_iter().collect()))
    }

    /// Whether what the device can do may change while it is measured.
    fn limits_vary(&self) -> bool {
        self.model.device().kind == "cpu"
    }

    fn summarize(&self, test: SpeedTest, samples: Vec<f64>, limits: Result<Vec<Limits>>) -> Measurement {
        let each = limits.as_ref().ok().and_then(|limits| {
            limits.iter().map(|limits| self.limit(test, limits)).collect::<Option<Vec<_>>>()
        });
        let median =
            |of: fn(&Limits) -> f64, limits: &[Limits]| Summary::of(limits.iter().map(of).collect()).median;
        Measurement {
            share: each.as_ref().map(|limits| median_share(&samples, limits)),
            limit: each.map(|limits| Summary::of(limits).median),
            limits: limits.map(|limits| Limits {
                read_bandwidth: median(|l| l.read_bandwidth, &limits),
                int8_rate: median(|l| l.int8_rate, &limits),
            }),
            speed: Summary::of(samples),
        }
    }

    /// Runs a test once; gives tokens per second.
    ///
    /// # Errors
    /// A test that the context or the sequences of the model do not hold.
    pub fn run(&mut self, test: SpeedTest) -> Result<f64> {
        self.fill(test, |_| ())?;
        let tokens = some_tokens(test.depth, test.prompt + test.generate, self.vocabulary());
        let (prompt, generated) = tokens.split_at(test.prompt);
        let mut forks: Vec<Sequence> = (1..test.sequences).map(|_| self.cache.fork(test.depth)).collect();
        let began = Instant::now();
        let mut result = self.read(prompt, Wants::Last, |_| ());
        for token in generated.chunks(1) {
            result = result.and_then(|()| self.step(token, &mut forks, Wants::Last));
        }
        let seconds = began.elapsed().as_secs_f64();
        self.cache.truncate(test.depth);
        result.map(|()| test.tokens() as f64 / seconds)
    }

    /// Sees to it that the cache holds what stands before a test; `progress` is told how many tokens were read.
    fn fill(&mut self, test: SpeedTest, mut progress: impl FnMut(usize)) -> Result<()> {
        let context = self.model.context();
        if test.context() > context {
            return Err(Error::Usage(format!(
                "{test} needs a context of {} tokens and there are {context}: raise --context",
                test.context()
            )));
        }
        let sequences = self.model.inner.engine.lock().max_sequences();
        if !(1..=sequences).contains(&test.sequences) {
            return Err(Error::Usage(format!(
                "{test}: the model is loaded for 1 to {sequences} sequences at once"
            )));
        }
        self.cache.truncate(test.depth);
        let from = self.cache.len();
        let tokens = some_tokens(from, test.depth - from, self.vocabulary());
        self.read(&tokens, Wants::Nothing, &mut progress)
    }

    /// Appends tokens to the cache, as many in a step as may be; `progress` is told how many were read.
    fn read(&mut self, tokens: &[u32], wants: Wants, mut progress: impl FnMut(usize)) -> Result<()> {
        let max_rows = self.model.inner.engine.lock().max_rows();
        let mut done = 0;
        for chunk in tokens.chunks(max_rows) {
            done += chunk.len();
            self.step(chunk, &mut [], if done == tokens.len() { wants } else { Wants::Nothing })?;
            progress(done);
        }
        Ok(())
    }

    /// A step of the cache's sequence, and of others with it.
    fn step(&mut self, tokens: &[u32], others: &mut [Sequence], wants: Wants) -> Result<()> {
        let all = std::iter::once(&mut self.cache).chain(others);
        let mut feeds: Vec<Feed<'_>> = all.map(|sequence| Feed { sequence, tokens, wants }).collect();
        self.model.inner.engine.lock().step(&mut feeds).map(drop)
    }

    fn vocabulary(&self) -> usize {
        self.model.vocabulary()
    }
}

/// The median of the samples' shares of their limits: one for all, or one before each sample and one after the last.
fn median_share(samples: &[f64], limits: &[f64]) -> f64 {
    let limit = |i: usize| limits[i.min(limits.len() - 1)];
    let share = |(i, sample): (usize, &f64)| sample / ((limit(i) + limit(i + 1)) / 2.0);
    Summary::of(samples.iter().enumerate().map(share).collect()).median
}

/// Tokens for positions `from .. from + count`. Any do: the work does not depend on which.
fn some_tokens(from: usize, count: usize, vocabulary: usize) -> Vec<u32> {
    (from..from + count).map(|position| (position * 7919 % vocabulary) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { read_bandwidth: 100.0, int8_rate: 1000.0 };

    /// 300 bytes, 50 products for each row, 10 for its logits.
    fn work(rows: usize, logits: usize) -> Work {
        Work { bytes: 300, products: (50 * rows + 10 * logits) as u64, int8: true }
    }

    fn test(prompt: usize, generate: usize, depth: usize) -> SpeedTest {
        SpeedTest { prompt, generate, depth, sequences: 1 }
    }

    #[test]
    fn tests_are_named_as_in_llama_bench() {
        let names = [test(512, 0, 0), test(0, 128, 0), test(0, 128, 4096)].map(|t| t.to_string());
        assert_eq!(names, ["pp512", "tg128", "tg128@d4096"]);
    }

    #[test]
    fn a_prompt_is_read_in_chunks_and_only_its_last_token_has_logits() {
        let steps: Vec<_> = test(10, 0, 5).steps(4).collect();
        assert_eq!(steps, [(4, 0, 9), (4, 0, 13), (2, 1, 15)]);
    }

    #[test]
    fn generation_takes_a_step_with_logits_for_each_token() {
        let steps: Vec<_> = test(0, 3, 5).steps(4).collect();
        assert_eq!(steps, [(1, 1, 6), (1, 1, 7), (1, 1, 8)]);
    }

    #[test]
    fn sequences_take_their_tokens_in_the_same_steps() {
        let eight = SpeedTest { sequences: 8, ..test(0, 2, 5) };
        assert_eq!((eight.tokens(), eight.context(), eight.to_string()), (16, 7, "tg2x8@d5".into()));
        assert_eq!(eight.steps(512).collect::<Vec<_>>(), [(8, 8, 6), (8, 8, 7)]);
    }

    #[cfg(feature = "pocket")]
    #[test]
    fn what_stands_before_a_test_is_read_once_for_all_tests_at_its_depth() {
        let model = Model::load("pocket").unwrap();
        let mut stopwatch = Stopwatch::new(&model);
        let mut tokens_of = |test| {
            let mut tokens = 0;
            stopwatch.measure(test, 2, |_, total| tokens = total).unwrap();
            tokens
        };
        // a warm-up and two repetitions besides
        assert_eq!(tokens_of(test(3, 0, 70)), 70 + 3 * 3);
        assert_eq!(tokens_of(test(0, 2, 70)), 3 * 2);
        assert_eq!(tokens_of(test(0, 2, 75)), 5 + 3 * 2);
    }

    #[test]
    fn each_sample_is_held_against_the_limits_around_it() {
        // 30 of 30, 45 of (30 + 60) / 2, 54 of 60
        assert_eq!(median_share(&[30.0, 45.0, 54.0], &[30.0, 30.0, 60.0, 60.0]), 1.0);
        assert_eq!(median_share(&[54.0, 45.0], &[60.0, 60.0, 30.0]), (0.9 + 1.0) / 2.0);
        assert_eq!(median_share(&[20.0, 30.0, 40.0], &[40.0]), 0.75, "one for all");
    }

    #[test]
    fn generation_is_limited_by_reading_weights_and_the_cache() {
        // 300 bytes of weights, and 2 for each of 6, 7 and 8 positions, at 100 a second
        let seconds = test(0, 3, 5).least_seconds(512, &LIMITS, work, |_, filled| 2 * filled as u64);
        assert!((seconds.unwrap() - 9.42).abs() < 1e-12, "{seconds:?}");
    }

    #[test]
    fn a_long_prompt_is_limited_by_products() {
        // 100 rows of 50 products and 10 for the logits, at 1000 a second
        let seconds = test(100, 0, 0).least_seconds(512, &LIMITS, work, |_, _| 0);
        assert!((seconds.unwrap() - 5.01).abs() < 1e-12, "{seconds:?}");
    }

    #[test]
    fn of_float_matrices_only_what_is_read_is_known() {
        let floats = |rows, logits| Work { int8: false, ..work(rows, logits) };
        assert_eq!(test(100, 0, 0).least_seconds(512, &LIMITS, floats, |_, _| 0), None);
        let slow = Limits { int8_rate: 1.0, ..LIMITS };
        assert_eq!(test(0, 1, 0).least_seconds(512, &slow, floats, |_, _| 0), Some(3.0));
    }

    #[test]
    fn a_summary_has_median_extremes_mean_and_sample_deviation() {
        let summary = Summary::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((summary.median, summary.min, summary.max, summary.mean), (2.5, 1.0, 4.0, 2.5));
        assert!((summary.stddev - (5.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(summary.samples, [4.0, 1.0, 3.0, 2.0]);
        assert_eq!(Summary::of(vec![3.0, 9.0, 4.0]).median, 4.0);
    }

    #[test]
    fn one_sample_has_no_deviation() {
        assert_eq!(Summary::of(vec![7.0]).stddev, 0.0);
    }
}
