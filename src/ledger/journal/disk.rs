//! The directory of a session's journal, as far as the journal needs it: a seam, so that a simulated disk can forget, tear and fail.

use crate::clock::{Clock, UnixMicros};
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

/// A directory of segments.
pub trait Disk: Send + Sync + 'static {
    /// The names of its files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file of this size that begins with `head`; every other block is written with zeros; all is on the disk, its name too.
    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>>;
    /// A file's bytes.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Takes a file away, its records being in the database. That is on the disk, too, when it returns.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// An open segment.
pub trait Segment: Send + Sync {
    /// Writes within its size.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Waits until what was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// What gives way to a segment on a disk that is full.
pub trait Relief: Debug + Send + Sync {
    /// Makes room for so many bytes, or for some of them. `false` where there is nothing left that could go.
    fn make_room(&self, bytes: u64) -> io::Result<bool>;
}

/// A real directory.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    kept: Option<(PathBuf, Clock)>,
    relief: Option<Arc<dyn Relief>>,
}

/// Zeros are written in pieces of this size, a page: in larger ones the kernel keeps them as one large block of its cache, through which
/// every later write of a record goes page by page.
const ZEROS_BYTES: usize = 4 << 10;

impl Directory {
    /// The directory at this path, which must exist.
    pub fn new(path: &Path) -> Self {
        Directory { path: path.to_owned(), kept: None, relief: None }
    }

    /// The same; what is taken away goes to that directory, which is made when it is needed.
    pub fn keeping(path: &Path, kept: PathBuf, clock: Clock) -> Self {
        Directory { path: path.to_owned(), kept: Some((kept, clock)), relief: None }
    }

    /// The same, where something gives way before there is no room for a segment.
    pub fn with_relief(self, relief: Arc<dyn Relief>) -> Self {
        Directory { relief: Some(relief), ..self }
    }

    fn make(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<File> {
        let path = self.path.join(name);
        let made = zeroed(&path, size_bytes, head).and_then(|file| {
            File::open(&self.path)?.sync_all()?;
            Ok(file)
        });
        if made.is_err() {
            // What could not be made whole must not take the room that others need.
            let _gone = fs::remove_file(&path);
        }
        made
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        let make = || self.make(name, size_bytes, head);
        let file = match &self.relief {
            Some(relief) => with_relief(relief.as_ref(), size_bytes, make)?,
            None => make()?,
        };
        Ok(Arc::new(file))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let file = self.path.join(name);
        match &self.kept {
            Some((kept, clock)) => keep(&file, kept, clock.wall())?,
            None => fs::remove_file(file)?,
        }
        File::open(&self.path)?.sync_all()
    }
}

/// Moves a segment to another directory of the same disk, and notes in its time of change when that was. One that is there already has
/// been moved before.
pub(in crate::ledger) fn keep(file: &Path, into: &Path, at: UnixMicros) -> io::Result<()> {
    let Some(name) = file.file_name() else { return Err(io::ErrorKind::InvalidInput.into()) };
    let target = into.join(name);
    if !file.exists() && target.exists() {
        return Ok(());
    }
    let at = UNIX_EPOCH + Duration::from_micros(u64::try_from(at.0).unwrap_or(0));
    OpenOptions::new().write(true).open(file)?.set_modified(at)?;
    DirBuilder::new().recursive(true).mode(0o700).create(into)?;
    fs::rename(file, target)?;
    File::open(into)?.sync_all()
}

/// Tries again on a disk that is full, as long as something gives way.
pub(in crate::ledger) fn with_relief<T>(
    relief: &dyn Relief,
    bytes: u64,
    mut make: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    loop {
        let made = make();
        let is_full = made.as_ref().is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        });
        if !is_full || !relief.make_room(bytes)? {
            return made;
        }
    }
}

fn zeroed(path: &Path, size_bytes: u64, head: &[u8]) -> io::Result<File> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
    let zeros = vec![0_u8; ZEROS_BYTES];
    let mut offset = 0;
    while offset < size_bytes {
        let piece = usize::try_from(size_bytes - offset).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        file.write_all_at(&zeros[..piece], offset)?;
        offset += piece as u64;
    }
    file.write_all_at(head, 0)?;
    file.sync_all()?;
    Ok(file)
}

impl Segment for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
