//! A disk that forgets what was not waited for, tears what is being written, fails, and is full.

use super::rng::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};
use weir::ledger::journal::{Disk, Segment};

/// What the disk writes whole or, when the power goes, in part.
const BLOCK: usize = 512;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crash {
    /// What the system took stays.
    Kill,
    /// What was not waited for is there, or not, block by block, or torn in the middle of one.
    PowerCut,
}

/// At what the journal stands when its disk calls back: other threads may do anything meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum During {
    Sync,
    Create,
    Remove,
}

pub(super) type Hook = Arc<dyn Fn(During) + Send + Sync>;

#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    rng: Rng,
    files: BTreeMap<String, File>,
    faults: Faults,
    hook: Option<Hook>,
    creating: Option<String>,
    /// What is left when the process has ended; from then on nothing that it does reaches the disk.
    left: Option<(Crash, Image)>,
    errors: u64,
    waits: u64,
}

/// What is to go wrong: after so many calls, or from now on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) write_error_in: Option<u32>,
    pub(super) sync_error_in: Option<u32>,
    pub(super) crash_in_write: Option<(u32, Crash)>,
    pub(super) has_no_space: bool,
}

struct File {
    /// What the process reads back.
    cache: Vec<u8>,
    /// What is on the disk.
    synced: Vec<u8>,
    /// Blocks that may or may not be on the disk as they are in the cache.
    pending: BTreeSet<usize>,
    /// By which wait a block came to the disk: an earlier one that ends later brings nothing older back.
    synced_by: BTreeMap<usize, u64>,
    has_failed: bool,
}

struct SimSegment {
    disk: SimDisk,
    name: String,
}

/// A directory after its owner's end.
#[derive(Clone, Debug, Default)]
pub(super) struct Image(pub(super) BTreeMap<String, Vec<u8>>);

impl SimDisk {
    pub(super) fn new(rng: Rng) -> Self {
        SimDisk(Arc::new(Mutex::new(Inner {
            rng,
            files: BTreeMap::new(),
            faults: Faults::default(),
            hook: None,
            creating: None,
            left: None,
            errors: 0,
            waits: 0,
        })))
    }

    pub(super) fn set_hook(&self, hook: Option<Hook>) {
        self.inner().hook = hook;
    }

    pub(super) fn with_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.inner().faults);
    }

    /// How many calls have failed.
    pub(super) fn errors(&self) -> u64 {
        self.inner().errors
    }

    pub(super) fn is_dead(&self) -> bool {
        self.inner().left.is_some()
    }

    /// Ends the process that writes here.
    pub(super) fn crash(&self, crash: Crash) {
        self.inner().crash(crash);
    }

    /// What is left after the crash.
    pub(super) fn left(&self) -> (Crash, Image) {
        self.inner().left.clone().expect("nothing crashed")
    }

    /// What a kill would leave now.
    pub(super) fn now(&self) -> Image {
        Image(self.inner().files.iter().map(|(name, file)| (name.clone(), file.cache.clone())).collect())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn call_back(&self, during: During) {
        let hook = self.inner().hook.clone();
        if let Some(hook) = hook {
            hook(during);
        }
    }
}

impl Inner {
    fn crash(&mut self, crash: Crash) {
        if self.left.is_some() {
            return;
        }
        let mut image = BTreeMap::new();
        for (name, file) in &self.files {
            let mut bytes = file.cache.clone();
            if crash == Crash::PowerCut {
                bytes.clone_from(&file.synced);
                for block in &file.pending {
                    let (from, to) = (block * BLOCK, (block * BLOCK + BLOCK).min(bytes.len()));
                    let written = match self.rng.below(3) {
                        0 => from,
                        1 => to,
                        _ => from + self.rng.index(to - from),
                    };
                    bytes[from..written].copy_from_slice(&file.cache[from..written]);
                }
            }
            image.insert(name.clone(), bytes);
        }
        if let Some(name) = &self.creating
            && self.rng.chance(2)
        {
            image.insert(name.clone(), vec![0; self.rng.index(4 * BLOCK)]);
        }
        self.left = Some((crash, Image(image)));
    }

    fn fails(&mut self, which: fn(&mut Faults) -> &mut Option<u32>) -> bool {
        let countdown = which(&mut self.faults);
        let is_now = *countdown == Some(0);
        *countdown = countdown.and_then(|calls| calls.checked_sub(1));
        self.errors += u64::from(is_now);
        is_now
    }

    fn write(&mut self, name: &str, bytes: &[u8], offset: usize) {
        let file = self.files.get_mut(name).expect("a file that is written to exists");
        file.cache[offset..offset + bytes.len()].copy_from_slice(bytes);
        if !bytes.is_empty() {
            file.pending.extend(offset / BLOCK..=(offset + bytes.len() - 1) / BLOCK);
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.inner().files.keys().cloned().collect())
    }

    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        self.inner().creating = Some(name.to_owned());
        self.call_back(During::Create);
        let mut inner = self.inner();
        inner.creating = None;
        if inner.faults.has_no_space {
            return Err(ErrorKind::StorageFull.into());
        }
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap()];
        bytes[..head.len()].copy_from_slice(head);
        let file = File {
            synced: bytes.clone(),
            cache: bytes,
            pending: BTreeSet::new(),
            synced_by: BTreeMap::new(),
            has_failed: false,
        };
        assert!(inner.files.insert(name.to_owned(), file).is_none(), "{name} is made twice");
        Ok(Arc::new(SimSegment { disk: self.clone(), name: name.to_owned() }))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.now().read(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call_back(During::Remove);
        let mut inner = self.inner();
        let oldest = inner.files.keys().next().cloned();
        assert_eq!(oldest.as_deref(), Some(name), "segments go in the order of their age");
        inner.files.remove(name);
        Ok(())
    }
}

impl Segment for SimSegment {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let mut inner = self.disk.inner();
        if inner.left.is_some() {
            return Ok(());
        }
        assert!(!inner.files[&self.name].has_failed, "{} failed and is written to again", self.name);
        if inner.fails(|faults| &mut faults.write_error_in) {
            let taken = inner.rng.index(bytes.len() + 1);
            inner.write(&self.name, &bytes[..taken], offset);
            inner.files.get_mut(&self.name).unwrap().has_failed = true;
            return Err(Error::other("EIO"));
        }
        match inner.faults.crash_in_write {
            Some((0, crash)) => {
                let taken = inner.rng.index(bytes.len() + 1);
                inner.write(&self.name, &bytes[..taken], offset);
                inner.crash(crash);
            }
            Some((calls, crash)) => {
                inner.faults.crash_in_write = Some((calls - 1, crash));
                inner.write(&self.name, bytes, offset);
            }
            None => inner.write(&self.name, bytes, offset),
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        // What was written before the call is what is waited for.
        let (wait, waited): (u64, Vec<(usize, Vec<u8>)>) = {
            let mut inner = self.disk.inner();
            inner.waits += 1;
            let wait = inner.waits;
            let Some(file) = inner.files.get(&self.name) else { return Ok(()) };
            let block =
                |at: usize| file.cache[at * BLOCK..(at * BLOCK + BLOCK).min(file.cache.len())].to_vec();
            (wait, file.pending.iter().map(|at| (*at, block(*at))).collect())
        };
        self.disk.call_back(During::Sync);
        let mut inner = self.disk.inner();
        if inner.left.is_some() {
            return Ok(());
        }
        let has_failed = inner.fails(|faults| &mut faults.sync_error_in);
        let mut rng = inner.rng.fork();
        let Some(file) = inner.files.get_mut(&self.name) else { return Ok(()) };
        for (at, bytes) in waited {
            if file.synced_by.get(&at).is_some_and(|later| *later > wait) {
                continue;
            }
            file.synced_by.insert(at, wait);
            let range = at * BLOCK..at * BLOCK + bytes.len();
            let is_unchanged = file.cache[range.clone()] == bytes[..];
            if !has_failed || rng.chance(3) {
                file.synced[range].copy_from_slice(&bytes);
            } else if rng.chance(2) {
                // The system forgets the page: what is read back from now on is what the disk has.
                let synced = file.synced[range.clone()].to_vec();
                file.cache[range].copy_from_slice(&synced);
            }
            if is_unchanged {
                file.pending.remove(&at);
            }
        }
        file.has_failed |= has_failed;
        if has_failed { Err(Error::other("EIO")) } else { Ok(()) }
    }
}

impl Disk for Image {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn create(&self, _name: &str, _size_bytes: u64, _head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        Err(ErrorKind::Unsupported.into())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.get(name).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}
