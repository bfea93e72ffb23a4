//! What the kernel says of the process, from `/proc`; nothing where there is none.

use super::Level;
use std::fs;

/// The unit of CPU times in `/proc`: `USER_HZ`, which is 100 on every architecture that this runs on (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn read() -> Vec<(Level, f64)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
    let open_fds = fs::read_dir("/proc/self/fd").map(Iterator::count).ok();
    [
        field(&status, "VmRSS:").map(|kib| (Level::ProcessResidentBytes, kib * 1_024.0)),
        field(&status, "VmSize:").map(|kib| (Level::ProcessVirtualBytes, kib * 1_024.0)),
        field(&status, "Threads:").map(|threads| (Level::ProcessThreads, threads)),
        field(&limits, "Max open files").map(|fds| (Level::ProcessMaxFds, fds)),
        started_at(&stat, &machine).map(|seconds| (Level::ProcessStartSeconds, seconds)),
        cpu_ticks(&stat).map(|ticks| (Level::ProcessCpuSeconds, ticks / TICKS_PER_SECOND)),
        // One of them is this look.
        open_fds.map(|fds| (Level::ProcessOpenFds, fds.saturating_sub(1) as f64)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn field(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time: fields 14 and 15, counted behind the name in parentheses, which may contain anything.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// When the machine was started, and how many ticks after that the process was: field 22.
fn started_at(stat: &str, machine: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let ticks: f64 = rest.split_whitespace().nth(19)?.parse().ok()?;
    Some(field(machine, "btime")? + ticks / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (we) ir) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 5 0 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(300.0));
        assert_eq!(cpu_ticks(""), None);
        assert_eq!(started_at(stat, "cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.01));
    }

    #[test]
    fn this_process_has_memory_and_threads() {
        let read = read();
        for level in [
            Level::ProcessResidentBytes,
            Level::ProcessThreads,
            Level::ProcessOpenFds,
            Level::ProcessMaxFds,
            Level::ProcessVirtualBytes,
            Level::ProcessStartSeconds,
        ] {
            assert!(read.iter().any(|(have, value)| *have == level && *value > 0.0), "{level:?} in {read:?}");
        }
    }
}
