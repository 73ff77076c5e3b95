//! A small whole model, a chat's saved keys and values or a receipt of it, edited: an error, or a model that says something, a
//! chat that goes on, a verdict. The first byte says which, the others what is changed.
//!
//!     cargo +nightly fuzz run model -- -max_len=200 -len_control=0 -detect_leaks=0
#![no_main]

use std::sync::{LazyLock, Once};

use libfuzzer_sys::fuzz_target;
use pensive::{Model, Options, Receipt};
use sha2::{Digest, Sha256};

#[path = "edited.rs"]
mod edited;
#[expect(dead_code, reason = "of the tests' models only the one that can be talked to is needed")]
#[path = "../../tests/common/tiny.rs"]
mod tiny;

use edited::edited;

const CONTROL: [&str; 4] = ["<s>", "<think>", "</think>", "</s>"];
const TEMPLATE: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:<think>{% endif %}";

/// What is edited, and the model that belongs to it.
struct Whole {
    folder: tiny::Written,
    gguf: Vec<u8>,
    model: Model,
    cache: Vec<u8>,
    receipt: String,
}

static WHOLE: LazyLock<Whole> = LazyLock::new(|| {
    let folder = tiny::chat_model(&CONTROL, TEMPLATE);
    let model = load(folder.path()).expect("the model is whole");
    let mut chat = model.chat();
    let stats = chat.ask("ab", &options().record(true)).and_then(|turn| turn.finish()).expect("it answers");
    let mut cache = Vec::new();
    chat.save_cache(&options(), &mut cache).expect("memory takes it");
    let receipt = Receipt::new(&model, &[stats], |_, _| ()).expect("it was recorded").to_json();
    let gguf = std::fs::read(folder.path()).expect("the model's file is there");
    Whole { folder, gguf, model, cache, receipt }
});

fuzz_target!(|bytes: &[u8]| {
    // the tokenizers crate's panics are caught where it is called; those that are not still end the run
    static QUIET: Once = Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let Some((&first, edits)) = bytes.split_first() else { return };
    match first % 4 {
        0 | 1 => a_model(edits),
        2 => a_cache(edits, first & 4 == 0),
        _ => a_receipt(edits, first & 4 == 0),
    }
});

fn load(path: &str) -> pensive::Result<Model> {
    Model::builder(path).threads(1).context(64).load()
}

fn options() -> Options {
    Options::new().temperature(0.7).max_tokens(24).think_budget(3)
}

fn a_model(edits: &[u8]) {
    let path = WHOLE.folder.path().replace("model.gguf", "edited.gguf");
    std::fs::write(&path, edited(&WHOLE.gguf, edits)).expect("files can be written");
    let Ok(model) = load(&path) else { return };
    if let Ok(turn) = model.chat().ask("ab", &options()) {
        let _ = turn.finish();
    }
}

/// `sealed`: with the hash that belongs to what was edited.
fn a_cache(edits: &[u8], sealed: bool) {
    let mut bytes = edited(&WHOLE.cache, edits);
    if sealed && bytes.len() > 32 {
        let end = bytes.len() - 32;
        let hash = Sha256::digest(&bytes[..end]);
        bytes[end..].copy_from_slice(&hash);
    }
    let mut chat = WHOLE.model.chat();
    if chat.load_cache(&bytes[..]).is_ok() {
        let turn = chat.ask("ab", &options()).expect("there is room");
        let _ = turn.finish();
    }
}

fn a_receipt(edits: &[u8], decode: bool) {
    let json = String::from_utf8_lossy(&edited(WHOLE.receipt.as_bytes(), edits)).into_owned();
    let Ok(receipt) = Receipt::parse(&json) else { return };
    let _ = receipt.placement();
    let _ = receipt.verify(&WHOLE.model, decode, |_, _| ());
}
