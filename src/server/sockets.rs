//! The listening sockets of the process, by address: taken over from a process that is being upgraded, or else bound.
//!
//! Promises: an address is bound once, and its socket is handed over itself, so that no connection is refused in between; a socket
//! that nobody asked for is closed, since connections would wait at it for ever. Refuses to know: what is served on them.

use super::ServeError;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// The sockets. They stop listening here when this is dropped with what was made of it.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    inherited: Vec<(String, OwnedFd)>,
    taken: Vec<(String, OwnedFd)>,
}

impl Sockets {
    /// With these from the process before, by the names that they had there.
    pub(super) fn inherited(inherited: Vec<(String, OwnedFd)>) -> Self {
        Sockets { inherited, taken: Vec::new() }
    }

    /// The listener at this address.
    pub(super) fn tcp(&mut self, address: SocketAddr) -> Result<TcpListener, ServeError> {
        self.claim(
            address.to_string(),
            || TcpListener::bind(address),
            |listener: &TcpListener| listener.set_nonblocking(true),
        )
    }

    /// The listener at this path, for those of these permissions. What a dead process left there is removed; a living one is not
    /// disturbed. One that was taken over is made anew where its file is gone: nobody could reach it.
    pub(super) fn unix(&mut self, path: &Path, mode: u32) -> Result<UnixListener, ServeError> {
        let name = path.display().to_string();
        if !is_socket(path) && self.take(&name).is_some() {
            tracing::warn!(address = name, "the file of this listener is gone; it is made anew");
        }
        self.claim(
            name,
            || bind_unix(path),
            |listener: &UnixListener| {
                listener.set_nonblocking(true)?;
                fs::set_permissions(path, fs::Permissions::from_mode(mode))
            },
        )
    }

    /// The listener of this name: the one that was taken over, else a new one, prepared in either case. A second handle to it stays
    /// here.
    fn claim<L: From<OwnedFd> + AsFd>(
        &mut self,
        name: String,
        bind: impl FnOnce() -> io::Result<L>,
        prepare: impl FnOnce(&L) -> io::Result<()>,
    ) -> Result<L, ServeError> {
        let claimed = || {
            let listener = self.take(&name).map_or_else(bind, |socket| Ok(L::from(socket)))?;
            prepare(&listener)?;
            self.taken.push((name.clone(), listener.as_fd().try_clone_to_owned()?));
            Ok(listener)
        };
        claimed().map_err(|cause| ServeError::Listen { address: name, cause })
    }

    /// Closes what was taken over and not asked for.
    pub(super) fn close_unclaimed(&mut self) {
        for (name, _socket) in self.inherited.drain(..) {
            tracing::info!(address = name, "no longer configured: the listener is closed");
        }
    }

    /// All that are listened on, with their names.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, BorrowedFd<'_>)> {
        self.taken.iter().map(|(name, socket)| (name.as_str(), socket.as_fd()))
    }

    fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.inherited.iter().position(|(have, _)| have == name)?;
        Some(self.inherited.swap_remove(at).1)
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// It is a socket, at which nobody listens. Any other file refuses connections in the same way, and is somebody's.
fn is_dead(path: &Path) -> bool {
    is_socket(path)
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_socket_is_taken_over_itself_and_connections_wait_at_it_all_along() {
        let mut first = Sockets::default();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = first.tcp(address).unwrap();
        let handed =
            first.all().map(|(name, socket)| (name.to_owned(), socket.try_clone_to_owned().unwrap()));
        let mut second = Sockets::inherited(handed.collect());
        let waiting = TcpStream::connect(address).unwrap();
        drop((listener, first));
        let listener = second.tcp(address).unwrap();
        listener.set_nonblocking(false).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
    }

    #[test]
    fn what_is_not_asked_for_any_more_stops_listening() {
        let mut first = Sockets::default();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = first.tcp(address).unwrap();
        let handed =
            first.all().map(|(name, socket)| (name.to_owned(), socket.try_clone_to_owned().unwrap()));
        let mut second = Sockets::inherited(handed.collect());
        drop((listener, first));
        second.close_unclaimed();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_path_of_a_dead_process_is_taken_and_that_of_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let mut dead = Sockets::default();
        drop(dead.unix(&path, 0o600).unwrap());
        drop(dead);
        let mut living = Sockets::default();
        let _listener = living.unix(&path, 0o600).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Sockets::default().unix(&path, 0o600).is_err());
        let file = directory.path().join("accounts.txt");
        fs::write(&file, "kept").unwrap();
        assert!(Sockets::default().unix(&file, 0o600).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
    }
}
