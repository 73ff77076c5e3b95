//! The arguments of every command, as clap reads them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Parser, Subcommand};

use super::words::arrange;
use crate::api::{Quantize, ThoughtBounds};
use crate::backend::KvType;
use crate::backend::devices::DeviceChoice;
use crate::quant::Mix;
use crate::{Error, Result, Sampling, SamplingOverrides, Think};

const EXAMPLES: &str = "\
Examples:
  pensive run deepseek-r1 why is the sky blue
  cat notes.txt | pensive run deepseek-r1:7b summarise
  pensive chat deepseek-r1:8b
  pensive pull deepseek-r1:14b
  pensive run ./model.gguf --json 'What is 17 * 23?'

MODEL is a short name of the catalog (deepseek-r1:7b, deepseek-r1:7b-q8_0), a repository of the Hugging Face hub \
(owner/repo[@revision][:QUANTIZATION]) with GGUF files or safetensors, or the path of a GGUF file or of a folder \
with safetensors.";

const RUN_HELP: &str = "\
The prompt's words are joined with spaces. A word that is one of the options above is an option wherever it \
stands; any other word belongs to the prompt, also if it begins with a hyphen, but right after MODEL what looks \
like an option has to be one. After `--` every word belongs to \
the prompt. Piped text comes first, then a blank line, then the words.

Examples:
  pensive run deepseek-r1 why is the sky blue
  pensive run deepseek-r1 '-5 + 3?' --stats
  pensive run deepseek-r1 -- what does --json do
  git diff | pensive run deepseek-r1:7b review this --thought hide
  pensive run deepseek-r1 --json --seed 1 --temperature 0 'Name a prime.'

Exit codes: 0 the answer is complete or reached --max-tokens, 130 interrupted by Ctrl-C (the partial answer is \
printed), 143 ended by SIGTERM, 129 by SIGHUP, 2 wrong usage, 1 anything else.";

const BENCH_HELP: &str = "\
Every combination of the lists is measured: prompts (pp512) and generation (tg128) after each depth (tg128@d4096). \
The share is of what the memory's bandwidth and the rate of int8 products, both measured meanwhile, allow.

Examples:
  pensive bench deepseek-r1
  pensive bench deepseek-r1:1.5b deepseek-r1:7b -p 0 -n 64 -d 0,4096 -t 1,2,4 -o json";

const PERPLEXITY_HELP: &str = "\
A text is read in windows of 512 tokens (or --context), of which the second half counts, as llama-perplexity does it.

Examples:
  pensive perplexity deepseek-r1 --text wiki.test.raw
  pensive perplexity ./model.gguf --reference logits.safetensors --json";

const QUANTIZE_HELP: &str = "\
Types, finest first: F32 F16 BF16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_0 Q5_1 Q4_K_M Q4_K_S Q4_0 Q4_1 IQ4_NL IQ4_XS Q3_K_L Q3_K_M \
Q3_K_S IQ3_M IQ3_S IQ3_XS Q2_K TQ1_0 TQ2_0 MXFP4_MOE; and with --calibrate IQ3_XXS Q2_K_S IQ2_M IQ2_S IQ2_XS IQ2_XXS IQ1_M \
IQ1_S. The mixes are llama.cpp's, which loads the file too. A model that is quantized already loses a little more; start \
from F16, BF16 or F32 where you can.

Examples:
  pensive quantize ./DeepSeek-R1-Distill-Qwen-1.5B r1-q4.gguf --type q4_k_m
  pensive quantize ./model-f16.gguf model-q8.gguf --type q8_0
  pensive quantize ./model-f16.gguf model-q3.gguf --type q3_k_m --calibrate thoughts.txt";

/// Runs R1-style reasoning models on this machine.
#[derive(Debug, Parser)]
#[command(name = "pensive", version, after_help = EXAMPLES, max_term_width = 110)]
#[command(args_override_self = true)]
pub struct Cli {
    /// What goes for every command.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command; none opens a chat with the configured or last used model.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What goes for every command.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct GlobalArgs {
    /// Print no notices and no progress, only results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 900)]
    pub quiet: bool,
    /// Print what is being done: files, device, settings
    #[arg(short, long, global = true, display_order = 900)]
    pub verbose: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Chat with a model in the terminal
    Chat(ChatArgs),
    /// Answer one prompt
    Run(RunArgs),
    /// Download a model into the Hugging Face cache
    Pull(PullArgs),
    /// List the models in the cache that pensive can run
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show what is known of a model, downloaded or not: of its files, the catalog, or the hub
    Show(ShowArgs),
    /// Remove a model's files from the cache
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
    /// Turn text into token ids
    Tokenize(TokenizeArgs),
    /// Measure tokens per second, and the share of what this machine allows
    Bench(BenchArgs),
    /// Measure how well a model predicts a text, or how far it is from a reference
    Perplexity(PerplexityArgs),
    /// Write a model as a GGUF file with other block types
    Quantize(QuantizeArgs),
    /// Check a receipt: repeat the run and compare every bit
    Replay(ReplayArgs),
    /// Print the settings, where each comes from, and all paths
    Config(ConfigArgs),
    /// Print what this machine and this build can do: processor, GPUs, drivers, memory, paths
    Doctor(DoctorArgs),
    /// Compare a device's logits with the CPU's and with references
    #[command(hide = true)]
    Selftest(SelftestArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// `pensive chat`
#[derive(Clone, Debug, Default, Args)]
pub struct ChatArgs {
    /// Model to chat with; without it the saved chat's, else the configured one, else the last used
    pub model: Option<String>,
    /// Go on with a chat that /save saved
    #[arg(long = "load", value_name = "NAME", conflicts_with_all = ["system", "system_file"])]
    pub saved: Option<String>,
    /// How to load the model.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How to generate.
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// What to do with thoughts: stream and keep, stream and fold to one line, or hide [default: fold]
    #[arg(long, value_name = "HOW", value_parser = one_of::<Thought>(&["show", "fold", "hide"]))]
    pub thought: Option<Thought>,
}

/// `pensive run`
#[derive(Clone, Debug, Args)]
#[command(after_help = RUN_HELP, override_usage = "pensive run [OPTIONS] <MODEL> [PROMPT]...")]
pub struct RunArgs {
    /// Model to run
    pub model: String,
    /// The prompt; without one, and with nothing piped in, a chat opens
    #[arg(value_name = "PROMPT")]
    pub prompt: Vec<String>,
    /// Where the thought goes: stderr, nowhere, or stdout before the answer [default: show]
    #[arg(long, value_name = "WHERE", value_parser = one_of::<Thought>(&["show", "hide", "stdout"]))]
    pub thought: Option<Thought>,
    /// Print one JSON object with the result
    #[arg(long)]
    pub json: bool,
    /// Print the events as they happen, one JSON object a line; the last is that of --json
    #[arg(long, conflicts_with = "json")]
    pub json_stream: bool,
    /// Take the prompt exactly as it is: no chat template, special tokens parsed
    #[arg(long, conflicts_with_all = ["system", "system_file", "think", "no_think", "think_budget", "min_think", "think_time", "no_loop_guard", "template_var"])]
    pub raw: bool,
    /// Print the speed on stderr
    #[arg(long)]
    pub stats: bool,
    /// Write a receipt of the run, which `pensive replay` checks
    #[arg(long, value_name = "FILE", value_parser = file_to_write())]
    pub receipt: Option<PathBuf>,
    /// Several thoughts at once.
    #[command(flatten)]
    pub vote: VoteArgs,
    /// How to load the model.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How to generate.
    #[command(flatten)]
    pub generate: GenerateArgs,
}

/// Several thoughts at once.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Votes")]
pub struct VoteArgs {
    /// Think K times at once and take the answer that most come to
    #[arg(long, value_name = "K", allow_negative_numbers = true, value_parser = parse_votes, conflicts_with_all = ["raw", "json_stream"])]
    pub votes: Option<usize>,
    /// Stop when M agree, or no other answer can catch up
    #[arg(long, value_name = "M", requires = "votes", value_parser = parse_count)]
    pub until_agree: Option<usize>,
    /// Do not ask for the final answer within \boxed{}
    #[arg(long, requires = "votes")]
    pub no_boxed: bool,
}

/// How to load a model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Loading")]
pub struct LoadArgs {
    /// What to run on: a GPU that this build can use, or else the CPU; cpu, cuda, cuda:1, cuda:0,1, metal [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Layers that go to the GPU, the last ones [default: as many as fit into its memory]
    #[arg(long, value_name = "N", alias = "ngl", value_parser = parse_whole::<usize>)]
    pub gpu_layers: Option<usize>,
    /// Threads to compute with [default: one per fast core]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    pub threads: Option<usize>,
    /// Context in tokens [default: the model's own, as far as it fits into memory]
    #[arg(short, long, value_name = "N", alias = "ctx-size", value_parser = parse_count)]
    pub context: Option<usize>,
    /// How keys and values are stored; with q8_0 a query is two int8 terms, 15 bits [default: f16]
    #[arg(long, value_name = "TYPE", aliases = ["cache-type", "ctk"], value_parser = one_of::<KvType>(KV_TYPES))]
    pub kv_type: Option<KvType>,
    /// Quantize weights that have more bits while they are loaded: q8_0, q4_k_m and so on, none, or auto: plain floats, as far
    /// as memory asks for [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<Quantize>,
    /// Load even what does not fit into memory
    #[arg(long)]
    pub force: bool,
    /// Download a missing model without asking, also where it is above 10 GB or nobody can be asked
    #[arg(short, long)]
    pub yes: bool,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
}

/// How to generate.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerateArgs {
    /// Most tokens to generate, thought and answer together [default: what the context holds]
    #[arg(short = 'n', long, value_name = "N", aliases = ["n-predict", "predict"], value_parser = parse_count)]
    pub max_tokens: Option<usize>,
    /// Seed of the draws [default: random]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = parse_whole::<u64>)]
    pub seed: Option<u64>,
    /// System message
    #[arg(long, value_name = "TEXT", alias = "system-prompt")]
    pub system: Option<String>,
    /// File with the system message
    #[arg(long, value_name = "FILE", alias = "system-prompt-file", conflicts_with = "system")]
    pub system_file: Option<PathBuf>,
    /// Whether to think before answering [default: the model's own]
    #[arg(long, value_name = "WHEN", value_parser = one_of::<Think>(&["on", "off", "auto"]))]
    pub think: Option<Think>,
    /// Answer at once; the same as --think off
    #[arg(long, conflicts_with = "think")]
    pub no_think: bool,
    /// Most tokens of the thought: near them its end is favoured, at them the answer begins; 0 is --no-think
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_whole::<usize>)]
    pub think_budget: Option<usize>,
    /// Tokens that the thought takes at least: what would end it earlier becomes "Wait,"
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_whole::<usize>)]
    pub min_think: Option<usize>,
    /// Longest time of the thought, as in 30s or 2m
    #[arg(long, value_name = "TIME", allow_negative_numbers = true, value_parser = parse_time)]
    pub think_time: Option<Duration>,
    /// Variable of the chat template, such as reasoning_effort=high; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub template_var: Vec<(String, serde_json::Value)>,
    /// Let thoughts and answers repeat themselves
    #[arg(long)]
    pub no_loop_guard: bool,
    /// Compute token after token, with no drafts of what the text may repeat: the same tokens, for measuring
    #[arg(long)]
    pub no_speculation: bool,
    /// End the answer at this string, which is not printed; may be given several times
    #[arg(long, value_name = "STRING", aliases = ["reverse-prompt"], allow_hyphen_values = true, value_parser = parse_stop)]
    pub stop: Vec<String>,
    /// How to sample.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// How to sample. What is not given comes from the configuration, then from the model.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Sampling (default: what the model's authors recommend)")]
pub struct SamplingArgs {
    /// Temperature; 0 always takes the most likely token
    #[arg(long, value_name = "X", alias = "temp", allow_negative_numbers = true, value_parser = parse_real)]
    pub temperature: Option<f32>,
    /// Keep the N most likely tokens; 0 keeps all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_whole::<usize>)]
    pub top_k: Option<usize>,
    /// Keep the most likely tokens that together have this probability; 1 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = parse_real)]
    pub top_p: Option<f32>,
    /// Keep tokens at least this likely as a share of the most likely one; 0 keeps all
    #[arg(long, value_name = "P", allow_negative_numbers = true, value_parser = parse_real)]
    pub min_p: Option<f32>,
    /// Divide the logits of recent tokens by this; 1 is off
    #[arg(long, value_name = "X", alias = "repetition-penalty", allow_negative_numbers = true, value_parser = parse_real)]
    pub repeat_penalty: Option<f32>,
    /// Subtract this once from the logits of recent tokens; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_real)]
    pub presence_penalty: Option<f32>,
    /// Subtract this for each time a token occurred recently; 0 is off
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = parse_real)]
    pub frequency_penalty: Option<f32>,
    /// How many recent tokens the penalties look at; 0 is none
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_whole::<usize>)]
    pub repeat_last_n: Option<usize>,
}

/// `pensive quantize`
#[derive(Clone, Debug, Args)]
#[command(after_help = QUANTIZE_HELP)]
pub struct QuantizeArgs {
    /// Model to read: a name, a GGUF file, or a folder with safetensors
    pub model: String,
    /// GGUF file to write
    #[arg(value_parser = file_to_write())]
    pub file: PathBuf,
    /// Mix of block types
    #[arg(short = 'T', long = "type", value_name = "TYPE", value_parser = parse_mix)]
    pub mix: Mix,
    /// Run the model over this text first, and keep finer what matters there
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(short, long)]
    pub force: bool,
    /// Download a missing model without asking, also where it is above 10 GB or nobody can be asked
    #[arg(short, long)]
    pub yes: bool,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pensive replay`
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Exit codes: 0 identical, 1 not identical or it could not be replayed, 2 wrong usage."
)]
pub struct ReplayArgs {
    /// Receipt that `pensive run --receipt` wrote
    pub file: PathBuf,
    /// Generate anew, token by token, instead of feeding what was recorded
    #[arg(long)]
    pub decode: bool,
    /// Model to replay on [default: the receipt's]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// What to run on [default: the devices that the receipt names]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Layers that go to the GPU, the last ones [default: as many as the receipt says]
    #[arg(long, value_name = "N", alias = "ngl", value_parser = parse_whole::<usize>)]
    pub gpu_layers: Option<usize>,
    /// Threads to compute with [default: one per fast core]
    #[arg(short, long, value_name = "N", value_parser = parse_count)]
    pub threads: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pensive pull`
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// Model to download
    pub model: String,
    /// Read files that are here again, and fetch anew those whose bytes are not the hub's
    #[arg(long, conflicts_with = "offline")]
    pub verify: bool,
    /// Changes nothing: `pull` never asks
    #[arg(short, long, hide = true)]
    pub yes: bool,
    /// Never use the network: only check that the model is there
    #[arg(long)]
    pub offline: bool,
}

/// `pensive list`
#[derive(Clone, Debug, Args)]
pub struct ListArgs {
    /// Also list what cannot be run, and why
    #[arg(short, long)]
    pub all: bool,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

/// `pensive show`
#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    /// Model to show
    pub model: String,
    /// Context in tokens for the memory that is needed
    #[arg(short, long, value_name = "N", alias = "ctx-size", value_parser = parse_count)]
    pub context: Option<usize>,
    /// What weights that have more bits are loaded as, for the memory that is needed [default: auto]
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<Quantize>,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pensive remove`
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// Model to remove
    pub model: String,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// `pensive tokenize`
#[derive(Clone, Debug, Args)]
pub struct TokenizeArgs {
    /// Model, or the path of a tokenizer.json or tekken.json
    pub model: String,
    /// Text; without it, standard input
    #[arg(allow_hyphen_values = true)]
    pub text: Option<String>,
    /// Print a JSON array of {id, piece}
    #[arg(long)]
    pub json: bool,
    /// Read special tokens in the text as ordinary text
    #[arg(long)]
    pub no_special: bool,
}

/// `pensive bench`
#[derive(Clone, Debug, Args)]
#[command(after_help = BENCH_HELP)]
pub struct BenchArgs {
    /// Models to measure
    #[arg(required_unless_present = "synthetic", value_name = "MODEL")]
    pub models: Vec<String>,
    /// Measure a model of the catalog without its weights: made in memory, with the same shapes and types and random weights
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub synthetic: Vec<String>,
    /// Only the first N layers of --synthetic
    #[arg(long, value_name = "N", requires = "synthetic", value_parser = parse_count)]
    pub layers: Option<usize>,
    /// Write the --synthetic model to a file instead of measuring it
    #[arg(long, value_name = "FILE", requires = "synthetic", hide = true)]
    pub write: Option<PathBuf>,
    /// Tokens of the prompts to read; 0: none
    #[arg(
        short = 'p',
        long,
        value_name = "N,…",
        value_delimiter = ',',
        alias = "n-prompt",
        default_value = "512",
        value_parser = parse_whole::<usize>
    )]
    pub prompt: Vec<usize>,
    /// Tokens to generate; 0: none
    #[arg(
        short = 'n',
        long,
        value_name = "N,…",
        value_delimiter = ',',
        alias = "n-gen",
        default_value = "128",
        value_parser = parse_whole::<usize>
    )]
    pub generate: Vec<usize>,
    /// Tokens in the cache before
    #[arg(
        short = 'd',
        long,
        value_name = "N,…",
        value_delimiter = ',',
        alias = "n-depth",
        default_value = "0",
        value_parser = parse_whole::<usize>
    )]
    pub depth: Vec<usize>,
    /// Sequences that generate together, after the same cache: tokens per second of all of them
    #[arg(long, value_name = "N,…", value_delimiter = ',', alias = "npl", value_parser = parse_count, default_value = "1")]
    pub sequences: Vec<usize>,
    /// Threads to compute with [default: one per fast core]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = parse_count)]
    pub threads: Vec<usize>,
    /// How often each test is run
    #[arg(short, long, value_name = "N,…", value_delimiter = ',', value_parser = parse_count, default_value = "5")]
    pub repetitions: Vec<usize>,
    /// How the results are printed: a table, a JSON array, one JSON object a line, comma-separated values
    #[arg(short = 'o', long, value_name = "FORMAT", alias = "output", default_value = "md",
          value_parser = one_of::<BenchFormat>(&["md", "json", "jsonl", "csv"]))]
    pub format: BenchFormat,
    /// What to run on: a GPU that this build can use, or else the CPU; cpu, cuda, cuda:1, cuda:0,1, metal [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// Layers that go to the GPU, the last ones [default: as many as fit into its memory]
    #[arg(long, value_name = "N", alias = "ngl", value_parser = parse_whole::<usize>)]
    pub gpu_layers: Option<usize>,
    /// Context in tokens [default: what the tests need]
    #[arg(short, long, value_name = "N", alias = "ctx-size", value_parser = parse_count)]
    pub context: Option<usize>,
    /// How keys and values are stored; with q8_0 a query is two int8 terms, 15 bits [default: f16]
    #[arg(long, value_name = "TYPE", aliases = ["cache-type", "ctk"], value_parser = one_of::<KvType>(KV_TYPES))]
    pub kv_type: Option<KvType>,
    /// Quantize weights that have more bits while they are loaded [default: auto: plain floats, as far as memory asks for]
    #[arg(long, value_name = "TYPE")]
    pub quantize: Option<Quantize>,
    /// Load even what does not fit into memory
    #[arg(long)]
    pub force: bool,
    /// Download a missing model without asking, also where it is above 10 GB or nobody can be asked
    #[arg(short, long)]
    pub yes: bool,
    /// Never use the network
    #[arg(long)]
    pub offline: bool,
}

/// How the results of `bench` are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchFormat {
    /// A table in Markdown.
    Md,
    /// An array of objects.
    Json,
    /// An object on each line.
    Jsonl,
    /// Comma-separated values, with a line of names.
    Csv,
}

/// `pensive perplexity`
#[derive(Clone, Debug, Args)]
#[command(after_help = PERPLEXITY_HELP, group(clap::ArgGroup::new("what").required(true)))]
pub struct PerplexityArgs {
    /// Model to measure
    pub model: String,
    /// Text to predict; - is standard input
    #[arg(long, value_name = "FILE", group = "what")]
    pub text: Option<PathBuf>,
    /// Safetensors file with `input_ids`, `top_ids` and `top_logprobs` of a reference implementation
    #[arg(long, value_name = "FILE", group = "what")]
    pub reference: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// How to load the model.
    #[command(flatten)]
    pub load: LoadArgs,
}

/// `pensive config`
#[derive(Clone, Debug, Default, Args)]
pub struct ConfigArgs {
    /// Model whose settings to show [default: the configured one]
    pub model: Option<String>,
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
    /// How to load the model.
    #[command(flatten)]
    pub load: LoadArgs,
    /// How to generate.
    #[command(flatten)]
    pub generate: GenerateArgs,
    /// What to do with thoughts
    #[arg(long, value_name = "HOW", value_parser = one_of::<Thought>(&["show", "fold", "hide", "stdout"]))]
    pub thought: Option<Thought>,
}

/// `pensive doctor`
#[derive(Clone, Copy, Debug, Args)]
pub struct DoctorArgs {
    /// Print a JSON object
    #[arg(long)]
    pub json: bool,
}

/// `pensive selftest`
#[derive(Clone, Debug, Args)]
pub struct SelftestArgs {
    /// Checkpoints, or folders that hold such; the model inside is always among them
    pub paths: Vec<PathBuf>,
    /// Device that is compared with the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

/// `pensive completions`
#[derive(Clone, Copy, Debug, Args)]
pub struct CompletionsArgs {
    /// Shell to complete for
    pub shell: clap_complete::Shell,
}

/// What to do with a thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thought {
    /// Stream it and keep it on the screen.
    Show,
    /// Stream it, and fold it to one line once the answer starts (chat; elsewhere as `show`).
    Fold,
    /// Do not show it.
    Hide,
    /// Print it to stdout before the answer (run; elsewhere as `show`).
    Stdout,
}

impl GenerateArgs {
    /// Refuses bounds that contradict each other, or that no thought is asked for.
    ///
    /// # Errors
    /// [`Error::Usage`] with both.
    pub fn check(&self) -> Result<()> {
        let none = if self.no_think { "--no-think" } else { "--think off" };
        let what = match (self.think(), self.bounds().first(), self.think_budget, self.min_think) {
            (Some(Think::Off), Some(bound), ..) => {
                format!("{bound} is about a thought, {none} asks for none: leave one of them out")
            }
            (Some(Think::On), _, Some(0), _) => {
                "--think on asks for a thought, --think-budget 0 for none: leave one of them out".into()
            }
            (_, _, Some(budget), Some(min)) if budget < min => {
                format!(
                    "--min-think {min} is more than --think-budget {budget}: lower the one or raise the other"
                )
            }
            _ => return Ok(()),
        };
        Err(Error::Usage(what))
    }

    /// The options that bound a thought, of those that are given.
    pub fn bounds(&self) -> Vec<&'static str> {
        let bounds = [
            (self.think_budget.is_some_and(|most| most > 0), "--think-budget"),
            (self.think_time.is_some(), "--think-time"),
            (self.min_think.is_some_and(|least| least > 0), "--min-think"),
        ];
        bounds.into_iter().filter(|(given, _)| *given).map(|(_, name)| name).collect()
    }

    /// Bounds on the thought.
    pub fn thought(&self) -> ThoughtBounds {
        ThoughtBounds { budget: self.think_budget, min: self.min_think, time: self.think_time }
    }

    /// `--think`, with `--no-think` as `off`.
    pub fn think(&self) -> Option<Think> {
        if self.no_think { Some(Think::Off) } else { self.think }
    }
}

impl SamplingArgs {
    /// The given parameters, their ranges checked.
    pub fn overrides(&self) -> Result<SamplingOverrides> {
        let overrides = SamplingOverrides {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            repeat_last_n: self.repeat_last_n,
        };
        check_sampling(&overrides).map_err(|why| Error::Usage(format!("--{why}")))?;
        Ok(overrides)
    }
}

/// Checks the ranges; the error names the parameter and what it must be.
pub fn check_sampling(overrides: &SamplingOverrides) -> Result<(), String> {
    overrides.over(Sampling::default()).check().map_err(|error| error.to_string())
}

/// One of several words that serde knows as variants of `T`.
fn one_of<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: serde::de::DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| serde_json::from_value::<T>(word.into()))
}

/// [`KvType::ALL`], the usual one first.
const KV_TYPES: &[&str] = &["f16", "q8_0", "f32"];

/// A file to write; `-` would be one of this name, where standard output is meant.
fn file_to_write() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("it must be a file, no standard output; a file of this name is ./-"),
        false => Ok(path),
    })
}

fn parse_mix(text: &str) -> Result<Mix, String> {
    Mix::parse(text)
        .ok_or_else(|| format!("there are {}", Mix::all().map(|mix| mix.name).collect::<Vec<_>>().join(" ")))
}

fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it must be a whole number from 1 up".into()),
        Ok(n) => Ok(n),
    }
}

fn parse_votes(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|k| (2..=64).contains(k)).ok_or_else(|| "it must be from 2 to 64".into())
}

fn parse_whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "it must be a whole number from 0 up".into())
}

fn parse_real(text: &str) -> Result<f32, String> {
    text.parse().map_err(|_| "it must be a number, such as 0.6".into())
}

pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(jiff::SignedDuration::from_secs);
    let time = seconds.or_else(|| text.parse().ok()).and_then(|time| Duration::try_from(time).ok());
    time.filter(|time| !time.is_zero()).ok_or_else(|| "it must be a time, such as 30s or 2m".into())
}

/// NAME=VALUE: a value that is JSON is that, any other is a string.
fn parse_variable(text: &str) -> Result<(String, serde_json::Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
            Ok((name.to_owned(), value))
        }
        _ => Err("it must be NAME=VALUE".into()),
    }
}

fn parse_stop(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it must not be empty".into()) } else { Ok(text.into()) }
}

/// Reads the process's arguments.
///
/// # Errors
/// clap's own, which also carries `--help` and `--version`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(arrange(Cli::command(), long_names(args.into_iter().collect()))?)
}

/// llama.cpp's `-ngl`, which clap would take for three flags, by its long name.
fn long_names(mut args: Vec<OsString>) -> Vec<OsString> {
    let options = args.iter_mut().take_while(|arg| *arg != "--");
    options.filter(|arg| *arg == "-ngl").for_each(|arg| *arg = "--gpu-layers".into());
    args
}

#[cfg(test)]
mod tests;
