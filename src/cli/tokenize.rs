//! `pensive tokenize MODEL [TEXT]`: text to token ids, nothing stripped, no BOS.

use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::args::TokenizeArgs;
use super::render::{Console, print};
use super::session::{Named, missing};
use super::text::{LARGEST_TEXT, read_stdin};
use crate::checkpoint::Checkpoint;
use crate::text::{Special, Tokenizer};
use crate::{Error, Result};

pub(super) fn run(args: &TokenizeArgs, console: &Console) -> Result<ExitCode> {
    let tokenizer = tokenizer(&args.model)?;
    let text = match &args.text {
        Some(text) => text.clone(),
        None => {
            if console.stdin_terminal {
                console.note("reading the text from standard input; Ctrl-D (Windows: Ctrl-Z, Enter) ends it");
            }
            read_stdin(LARGEST_TEXT)?
        }
    };
    let special = if args.no_special { Special::Text } else { Special::Parse };
    let ids = tokenizer.encode(&text, special)?;
    let pieces: Vec<Piece> = ids.iter().map(|&id| Piece { id, piece: tokenizer.decode(&[id]) }).collect();
    if args.json {
        print(serde_json::to_string(&pieces).map_err(|e| Error::Text(e.to_string()))? + "\n")?;
    } else {
        print(pieces.iter().map(|p| format!("{}\t{:?}\n", p.id, p.piece)).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A token; a piece that is no whole character has U+FFFD in place of the broken bytes.
#[derive(Serialize)]
struct Piece {
    id: u32,
    piece: String,
}

/// The tokenizer of a model, or of a tokenizer.json or tekken.json.
fn tokenizer(model: &str) -> Result<Tokenizer> {
    let path = Path::new(model);
    if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return Tokenizer::from_file(path);
    }
    let named = Named::find(model)?;
    let located = named.located.ok_or_else(|| missing(&named.name))?;
    Tokenizer::from_metadata(&Checkpoint::open(&located.files[0])?.metadata)
}
