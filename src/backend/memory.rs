//! Memory that the machine has.

/// Bytes of memory: those that this process may still take, and all of the machine's (or control group's).
/// Where the system does not say, there is no limit.
pub fn available_and_total_bytes() -> (u64, u64) {
    let Ok(mut system) = sysinfo::System::new() else { return (u64::MAX, u64::MAX) };
    system.refresh_memory();
    let (mut available, mut total) = (system.available_memory(), system.total_memory());
    if let Some(group) = own_group(&mut system) {
        // the group's page cache gives way, so only what is resident counts
        available = available.min(group.total_memory.saturating_sub(group.rss));
        total = total.min(group.total_memory);
    }
    (available, total)
}

/// The limits of the control group that this process is in.
fn own_group(system: &mut sysinfo::System) -> Option<sysinfo::CGroupLimits> {
    use sysinfo::{ProcessRefreshKind, ProcessesToUpdate};
    let own = sysinfo::get_current_pid().ok()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, ProcessRefreshKind::nothing());
    system.process(own)?.cgroup_limits()
}
