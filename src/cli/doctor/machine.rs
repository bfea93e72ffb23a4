//! Files, disk and limits of this machine.

use super::finding::Finding;
use crate::cli::ready::reachable;
use crate::cli::scrape::scrape;
use crate::clock::Clock;
use crate::config::{Config, SecretRef};
use crate::store::Store;
use rustix::process::{Resource, getrlimit};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Files that a process has open besides connections.
const FILES_BESIDES: u64 = 256;
/// A request has a connection to its client and one to its provider.
const FILES_PER_REQUEST: u64 = 2;
/// A wait for the disk that takes longer is felt where durability is strict.
const SYNC_SLOW: Duration = Duration::from_millis(50);
const SYNCS: usize = 10;
/// Threads that a process has besides those that carry requests: of the books, of the journal, for files that are waited for.
const THREADS_BESIDES: u64 = 64;
/// An upgrade has two.
const PROCESSES: u64 = 2;

/// Modes and owners.
pub(super) fn files(config: &Config, path: Option<&Path>) -> Vec<Finding> {
    let Ok(own) = fs::metadata("/proc/self").map(|found| found.uid()) else { return Vec::new() };
    let database = Store::path(&config.store.url).ok();
    let pepper = match &config.auth.pepper {
        SecretRef::File(path) => Some(path.as_path()),
        SecretRef::Env(_) | SecretRef::Credential(_) => None,
    };
    // What others may do at most.
    let private =
        [pepper, database.as_deref(), database.as_deref().and_then(Path::parent), Some(&*config.journal.dir)];
    let mut findings: Vec<Finding> = private
        .into_iter()
        .flatten()
        .filter(|path| path.exists())
        .filter_map(|path| open_to_others(path, 0o077, "read", own))
        .collect();
    findings.extend(path.and_then(|path| open_to_others(path, 0o022, "change", own)));
    if findings.is_empty() {
        findings.push(Finding::good("files", "what is there is for its owner alone"));
    }
    findings
}

fn open_to_others(path: &Path, others: u32, verb: &str, own: u32) -> Option<Finding> {
    let shown = path.display();
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) => {
            return Some(Finding::fails(
                "files",
                format!("{shown}: {error}"),
                "run this as the user that serves",
            ));
        }
    };
    if found.uid() != own && others == 0o077 {
        let says = format!("{shown} belongs to user {}, this process runs as {own}", found.uid());
        return Some(Finding::fails("files", says, "run this, and serve, as the owner of the data"));
    }
    let mode = found.mode() & 0o777;
    let right = mode & !others;
    (mode & others != 0).then(|| {
        Finding::warns(
            "files",
            format!("others may {verb} {shown} (mode {mode:o})"),
            format!("chmod {right:o} {shown}"),
        )
    })
}

/// Room, and how long a wait for the disk takes.
pub(super) fn journal_disk(config: &Config, clock: &Clock) -> Vec<Finding> {
    const WHAT: &str = "journal disk";
    let dir = &config.journal.dir;
    if let Err(error) = dir.try_exists() {
        return vec![Finding::fails(
            WHAT,
            format!("{}: {error}", dir.display()),
            "run this as the user that serves",
        )];
    }
    if !dir.is_dir() {
        return vec![Finding::warns(
            WHAT,
            format!("{} is not there yet", dir.display()),
            "`weir serve` makes it",
        )];
    }
    let measured = rustix::fs::statvfs(dir).map_err(io::Error::from).and_then(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok((free, taken(dir)?, slowest_sync(dir, clock)?))
    });
    let (free, taken, slowest) = match measured {
        Ok(measured) => measured,
        Err(error) => {
            let todo = "make room, or look at the disk and at the directory's owner";
            return vec![Finding::fails(WHAT, format!("{}: {error}", dir.display()), todo)];
        }
    };
    let wanted = config.journal.max_bytes.saturating_add(config.journal.keep_bytes).saturating_sub(taken);
    let says = format!(
        "{} free, up to {} more may be taken; the slowest of {SYNCS} syncs took {:.1} ms",
        size(free),
        size(wanted),
        slowest.as_secs_f64() * 1e3
    );
    vec![if free < wanted {
        Finding::warns(WHAT, says, "make room, or lower [journal] max_bytes or keep_bytes")
    } else if slowest > SYNC_SLOW {
        Finding::warns(
            WHAT,
            says,
            "put the journal on a faster disk: with durability = \"strict\" answers wait for it",
        )
    } else {
        Finding::good(WHAT, says)
    }]
}

/// The slowest of a few small writes that are waited for.
fn slowest_sync(dir: &Path, clock: &Clock) -> io::Result<Duration> {
    let path = dir.join(format!("doctor.{}", std::process::id()));
    let measure = || {
        let mut file = File::options().create_new(true).write(true).open(&path)?;
        let mut slowest = Duration::ZERO;
        for _ in 0..SYNCS {
            let begun = clock.now();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            slowest = slowest.max(clock.now().saturating_duration_since(begun));
        }
        Ok(slowest)
    };
    let measured = measure();
    fs::remove_file(&path)?;
    measured
}

/// Bytes of all files below.
fn taken(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // A server may remove it at this moment.
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => bytes += taken(&path).unwrap_or(0),
            Ok(found) => bytes += found.len(),
            Err(_) => {}
        }
    }
    Ok(bytes)
}

/// What the system lets a process have: the server where it runs, which has more from its unit than a shell has; else this one.
pub(super) async fn limits(config: &Config) -> Vec<Finding> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.server.threads == 0 { cores } else { config.server.threads };
    let server = scrape(reachable(config.admin.listen)).await.unwrap_or_default();
    let files = match server.of("process_max_fds").next() {
        Some(most) => (Some(most.value), "in the running server"),
        None => (getrlimit(Resource::Nofile).current.map(|most| most as f64), "here"),
    };
    [Some(files_at_once(config, files, threads, cores)), tasks(threads)].into_iter().flatten().collect()
}

fn files_at_once(
    config: &Config,
    (files, place): (Option<f64>, &str),
    threads: usize,
    cores: usize,
) -> Finding {
    let wanted = config.server.max_requests.saturating_mul(FILES_PER_REQUEST).saturating_add(FILES_BESIDES);
    let says = format!(
        "{} files may be open {place}, max_requests = {} needs {wanted}; {threads} threads on {cores} cores",
        files.map_or_else(|| "any number of".to_owned(), |files| files.to_string()),
        config.server.max_requests
    );
    if files.is_some_and(|files| files < wanted as f64) {
        let todo = format!(
            "in the unit LimitNOFILE={wanted}, in a shell `ulimit -n {wanted}`; or lower max_requests"
        );
        Finding::warns("limits", says, todo)
    } else if threads > cores * 2 {
        Finding::warns("limits", says, "threads = 0 takes one per core")
    } else {
        Finding::good("limits", says)
    }
}

/// Threads are processes to the system. Nothing is said where there are enough of them.
fn tasks(threads: usize) -> Option<Finding> {
    let wanted = u64::try_from(threads).unwrap_or(u64::MAX).saturating_add(THREADS_BESIDES) * PROCESSES;
    let of_user = getrlimit(Resource::Nproc).current.map(|most| (most, "its user may have (`ulimit -u`)"));
    let of_group = tasks_of_group().map(|most| (most, "its control group may have (pids.max)"));
    let (most, whose) = of_user.into_iter().chain(of_group).min()?;
    (most < wanted).then(|| {
        Finding::warns(
            "limits",
            format!("{most} threads are all that {whose}, {wanted} may be needed during an upgrade"),
            format!("in the unit TasksMax={wanted} and LimitNPROC={wanted}, in a shell `ulimit -u {wanted}`; or lower threads"),
        )
    })
}

/// The least of the limits of the control groups that this process is in.
fn tasks_of_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let root = Path::new("/sys/fs/cgroup");
    let limits = groups.lines().filter_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let tree = match controllers {
            "" => root.to_owned(),
            _ if controllers.split(',').any(|controller| controller == "pids") => root.join("pids"),
            _ => return None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        let limit = |at: &Path| fs::read_to_string(tree.join(at).join("pids.max")).ok()?.trim().parse().ok();
        group.ancestors().filter_map(limit).min()
    });
    limits.min()
}

fn size(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes < 10 << 30 { format!("{} MiB", bytes / MIB) } else { format!("{} GiB", bytes >> 30) }
}
