//! Files that pensive quantized beside those that llama.cpp makes of the same source: the types of their tensors, and, all
//! run by llama.cpp, perplexity and KL divergence from the source. And whether both engines continue a text alike on
//! pensive's file.
//!
//! usage: peers quantize SOURCE.gguf TYPE,… --text FILE [--calibrate FILE] [--folder FOR_THE_FILES] [--windows N]
//!        [-t THREADS] [--keep]
//!
//! With `--calibrate` both get the importance that pensive measures in that text.

use std::ffi::CString;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use pensive::api::{Importance, quantize_by};
use pensive::checkpoint::{Checkpoint, Tensor};
use pensive::quant::Mix;
use pensive::text::{Special, Tokenizer};
use pensive::{CancelHandle, Event, Model, Options, Prompt};

/// Tokens of a window, each read by itself; the second half counts.
pub const WINDOW: usize = 512;
/// Tokens that both engines continue the text by, and from how many.
const GREEDY: usize = 64;
const PROMPT: usize = 32;

struct Args {
    source: PathBuf,
    types: Vec<Mix>,
    text: PathBuf,
    calibrate: Option<PathBuf>,
    folder: PathBuf,
    windows: usize,
    /// Of llama.cpp.
    threads: i32,
    /// Whether the files stay.
    keep: bool,
}

fn args(words: &[String]) -> Option<Args> {
    let mut words = words.iter();
    let source = words.next()?.into();
    let types = words.next()?.split(',').map(Mix::parse).collect::<Option<_>>()?;
    let mut args = Args {
        source,
        types,
        text: PathBuf::new(),
        calibrate: None,
        folder: std::env::temp_dir(),
        windows: usize::MAX,
        threads: 2,
        keep: false,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--text" => args.text = words.next()?.into(),
            "--calibrate" => args.calibrate = Some(words.next()?.into()),
            "--folder" => args.folder = words.next()?.into(),
            "--windows" => args.windows = words.next()?.parse().ok()?,
            "--keep" => args.keep = true,
            "-t" => args.threads = words.next()?.parse().ok()?,
            _ => return None,
        }
    }
    args.text.exists().then_some(args)
}

impl Args {
    fn windows_of<'a>(&self, tokens: &'a [u32]) -> impl Iterator<Item = &'a [u32]> {
        tokens.chunks_exact(WINDOW).take(self.windows)
    }
}

pub fn main(words: &[String]) {
    let Some(args) = args(words) else {
        eprintln!(
            "usage: peers quantize SOURCE.gguf TYPE,… --text FILE [--calibrate FILE] [--folder FOR_THE_FILES] [--windows N] [-t THREADS] [--keep]"
        );
        std::process::exit(2);
    };
    let mut backend = LlamaBackend::init().expect("llama.cpp starts");
    backend.void_logs();
    let source = Checkpoint::open(&args.source).expect("the source can be read");
    let tokenizer = Tokenizer::from_metadata(&source.metadata).expect("the source has a vocabulary");
    let text = std::fs::read_to_string(&args.text).expect("the text can be read");
    let tokens = tokenizer.encode(&text, Special::Text).expect("the text can be encoded");
    let importance = args.calibrate.as_ref().map(|text| {
        let text = std::fs::read_to_string(text).expect("the text to calibrate by can be read");
        Importance::measure(&source, &text, |_, _| {}).expect("the source can be run")
    });
    println!("{} windows of {WINDOW} tokens", (tokens.len() / WINDOW).min(args.windows));
    let (mut reference, mut surprise) = (Vec::new(), 0.0);
    let model = load(&backend, &args.source);
    evaluate(&backend, &model, args.windows_of(&tokens), args.threads, |row, next| {
        surprise -= f64::from(row[next as usize]);
        reference.push(row);
    });
    println!("perplexity of the source: {:.4}", (surprise / reference.len() as f64).exp());
    println!(
        "| type | bits: pensive, llama.cpp | perplexity: pensive, llama.cpp | ratio | KL: pensive, llama.cpp | greedy |"
    );
    println!("|---|---|---|---|---|---|");
    for mix in &args.types {
        let [ours, theirs] =
            ["pensive", "llama.cpp"].map(|by| args.folder.join(format!("{}-{by}.gguf", mix.name)));
        let written = quantize_by(&source, *mix, importance.as_ref(), &ours, &CancelHandle::new(), |_, _| {})
            .expect("pensive quantizes");
        quantize_by_llama(&args.source, &theirs, *mix, &known(&source, importance.as_ref()));
        let their_bits = differences(&ours, &theirs);
        let [ours_is, theirs_is] =
            [&ours, &theirs].map(|file| measure(&backend, file, &reference, &tokens, &args));
        let agreed = greedy(&backend, &ours, &tokens[..PROMPT], &args);
        println!(
            "| {} | {:.3}, {their_bits:.3} | {:.4}, {:.4} | {:.4} | {:.5}, {:.5} | {agreed} |",
            mix.name,
            written.bits_per_weight,
            ours_is.0,
            theirs_is.0,
            ours_is.0 / theirs_is.0,
            ours_is.1,
            theirs_is.1
        );
        if !args.keep {
            [ours, theirs].iter().for_each(|file| drop(std::fs::remove_file(file)));
        }
    }
}

/// What is known of the importance of tensors' columns, by their names.
fn known(source: &Checkpoint, importance: Option<&Importance>) -> Vec<(CString, Vec<f32>)> {
    let of = |tensor: &Tensor| {
        let (matrices, columns) =
            (if tensor.shape.len() == 3 { tensor.shape[0] } else { 1 }, tensor.columns());
        let rows: Vec<Option<&[f32]>> =
            (0..matrices).map(|i| importance?.of(&tensor.name, i, columns)).collect();
        // of an expert that no row went to nothing is known
        let row = |row: &Option<&[f32]>| row.map_or_else(|| vec![1.0; columns], <[f32]>::to_vec);
        let all = rows.iter().any(Option::is_some).then(|| rows.iter().flat_map(row).collect())?;
        Some((CString::new(tensor.name.as_str()).expect("without NUL"), all))
    };
    source.tensors.values().filter_map(of).collect()
}

/// llama.cpp's own quantization; a source that is quantized already is taken too.
fn quantize_by_llama(source: &Path, to: &Path, mix: Mix, known: &[(CString, Vec<f32>)]) {
    let c_string =
        |path: &Path| CString::new(path.to_str().expect("the path is UTF-8")).expect("without NUL");
    let (source, to) = (c_string(source), c_string(to));
    let entry = |name, data, size| llama_cpp_sys_2::llama_model_imatrix_data { name, data, size };
    let mut importance: Vec<_> =
        known.iter().map(|(name, row)| entry(name.as_ptr(), row.as_ptr(), row.len())).collect();
    importance.push(entry(std::ptr::null(), std::ptr::null(), 0));
    // SAFETY: the strings and what is known live until the call returns; a name that is null ends the list of the latter;
    // the other parameters are llama.cpp's own defaults but for two.
    let failed = unsafe {
        let mut params = llama_cpp_sys_2::llama_model_quantize_default_params();
        params.ftype = mix.file_type;
        params.allow_requantize = true;
        if !known.is_empty() {
            params.imatrix = importance.as_ptr();
        }
        llama_cpp_sys_2::llama_model_quantize(source.as_ptr(), to.as_ptr(), &params)
    };
    assert_eq!(failed, 0, "llama.cpp quantizes to {}", mix.name);
}

/// Prints the tensors whose types differ; returns the bits per weight of the second file.
fn differences(ours: &Path, theirs: &Path) -> f64 {
    let [ours, theirs] = [ours, theirs].map(|file| Checkpoint::open(file).expect("pensive reads both files"));
    assert_eq!(ours.tensors.len(), theirs.tensors.len(), "tensors");
    let mut differ = 0;
    for (name, theirs) in &theirs.tensors {
        let ours = ours.tensor(name).expect("both files have the same tensors");
        if ours.kind != theirs.kind {
            differ += 1;
            if differ <= 8 {
                println!("{name} {:?}: {} here, {} there", ours.shape, ours.kind, theirs.kind);
            }
        }
    }
    if differ > 8 {
        println!("{differ} tensors differ in type");
    }
    let values: usize = theirs.tensors.values().map(|t| t.rows() * t.columns()).sum();
    8.0 * theirs.total_bytes() as f64 / values as f64
}

fn context<'a>(backend: &LlamaBackend, model: &'a LlamaModel, threads: i32) -> LlamaContext<'a> {
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(WINDOW as u32))
        .with_n_batch(WINDOW as u32)
        .with_n_threads(threads)
        .with_n_threads_batch(threads);
    model.new_context(backend, params).expect("llama.cpp makes a context")
}

pub fn load(backend: &LlamaBackend, path: &Path) -> LlamaModel {
    LlamaModel::load_from_file(backend, path, &LlamaModelParams::default()).expect("llama.cpp loads the file")
}

/// Log-probabilities of the rows that count, [windows x (WINDOW / 2 - 1)], each handed to `row` with the token that follows.
pub fn evaluate<'a>(
    backend: &LlamaBackend,
    model: &LlamaModel,
    windows: impl Iterator<Item = &'a [u32]>,
    threads: i32,
    mut row: impl FnMut(Vec<f32>, u32),
) {
    let mut context = context(backend, model, threads);
    for window in windows {
        context.clear_kv_cache();
        let mut batch = LlamaBatch::new(WINDOW, 1);
        for (position, &token) in window.iter().enumerate() {
            let counts = position >= WINDOW / 2;
            batch.add(LlamaToken(token as i32), position as i32, &[0], counts).expect("the batch has room");
        }
        context.decode(&mut batch).expect("llama.cpp decodes");
        for position in WINDOW / 2..WINDOW - 1 {
            row(log_softmax(context.get_logits_ith(position as i32)), window[position + 1]);
        }
    }
}

/// (perplexity, KL divergence from the reference) of a file.
fn measure(
    backend: &LlamaBackend,
    file: &Path,
    reference: &[Vec<f32>],
    tokens: &[u32],
    args: &Args,
) -> (f64, f64) {
    let (mut surprise, mut divergence, mut rows) = (0.0, 0.0, reference.iter());
    let model = load(backend, file);
    evaluate(backend, &model, args.windows_of(tokens), args.threads, |row, next| {
        let expected = rows.next().expect("both have as many rows");
        surprise -= f64::from(row[next as usize]);
        divergence += expected.iter().zip(&row).map(|(p, q)| f64::from(p.exp() * (p - q))).sum::<f64>();
    });
    let count = reference.len() as f64;
    ((surprise / count).exp(), divergence / count)
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from((l - best).exp())).sum();
    let log = best + sum.ln() as f32;
    logits.iter().map(|&l| l - log).collect()
}

/// The standard deviation of the differences.
fn spread(a: &[f32], b: &[f32]) -> f64 {
    let differences = || a.iter().zip(b).map(|(a, b)| f64::from(a - b));
    let mean = differences().sum::<f64>() / a.len() as f64;
    (differences().map(|d| (d - mean).powi(2)).sum::<f64>() / a.len() as f64).sqrt()
}

/// How many tokens both engines continue a text by before they part, how near to each other the two tokens at which they part
/// are for llama.cpp, and by how much the engines' logits differ there (standard deviation over the vocabulary).
fn greedy(backend: &LlamaBackend, file: &Path, prompt: &[u32], args: &Args) -> String {
    let name = file.to_str().expect("the path is UTF-8");
    let model_of_ours = Model::builder(name).context(WINDOW).load().expect("pensive loads its file");
    let mut options = Options::new().max_tokens(GREEDY);
    options.sampling.temperature = Some(0.0);
    options.sampling.repeat_penalty = Some(1.0);
    let generation =
        model_of_ours.generate(Prompt::Tokens(prompt.to_vec()), &options).expect("pensive generates");
    let events = generation.map(|event| event.expect("pensive generates"));
    let done =
        events.filter_map(|event| if let Event::Done(stats) = event { Some(stats.tokens) } else { None });
    let continued = done.last().expect("a generation ends");

    let model = load(backend, file);
    let mut context = context(backend, &model, args.threads);
    let mut tokens = prompt.to_vec();
    let mut read = 0;
    for (agreed, &ours) in continued.iter().enumerate() {
        let mut batch = LlamaBatch::new(WINDOW, 1);
        for (position, &token) in tokens.iter().enumerate().skip(read) {
            let last = position + 1 == tokens.len();
            batch.add(LlamaToken(token as i32), position as i32, &[0], last).expect("the batch has room");
        }
        context.decode(&mut batch).expect("llama.cpp decodes");
        read = tokens.len();
        let logits = context.get_logits_ith(batch.n_tokens() - 1);
        let theirs =
            (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("there are logits");
        if theirs != ours as usize {
            let gap = logits[theirs] - logits[ours as usize];
            let mut noise = 0.0;
            model_of_ours.evaluate(&tokens, |_, row| noise = spread(row, logits)).expect("pensive evaluates");
            return format!("{agreed} of {GREEDY}, parting at {gap:.2} ± {noise:.2}");
        }
        tokens.push(ours);
    }
    format!("{} of {GREEDY}", continued.len())
}
