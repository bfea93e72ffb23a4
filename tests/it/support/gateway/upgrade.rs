//! A gateway whose process is replaced while it serves.

use super::{Gateway, tail};
use crate::support::{ms, signal};
use std::fs;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// The processes before the one that serves, and that one, which is no child of theirs.
#[derive(Debug, Default)]
pub(crate) struct Upgrades {
    before: Vec<Child>,
    serving: Option<u32>,
}

impl Upgrades {
    /// The process that serves, once there was an upgrade.
    pub(super) fn serving(&self) -> Option<u32> {
        self.serving
    }

    pub(super) fn kill(&mut self) {
        if let Some(id) = self.serving {
            signal("KILL", id);
        }
        for child in &mut self.before {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Gateway {
    /// `weir upgrade`, which must succeed: from then on the process that it names serves.
    #[track_caller]
    pub(crate) fn upgrade(&mut self) -> u32 {
        let answer = self.cli.json(&["upgrade"]);
        let id = answer["process_id"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("process_id");
        self.upgrades.before.extend(self.child.take());
        self.upgrades.serving = Some(id);
        id
    }

    /// The process that the test started, after an upgrade.
    pub(crate) fn first_process_id(&self) -> u32 {
        self.upgrades.before.first().expect("there was an upgrade").id()
    }

    /// Waits until that process has ended.
    #[track_caller]
    pub(crate) fn first_ended(&mut self, most: Duration) -> ExitStatus {
        let end = Instant::now() + most;
        loop {
            let child = self.upgrades.before.first_mut().expect("there was an upgrade");
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "still there after {most:?}:\n{}", tail(&self.log()));
            std::thread::sleep(ms(10));
        }
    }

    /// The processes that work in its directory: those of commands are gone when they have answered.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let directory = self.directory().canonicalize().unwrap();
        let works_there =
            |id: &u32| fs::read_link(format!("/proc/{id}/cwd")).is_ok_and(|cwd| cwd == directory);
        let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|id| works_there(id) && lives(*id))
            .collect()
    }

    /// All its processes are gone: another one is started as at first.
    pub(crate) fn forget_upgrades(&mut self) {
        self.upgrades = Upgrades::default();
    }

    /// Stops the service as a service manager does, which tells every process of it.
    pub(super) fn stop_successor(&mut self) -> ExitStatus {
        let id = self.upgrades.serving.take().expect("there was an upgrade");
        signal("TERM", id);
        let mut first = ExitStatus::default();
        for mut child in std::mem::take(&mut self.upgrades.before) {
            if child.try_wait().unwrap().is_none() {
                signal("TERM", child.id());
            }
            let end = Instant::now() + Duration::from_secs(20);
            while child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < end, "the old process stays:\n{}", tail(&self.log()));
                std::thread::sleep(ms(10));
            }
            first = child.wait().unwrap();
        }
        let end = Instant::now() + Duration::from_secs(20);
        while lives(id) {
            assert!(Instant::now() < end, "the new process stays:\n{}", tail(&self.log()));
            std::thread::sleep(ms(10));
        }
        first
    }
}

/// Whether a process is there, and not only what its parent has not asked for.
pub(crate) fn lives(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
    !matches!(state, None | Some("Z" | "X"))
}

/// The process that it is a child of.
pub(crate) fn parent(process: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("PPid").trim().parse().unwrap()
}
