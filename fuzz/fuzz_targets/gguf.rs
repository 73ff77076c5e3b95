//! Any bytes: an error, or tensors whose bytes and values can be read.
//!
//!     cargo +nightly fuzz run gguf -- -max_len=4096 -malloc_limit_mb=64
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pensive::checkpoint::gguf;
use pensive::quant::dequantize;

fuzz_target!(|bytes: &[u8]| {
    let Ok(contents) = gguf::parse(bytes, Path::new("fuzz.gguf")) else { return };
    for tensor in contents.tensors {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        dequantize(tensor.kind, &bytes[tensor.range], &mut values);
    }
});
