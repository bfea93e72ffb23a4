//! The directory of a session's journal, as far as the journal needs it: a seam, so that a simulated disk can forget, tear and fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A directory of segments.
pub trait Disk: Send + Sync + 'static {
    /// The names of its files.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A new file of this size that begins with `head`; every other block is written with zeros; all is on the disk, its name too.
    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>>;
    /// A file's bytes.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Takes a file away. That is on the disk, too, when it returns.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// An open segment.
pub trait Segment: Send + Sync {
    /// Writes within its size.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Waits until what was written is on the disk.
    fn sync(&self) -> io::Result<()>;
}

/// A real directory.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

impl Directory {
    /// The directory at this path, which must exist.
    pub fn new(path: &Path) -> Self {
        Directory(path.to_owned())
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        let path = self.0.join(name);
        let made = zeroed(&path, size_bytes, head).and_then(|file| {
            File::open(&self.0)?.sync_all()?;
            Ok(file)
        });
        if made.is_err() {
            // What could not be made whole must not take the room that others need.
            let _gone = fs::remove_file(&path);
        }
        Ok(Arc::new(made?))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.0.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.0.join(name))?;
        File::open(&self.0)?.sync_all()
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
