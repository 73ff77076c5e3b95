//! `pensive perplexity MODEL --text FILE | --reference FILE`: how good a model's predictions are.

use std::process::ExitCode;

use super::args::{LoadArgs, PerplexityArgs};
use super::render::{Console, Unit, print};
use super::session;
use super::settings::{Flags, Settings};
use super::text::{LARGEST_TEXT, read_file_up_to, read_stdin};
use crate::api::measure::{Quality, Reference, divergence, perplexity};
use crate::{Error, Model, Result};

/// Tokens of a window, as in llama-perplexity.
const WINDOW: usize = 512;

pub(super) fn run(args: &PerplexityArgs, console: &Console) -> Result<ExitCode> {
    let quality = match (&args.text, &args.reference) {
        (Some(path), _) => {
            let text = match path.as_os_str() == "-" {
                true => read_stdin(LARGEST_TEXT)?,
                false => read_file_up_to(path, LARGEST_TEXT)?,
            };
            if text.trim().is_empty() {
                return Err(Error::file(path, "holds no text: name a file with more than a window of it"));
            }
            of_text(&load(args, WINDOW, console)?, &text, console).map_err(|error| match error {
                Error::Usage(why) => Error::Usage(format!(
                    "{}: {why}; name a longer text or a smaller --context",
                    path.display()
                )),
                other => other,
            })?
        }
        (None, Some(path)) => {
            let reference = Reference::read(path)?;
            let model = load(args, reference.positions(), console)?;
            let mut bar = console.slow_bar("comparing", Unit::Tokens);
            divergence(&model, &reference, |done, total| bar.update(done as u64, total as u64))?
        }
        (None, None) => return Err(Error::Usage("name a --text or a --reference".into())),
    };
    print(if args.json {
        serde_json::to_string(&quality).map_err(|e| Error::Text(e.to_string()))? + "\n"
    } else {
        lines(&quality)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The model, with the context that is asked for, else the one that it takes.
fn load(args: &PerplexityArgs, context: usize, console: &Console) -> Result<Model> {
    let load = LoadArgs { context: args.load.context.or(Some(context)), ..args.load.clone() };
    let flags = Flags { model: Some(args.model.clone()), load, ..Flags::default() };
    session::load_once(&Settings::from_env(flags)?, console)
}

/// Perplexity in windows of the model's context.
fn of_text(model: &Model, text: &str, console: &Console) -> Result<Quality> {
    let window = model.context();
    let mut bar = console.slow_bar("reading", Unit::Tokens);
    perplexity(model, text, window, |done, total, so_far| {
        bar.update((done * window) as u64, (total * window) as u64);
        bar.message(format!("perplexity {so_far:.4}"));
    })
}

fn lines(quality: &Quality) -> String {
    let Quality { perplexity, kl, top1, positions } = *quality;
    let mut lines = format!("perplexity       {perplexity:.4}\n");
    if let Some(kl) = kl {
        lines += &format!("KL divergence    {kl:.6} nats\n");
    }
    if let Some(top1) = top1 {
        let agreed = (top1 * positions as f64).round();
        lines += &format!("top-1 agreement  {:.1}% ({agreed} of {positions})\n", 100.0 * top1);
    }
    lines + &format!("positions        {positions}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_only_its_perplexity_is_printed() {
        let text = Quality { perplexity: 12.34567, kl: None, top1: None, positions: 255 };
        assert_eq!(lines(&text), "perplexity       12.3457\npositions        255\n");
    }

    #[test]
    fn of_a_reference_divergence_and_agreement_are_printed() {
        let reference = Quality { perplexity: 9.0, kl: Some(0.00134), top1: Some(0.75), positions: 256 };
        let text = lines(&reference);
        assert!(text.contains("0.001340 nats") && text.contains("75.0% (192 of 256)"), "{text}");
    }
}
