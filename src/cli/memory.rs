//! What a model needs against what the machine has, for people who choose one.

use super::render::gib;

/// Bytes of memory that this machine has, if the system says.
pub(super) fn total() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some(system.total_memory()).filter(|&bytes| bytes > 0)
}

/// "needs about 5.6 of your 16.0 GiB at 8192 tokens of context"
pub(super) fn needs(bytes: u64, at: &str) -> String {
    match total() {
        None => format!("needs about {} GiB {at}", gib(bytes)),
        Some(total) => {
            let fits = if bytes < total { "" } else { ": it does not fit" };
            format!("needs about {} of your {} GiB {at}{fits}", gib(bytes), gib(total))
        }
    }
}
