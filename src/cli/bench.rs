//! `pensive bench MODEL…`: tokens per second, and the share of what the machine allows.

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde_json::Value;

use super::args::{BenchArgs, BenchFormat, LoadArgs};
use super::interrupt::{self, Second};
use super::render::{Console, Unit, print};
use super::session;
use super::settings::{Flags, Settings};
use crate::api::measure::{Measurement, SpeedTest, Stopwatch, Summary};
use crate::backend::{Device, KvType, Limits};
use crate::model::Synthetic;
use crate::{Error, Model, Result};

pub(super) fn run(args: &BenchArgs, console: &Console) -> Result<ExitCode> {
    let plan = Plan::new(args)?;
    if let Some(path) = &args.write {
        let synthetic = args.synthetic.iter().map(|name| Synthetic::new(name, args.layers)?.write(path));
        return synthetic.collect::<Result<()>>().map(|()| ExitCode::SUCCESS);
    }
    let files = args.models.iter().map(|name| Named { name, synthetic: false });
    let synthetic = args.synthetic.iter().map(|name| Named { name, synthetic: true });
    let named: Vec<Named> = files.chain(synthetic).collect();
    // a name that means nothing is told before hours of measuring
    named.iter().try_for_each(|named| resolve(args, *named, console))?;
    let results = Arc::new(Results::new(args.format));
    let so_far = Arc::clone(&results);
    let armed = interrupt::arm(Second::Ends, move || {
        let _ = so_far.print();
        interrupt::end()
    });
    let measured = named.iter().try_for_each(|named| {
        let mut sha256 = None;
        plan.threads.iter().try_for_each(|&threads| {
            let loaded = load(args, *named, threads, &plan, console)?;
            let subject = Subject::new(*named, loaded, &mut sha256, console)?;
            subject.measure(&plan, &results, console)
        })
    });
    drop(armed);
    // what was measured before something failed is worth having
    results.print()?;
    measured.map(|()| ExitCode::SUCCESS)
}

/// What was measured, until it is printed: at the end, or where a signal ends it.
struct Results {
    format: BenchFormat,
    found: Mutex<(Vec<Row>, Known)>,
}

impl Results {
    fn new(format: BenchFormat) -> Results {
        Results { format, found: Mutex::default() }
    }

    fn found(&self) -> MutexGuard<'_, (Vec<Row>, Known)> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, row: Row, device: Device, limits: &Result<Limits>, console: &Console) -> Result<()> {
        if self.format == BenchFormat::Jsonl {
            print(json_line(&row)?)?; // each as soon as it is known
        }
        let (rows, known) = &mut *self.found();
        known.add(device, limits, console);
        rows.push(row);
        Ok(())
    }

    /// Prints what is there, once.
    fn print(&self) -> Result<()> {
        let (rows, known) = std::mem::take(&mut *self.found());
        match self.format {
            _ if rows.is_empty() => Ok(()),
            BenchFormat::Md => print(markdown(&rows) + &known.lines()),
            BenchFormat::Json => print(pretty_json(&rows)?),
            BenchFormat::Jsonl => Ok(()),
            BenchFormat::Csv => print(csv(&rows)?),
        }
    }
}

/// What is to be measured of each model.
#[derive(Debug, PartialEq)]
struct Plan {
    /// In ascending order of depth, so that the cache only grows.
    tests: Vec<SpeedTest>,
    repetitions: Vec<usize>,
    /// None: as many as the settings say.
    threads: Vec<Option<usize>>,
    context: usize,
    /// The most at once.
    sequences: usize,
}

impl Plan {
    fn new(args: &BenchArgs) -> Result<Plan> {
        let mut depths = args.depth.clone();
        depths.sort_unstable();
        let mut tests = Vec::new();
        for &depth in &depths {
            let prompts = args.prompt.iter().map(|&prompt| SpeedTest::of_prompt(prompt, depth));
            let generations = args.generate.iter().flat_map(|&generate| {
                let of = move |&sequences: &usize| SpeedTest {
                    sequences,
                    ..SpeedTest::of_generation(generate, depth)
                };
                args.sequences.iter().map(of)
            });
            tests.extend(prompts.chain(generations).filter(|test| test.tokens() > 0));
        }
        let Some(needed) = tests.iter().map(SpeedTest::context).max() else {
            return Err(Error::Usage(
                "-p and -n are 0, so that nothing is left to measure: give one of them a number".into(),
            ));
        };
        let context = args.context.unwrap_or(needed);
        if let Some(test) = tests.iter().find(|test| test.context() > context) {
            return Err(Error::Usage(format!(
                "--context {context}: {test} takes {} tokens; raise it or leave it out",
                test.context()
            )));
        }
        let threads = match args.threads.as_slice() {
            [] => vec![None],
            given => given.iter().copied().map(Some).collect(),
        };
        let sequences = tests.iter().map(|test| test.sequences).max().unwrap_or(1);
        Ok(Plan { tests, repetitions: args.repetitions.clone(), threads, context, sequences })
    }
}

/// A model as it was asked for.
#[derive(Clone, Copy)]
struct Named<'a> {
    name: &'a str,
    synthetic: bool,
}

/// Sees to it that a model's files are here, or that its shapes are known.
fn resolve(args: &BenchArgs, model: Named, console: &Console) -> Result<()> {
    if model.synthetic {
        return Synthetic::new(model.name, args.layers).map(drop);
    }
    session::ensure(&settings(args, model, None, None)?, console)
}

fn load(
    args: &BenchArgs,
    model: Named,
    threads: Option<usize>,
    plan: &Plan,
    console: &Console,
) -> Result<Model> {
    let settings = settings(args, model, threads, Some(plan.context))?;
    let builder = settings.builder()?.sequences(plan.sequences);
    let builder = if model.synthetic { builder.synthetic(args.layers) } else { builder };
    session::build(builder, console).map_err(|error| match error {
        Error::Memory(what) if plan.sequences > 1 => {
            Error::Memory(format!("{} sequences at once, of which fewer take less: {what}", plan.sequences))
        }
        other => other,
    })
}

fn settings(
    args: &BenchArgs,
    model: Named,
    threads: Option<usize>,
    context: Option<usize>,
) -> Result<Settings> {
    let BenchArgs { ref device, gpu_layers, kv_type, quantize, force, yes, offline, .. } = *args;
    let device = device.clone();
    let load = LoadArgs { device, gpu_layers, threads, context, kv_type, quantize, force, yes, offline };
    Settings::from_env(Flags { model: Some(model.name.to_owned()), load, ..Flags::default() })
}

/// The limits of the devices that were met, a measurement for each test.
#[derive(Default)]
struct Known(Vec<(Device, Vec<Limits>)>);

impl Known {
    /// Keeps a measurement; says once of a device why it has none.
    fn add(&mut self, device: Device, limits: &Result<Limits>, console: &Console) {
        let known = self.0.iter().position(|(known, _)| *known == device);
        let place = known.unwrap_or(self.0.len());
        if let (Err(error), None) = (limits, known) {
            console.note(format!("{device}: no limits known: {error}"));
        }
        if known.is_none() {
            self.0.push((device, Vec::new()));
        }
        self.0[place].1.extend(limits.as_ref().ok());
    }

    /// What stands below the table.
    fn lines(&self) -> String {
        let line = |(device, limits): &(Device, Vec<Limits>)| {
            let range = |of: fn(&Limits) -> f64, decimals: usize| {
                let numbers = || limits.iter().map(|limits| of(limits) / 1e9);
                let [low, high] = [numbers().reduce(f64::min)?, numbers().reduce(f64::max)?];
                let [low, high] = [low, high].map(|number| format!("{number:.decimals$}"));
                Some(if low == high { low } else { format!("{low} to {high}") })
            };
            let (bytes, products) = (range(|l| l.read_bandwidth, 1)?, range(|l| l.int8_rate, 0)?);
            Some(format!(
                "{device}: memory is read at {bytes} GB/s, int8 products are done at {products} G/s\n"
            ))
        };
        ["\n".to_owned()].into_iter().chain(self.0.iter().filter_map(line)).collect()
    }
}

/// A loaded model, and what is the same in all of its rows.
struct Subject {
    model: Model,
    name: String,
    /// None: it is synthetic.
    sha256: Option<String>,
}

impl Subject {
    fn new(called: Named, model: Model, sha256: &mut Option<String>, console: &Console) -> Result<Subject> {
        let sha256 = match sha256 {
            _ if called.synthetic => None,
            Some(hash) => Some(hash.clone()),
            None => {
                let mut bar = console.slow_bar("hashing", Unit::Bytes);
                Some(sha256.insert(model.sha256(|done, total| bar.update(done, total))?).clone())
            }
        };
        let mut name = match called.synthetic {
            true => format!("synthetic {}", called.name),
            false => short_name(called.name),
        };
        if let Some(mix) = model.quantized() {
            name = format!("{name} as {}", mix.name);
        }
        Ok(Subject { name, model, sha256 })
    }

    fn measure(&self, plan: &Plan, results: &Results, console: &Console) -> Result<()> {
        let mut stopwatch = Stopwatch::new(&self.model);
        for &test in &plan.tests {
            for &repetitions in &plan.repetitions {
                let mut bar = console.slow_bar("measuring", Unit::Tokens);
                let measured = stopwatch.measure(test, repetitions, |done, total| {
                    bar.update(done as u64, total as u64);
                    bar.message(test.to_string());
                })?;
                bar.finish();
                let device = self.model.device();
                let row = self.row(test, stopwatch.kv_type(), &measured);
                let line = format!("{} on {device}: {test} {}", row.model, row.speed());
                results.add(row, device, &measured.limits, console)?;
                console.note(line);
            }
        }
        Ok(())
    }

    fn row(&self, test: SpeedTest, kv_type: KvType, measured: &Measurement) -> Row {
        let Device { kind, name, threads } = self.model.device();
        let limits = measured.limits.as_ref().ok();
        Row {
            test: test.to_string(),
            model: self.name.clone(),
            model_sha256: self.sha256.clone(),
            size: self.model.weight_bytes(),
            parameters: self.model.parameters(),
            backend: kind,
            isa: name,
            threads,
            kv_type: kv_type.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            n_prompt: test.prompt,
            n_gen: test.generate,
            n_depth: test.depth,
            n_sequences: test.sequences,
            share_of_limit: measured.share,
            tokens_per_second: measured.speed.clone(),
            limits: RowLimits {
                tokens_per_second: measured.limit,
                read_bytes_per_second: limits.map(|limits| limits.read_bandwidth),
                int8_products_per_second: limits.map(|limits| limits.int8_rate),
            },
        }
    }
}

/// What a model is called in a table: of a path, the file's name.
fn short_name(called: &str) -> String {
    let path = Path::new(called);
    let file = path.file_stem().filter(|_| path.exists());
    file.map_or_else(|| called.to_owned(), |file| file.to_string_lossy().into_owned())
}

/// One result.
#[derive(Clone, Debug, Serialize)]
struct Row {
    test: String,
    model: String,
    /// None: the model is synthetic.
    model_sha256: Option<String>,
    /// Bytes of the weights.
    size: u64,
    parameters: u64,
    backend: String,
    /// Of a GPU its name.
    isa: String,
    threads: usize,
    kv_type: String,
    version: &'static str,
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
    n_sequences: usize,
    tokens_per_second: Summary,
    /// Of what the machine allows: the median over the repetitions.
    share_of_limit: Option<f64>,
    limits: RowLimits,
}

/// What the machine allows, medians while the test ran: in this test, and by the two measures that this comes from.
#[derive(Clone, Debug, Serialize)]
struct RowLimits {
    tokens_per_second: Option<f64>,
    read_bytes_per_second: Option<f64>,
    int8_products_per_second: Option<f64>,
}

impl Row {
    fn speed(&self) -> String {
        format!("{:.2} ± {:.2} t/s", self.tokens_per_second.mean, self.tokens_per_second.stddev)
    }

    /// llama-bench's columns and its way of writing them, then ours.
    fn cells(&self) -> [String; 10] {
        let speed = self.speed();
        [
            self.model.clone(),
            format!("{:.2} GiB", self.size as f64 / f64::from(1 << 30)),
            match self.parameters {
                n if n < 1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
                n => format!("{:.2} B", n as f64 / 1e9),
            },
            format!("{} {}", self.backend, self.isa),
            self.threads.to_string(),
            self.kv_type.clone(),
            self.test.replace("@", " @ "),
            speed.trim_end_matches(" t/s").to_owned(),
            format!("{:.2}", self.tokens_per_second.median),
            self.share_of_limit.map_or("unknown".into(), |share| format!("{:.0}%", 100.0 * share)),
        ]
    }
}

const HEADS: [&str; 10] =
    ["model", "size", "params", "backend", "threads", "type_kv", "test", "t/s", "median", "of the limit"];

/// Columns whose text stands at the left.
const LEFT: [&str; 2] = ["model", "backend"];

fn markdown(rows: &[Row]) -> String {
    let cells: Vec<[String; 10]> = rows.iter().map(Row::cells).collect();
    // the cache's type shows where it is not the default, as in llama-bench
    let is_shown =
        |column: &usize| HEADS[*column] != "type_kv" || rows.iter().any(|row| row.kv_type != "f16");
    let shown: Vec<usize> = (0..HEADS.len()).filter(is_shown).collect();
    let width = |column: usize| {
        let texts = cells.iter().map(|row| row[column].as_str()).chain([HEADS[column]]);
        texts.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; 10] = std::array::from_fn(width);
    let line = |row: [&str; 10]| {
        let cell = |&i: &usize| match LEFT.contains(&HEADS[i]) {
            true => format!("| {:1$} ", row[i], widths[i]),
            false => format!("| {:>1$} ", row[i], widths[i]),
        };
        shown.iter().map(cell).collect::<String>() + "|\n"
    };
    let rule = |&i: &usize| match LEFT.contains(&HEADS[i]) {
        true => format!("| {} ", "-".repeat(widths[i])),
        false => format!("| {}: ", "-".repeat(widths[i] - 1)),
    };
    let rule = shown.iter().map(rule).collect::<String>() + "|\n";
    let body = cells.iter().map(|row| line(row.each_ref().map(String::as_str)));
    [line(HEADS), rule].into_iter().chain(body).collect()
}

fn json_error(error: serde_json::Error) -> Error {
    Error::Text(error.to_string())
}

fn json_line(row: &Row) -> Result<String> {
    Ok(serde_json::to_string(row).map_err(json_error)? + "\n")
}

fn pretty_json(rows: &[Row]) -> Result<String> {
    Ok(serde_json::to_string_pretty(rows).map_err(json_error)? + "\n")
}

/// The JSON objects as lines of values; the name of a value within a value is both names.
fn csv(rows: &[Row]) -> Result<String> {
    let mut text = String::new();
    for row in rows {
        let mut fields = Vec::new();
        flatten("", &serde_json::to_value(row).map_err(json_error)?, &mut fields);
        let (names, values): (Vec<String>, Vec<String>) = fields.into_iter().unzip();
        if text.is_empty() {
            text = names.join(",") + "\n";
        }
        text += &(values.join(",") + "\n");
    }
    Ok(text)
}

fn flatten(name: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    let text = match value {
        Value::Object(object) => {
            for (key, value) in object {
                let name = if name.is_empty() { key.clone() } else { format!("{name}_{key}") };
                flatten(&name, value, fields);
            }
            return;
        }
        Value::Array(items) => items.iter().map(Value::to_string).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        number => number.to_string(),
    };
    // RFC 4180: what holds a separator is quoted, a quote in it doubled
    let quoted = text.contains([',', '"', '\n', '\r']);
    let text = if quoted { format!("\"{}\"", text.replace('"', "\"\"")) } else { text };
    fields.push((name.to_owned(), text));
}

#[cfg(test)]
mod tests;
