//! Segments whose records are in the database, kept for a while: a database that is put back from a backup needs them once more.
//!
//! Promises: what was written to the database since a time is here, or [`Kept::pruned_to`] says that it is not; what is too old, or too
//! much, goes in the order in which it came, and the note of that is on the disk first. Refuses to know: what the records say.
//!
//! A directory for each session. The time of change of a file is when its records were all in the database.

use super::journal::{self, SEGMENT_EXTENSION};
use crate::clock::UnixMicros;
use crate::ids::SessionId;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepSettings {
    /// So long, from when its records were in the database.
    pub time: Duration,
    /// And so much: of more, the oldest goes.
    pub bytes: u64,
}

/// What is kept of all sessions of this machine.
#[derive(Clone, Debug)]
pub(super) struct Kept(PathBuf);

/// What is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptStats {
    /// Bytes of all segments.
    pub bytes: u64,
    /// When the records of the oldest of them were in the database.
    pub since: Option<UnixMicros>,
}

const DIRECTORY: &str = "kept";
/// Has, as microseconds since 1970 UTC, when the records of the latest segment that has been removed were in the database.
const PRUNED: &str = "pruned";

/// A file, or a session's directory with nothing in it.
struct Item {
    path: PathBuf,
    at: UnixMicros,
    bytes: u64,
    is_directory: bool,
}

impl Kept {
    /// What is kept beside the journals in `home`.
    pub(super) fn beside(home: &Path) -> Kept {
        Kept(home.join(DIRECTORY))
    }

    /// Where a session's segments go.
    pub(super) fn of(&self, session: SessionId) -> PathBuf {
        self.0.join(session.to_string())
    }

    /// Takes over all segments of a directory, the oldest first; those that nothing was written to are removed.
    pub(super) fn take(&self, session: SessionId, directory: &Path, at: UnixMicros) -> io::Result<()> {
        let into = self.of(session);
        // Made for a session without any, too: it shows that nothing is missing.
        DirBuilder::new().recursive(true).mode(0o700).create(&into)?;
        for segment in segments(directory)? {
            match journal::trim(&segment)? {
                true => journal::keep(&segment, &into, at)?,
                false => fs::remove_file(segment)?,
            }
        }
        File::open(&self.0)?.sync_all()
    }

    /// The sessions of which something is kept.
    pub(super) fn sessions(&self) -> io::Result<Vec<SessionId>> {
        let mut sessions = Vec::new();
        for entry in entries(&self.0)? {
            let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            sessions.extend(SessionId::from_str(name).ok());
        }
        sessions.sort();
        Ok(sessions)
    }

    /// Nothing is missing of what was written to the database after this time; `None` where nothing has ever been removed.
    pub(super) fn pruned_to(&self) -> io::Result<Option<UnixMicros>> {
        match fs::read_to_string(self.0.join(PRUNED)) {
            Ok(text) => {
                let at = text
                    .trim()
                    .parse()
                    .map_err(|_| io::Error::other("the note of what was removed is damaged"))?;
                Ok(Some(UnixMicros(at)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes what is too old and what is too much. `is_live` tells of which sessions more will come.
    pub(super) fn prune(
        &self,
        settings: KeepSettings,
        now: UnixMicros,
        is_live: impl Fn(SessionId) -> bool,
    ) -> io::Result<KeptStats> {
        let mut items = self.items(is_live)?;
        items.sort_by(|one, other| (one.at, &one.path).cmp(&(other.at, &other.path)));
        let mut bytes: u64 = items.iter().map(|item| item.bytes).sum();
        let oldest = UnixMicros(
            now.0.saturating_sub_unsigned(u64::try_from(settings.time.as_micros()).unwrap_or(u64::MAX)),
        );
        let mut go = 0;
        for item in &items {
            if item.at >= oldest && bytes <= settings.bytes {
                break;
            }
            bytes -= item.bytes;
            go += 1;
        }
        let (gone, left) = items.split_at(go);
        if let Some(last) = gone.last() {
            self.note_pruned(last.at)?;
        }
        for item in gone {
            if item.is_directory { fs::remove_dir(&item.path)? } else { fs::remove_file(&item.path)? }
        }
        Ok(KeptStats { bytes, since: left.iter().find(|item| !item.is_directory).map(|item| item.at) })
    }

    /// Removes the oldest, so that it takes so many bytes less, or nothing. Tells whether there was anything.
    pub(super) fn shrink(
        &self,
        bytes: u64,
        now: UnixMicros,
        is_live: impl Fn(SessionId) -> bool,
    ) -> io::Result<bool> {
        let have: u64 = self.items(&is_live)?.iter().map(|item| item.bytes).sum();
        if have == 0 {
            return Ok(false);
        }
        let keep = KeepSettings { time: Duration::MAX, bytes: have.saturating_sub(bytes) };
        self.prune(keep, now, is_live).map(|_| true)
    }

    fn items(&self, is_live: impl Fn(SessionId) -> bool) -> io::Result<Vec<Item>> {
        let mut items = Vec::new();
        for session in self.sessions()? {
            let directory = self.of(session);
            let segments = segments(&directory)?;
            if segments.is_empty() && !is_live(session) {
                let at = modified(&fs::metadata(&directory)?)?;
                items.push(Item { path: directory, at, bytes: 0, is_directory: true });
            }
            // A clock that was set back makes no gap: of a session, none goes before an earlier one.
            let mut at = UnixMicros(0);
            for path in segments {
                let found = fs::metadata(&path)?;
                at = at.max(modified(&found)?);
                items.push(Item { path, at, bytes: found.len(), is_directory: false });
            }
        }
        Ok(items)
    }

    fn note_pruned(&self, at: UnixMicros) -> io::Result<()> {
        let at = self.pruned_to()?.map_or(at, |before| before.max(at));
        let (path, new) = (self.0.join(PRUNED), self.0.join("pruned.new"));
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
        writeln!(file, "{}", at.0)?;
        file.sync_all()?;
        fs::rename(new, path)?;
        File::open(&self.0)?.sync_all()
    }
}

/// The segments in a directory, in the order of their use; none where there is no directory.
pub(super) fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = entries(directory)?;
    files.retain(|path| path.extension().is_some_and(|end| end == SEGMENT_EXTENSION));
    files.sort();
    Ok(files)
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn modified(found: &fs::Metadata) -> io::Result<UnixMicros> {
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(UnixMicros(i64::try_from(since(found.modified()?).as_micros()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::journal::{Directory, Durability, Journal, Progress, Record, Settings, scan};

    /// A journal of two segments, and the last one unused.
    fn written(directory: &Path) {
        let settings = Settings { durability: Durability::Os, segment_bytes: 64 << 10, max_bytes: 1 << 20 };
        let journal = Journal::without_threads(Directory::new(directory), settings).unwrap();
        for output_tokens in 0..3_000 {
            journal.progress(Progress { request_id: [7; 16], input_tokens: 0, output_tokens }).unwrap();
            journal.keep_once().unwrap();
        }
    }

    #[test]
    fn what_is_kept_reads_as_what_was_written_and_goes_in_the_order_in_which_it_came() {
        let home = tempfile::tempdir().unwrap();
        let (kept, session) = (Kept::beside(home.path()), SessionId::new());
        let own = home.path().join("own");
        fs::create_dir(&own).unwrap();
        written(&own);
        let records = scan(&Directory::new(&own)).unwrap().records().collect::<Vec<_>>();
        assert_eq!(records.len(), 3_000);
        kept.take(session, &own, UnixMicros(5_000_000)).unwrap();
        assert_eq!(segments(&own).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(scan(&Directory::new(&kept.of(session))).unwrap().records().collect::<Vec<_>>(), records);
        let files = segments(&kept.of(session)).unwrap();
        assert_eq!(files.len(), 2, "the unused one is gone");
        assert_eq!(journal::first_seq(&files[0]).unwrap(), Some(1));
        let second = journal::first_seq(&files[1]).unwrap().unwrap();
        assert!(matches!(records[usize::try_from(second).unwrap() - 1].1, Record::Progress(_)));

        let keep = |time, bytes| KeepSettings { time: Duration::from_secs(time), bytes };
        let all = kept.prune(keep(10, 1 << 30), UnixMicros(14_000_000), |_| false).unwrap();
        assert_eq!((all.since, kept.pruned_to().unwrap()), (Some(UnixMicros(5_000_000)), None));
        let less = kept.prune(keep(10, all.bytes - 1), UnixMicros(14_000_000), |_| false).unwrap();
        assert_eq!(segments(&kept.of(session)).unwrap(), files[1..], "{less:?}");
        assert_eq!(kept.pruned_to().unwrap(), Some(UnixMicros(5_000_000)));
        let again = |bytes| kept.shrink(bytes, UnixMicros(14_000_000), |_| false).unwrap();
        assert!(again(0));
        assert_eq!(segments(&kept.of(session)).unwrap(), files[1..]);
        kept.prune(keep(10, 1 << 30), UnixMicros(15_000_001), |_| false).unwrap();
        assert_eq!(segments(&kept.of(session)).unwrap(), Vec::<PathBuf>::new());
    }

    /// A disk on which there is room once something goes.
    #[derive(Debug)]
    struct Full(Kept);

    impl journal::Relief for Full {
        fn make_room(&self, bytes: u64) -> io::Result<bool> {
            self.0.shrink(bytes, UnixMicros(6_000_000), |_| true)
        }
    }

    #[test]
    fn the_oldest_that_is_kept_goes_before_a_segment_has_no_room() {
        let home = tempfile::tempdir().unwrap();
        let (kept, session) = (Kept::beside(home.path()), SessionId::new());
        let own = home.path().join("own");
        fs::create_dir(&own).unwrap();
        written(&own);
        kept.take(session, &own, UnixMicros(5_000_000)).unwrap();
        let files = segments(&kept.of(session)).unwrap();
        let full = Full(kept.clone());
        let (mut tries, bytes) = (0, 1);
        let made = journal::with_relief(&full, bytes, || {
            tries += 1;
            let is_there = files[1].exists();
            if is_there { Err(io::Error::from(io::ErrorKind::StorageFull)) } else { Ok(tries) }
        });
        assert_eq!(made.unwrap(), 3, "a try, and one after each that went");
        let hopeless = || Err::<(), _>(io::Error::from(io::ErrorKind::StorageFull));
        let error = journal::with_relief(&full, bytes, hopeless).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
