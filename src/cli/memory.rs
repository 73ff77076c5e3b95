//! What a model needs against what the machine has, for people who choose one.

use super::render::gib;
use crate::api::memory::available_and_total_bytes;

/// "needs about 5.6 of your 16.0 GiB at 8192 tokens of context"
pub(super) fn needs(bytes: u64, at: &str) -> String {
    match available_and_total_bytes().1 {
        u64::MAX => format!("needs about {} GiB {at}", gib(bytes)),
        total => {
            let fits = if bytes < total { "" } else { ": it does not fit" };
            format!("needs about {} of your {} GiB {at}{fits}", gib(bytes), gib(total))
        }
    }
}
