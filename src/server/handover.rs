//! What two processes of one service say to each other during an upgrade, over a socket that the new one has as its standard input.
//!
//! The old one sends where its books are, and each listening socket with its name; the new one opens its books and says that it is ready; the old one says go;
//! the new one accepts, and says that it serves. Whoever is gone, or closes its end, has called it off; the old one does so only before
//! "go", while the new one has accepted nothing. After "serves" the old one accepts nothing more.
//!
//! Promises: every wait ends. Refuses to know: what the sockets are for.

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown,
    socketpair,
};
use rustix::process::Pid;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// That was the last socket.
    End,
    /// The books are open.
    Ready,
    /// Accept.
    Go,
    /// Every listener accepts.
    Serving,
    /// The one that serves has handed over in its turn.
    Passed,
    /// The one that it handed over to has ended, and left nobody.
    Lost,
    /// The one that serves was told to stop, and does.
    Stops,
}

/// The first byte of a message with a socket; its name follows.
const SOCKET: u8 = b'S';
/// The first byte of the message that tells where the books are.
const BOOKS: u8 = b'B';
/// The first byte of what the starter tells: the process that it started; how that ended.
const STARTED: u8 = b'I';
const ENDED: u8 = b'X';
/// The longest message: two paths (4,096 bytes each, limits.h), escaped.
const MESSAGE_BYTES_MAX: usize = 64 * 1_024;
/// The longest name: a path of a socket (108 bytes, unix(7)), an address.
const NAME_BYTES_MAX: usize = 512;
/// The listeners that one process hands over.
const SOCKETS_MAX: usize = 1_024;
/// For what the other side has sent already, or sends at once.
const PROMPT: Duration = Duration::from_secs(10);
/// For what a process that is gone has said, and for the starter to tell of its end.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// Between two looks at a side that says nothing for as long as it serves.
const LONG: Duration = Duration::from_secs(3_600);

impl Channel {
    /// Ours, and the one to start the new process with.
    pub(super) fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Channel(ours), theirs))
    }

    /// The end that this process was started with.
    pub(super) fn from_stdin() -> io::Result<Channel> {
        Ok(Channel(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// Sends where the books are, and the sockets.
    pub(super) fn send<'a>(
        &self,
        books: &str,
        sockets: impl Iterator<Item = (&'a str, BorrowedFd<'a>)>,
    ) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Send, Some(PROMPT))?;
        if books.len() >= MESSAGE_BYTES_MAX {
            return Err(io::Error::other("the paths of the books are too long"));
        }
        self.tell(BOOKS, books)?;
        for (name, socket) in sockets {
            if name.len() > NAME_BYTES_MAX {
                return Err(io::Error::other(format!("the name of the listener {name} is too long")));
            }
            self.tell_with(SOCKET, name, socket)?;
        }
        self.say(Word::End)
    }

    /// Receives the sockets, if the books of the other process are here. Two processes with books of their own would give the same
    /// credit away twice.
    pub(super) fn receive(&self, books: &str) -> io::Result<Vec<(String, OwnedFd)>> {
        let (text, _) = self.next(PROMPT)?;
        match text.split_first() {
            Some((&BOOKS, theirs)) if theirs == books.as_bytes() => {}
            Some((&BOOKS, theirs)) => {
                let theirs = String::from_utf8_lossy(theirs);
                return Err(io::Error::other(format!(
                    "the running process has its books at {theirs}, and the configuration has them at {books}: an upgrade \
                     cannot move them; stop the service and start it anew"
                )));
            }
            Some(_) | None => return Err(io::Error::other("this is not an upgrade of this program")),
        }
        let mut sockets = Vec::new();
        while sockets.len() <= SOCKETS_MAX {
            let (text, socket) = self.next(PROMPT)?;
            match (text.split_first(), socket) {
                (Some((&SOCKET, name)), Some(socket)) => {
                    let name = String::from_utf8(name.to_vec()).map_err(io::Error::other)?;
                    sockets.push((name, socket));
                }
                (Some((&word, [])), None) if word == Word::End.byte() => return Ok(sockets),
                _ => return Err(io::Error::other("this is not an upgrade of this program")),
            }
        }
        Err(io::Error::other("too many listeners"))
    }

    /// For the starter: this process runs, and this is its descriptor (pidfd_open(2)). Whoever waits hears it before anything from that
    /// process, which waits itself.
    pub(super) fn say_started(&self, process: u32, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        self.tell_with(STARTED, &process.to_string(), descriptor)
    }

    /// For the starter: the process has ended, or was never started.
    pub(super) fn say_ended(&self, how: &str) -> io::Result<()> {
        self.tell(ENDED, how)
    }

    /// Waits for the starter to tell which process runs, and for the descriptor of that.
    pub(super) fn hear_started(&self) -> io::Result<(Pid, OwnedFd)> {
        let (text, descriptor) = self.next(PROMPT)?;
        match (text.split_first(), descriptor) {
            (Some((&STARTED, id)), Some(descriptor)) => std::str::from_utf8(id)
                .ok()
                .and_then(|id| id.parse().ok())
                .filter(|id: &i32| *id > 0)
                .and_then(Pid::from_raw)
                .map(|id| (id, descriptor))
                .ok_or_else(|| io::Error::other("the starter told no process")),
            _ => Err(unexpected(&text, "the start")),
        }
    }

    fn tell(&self, kind: u8, text: &str) -> io::Result<()> {
        let message = [&[kind], text.as_bytes()].concat();
        let mut nothing = SendAncillaryBuffer::default();
        sendmsg(&self.0, &[IoSlice::new(&message)], &mut nothing, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn tell_with(&self, kind: u8, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        let message = [&[kind], text.as_bytes()].concat();
        sendmsg(&self.0, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Says a word.
    pub(super) fn say(&self, word: Word) -> io::Result<()> {
        let byte = [word.byte()];
        let mut nothing = SendAncillaryBuffer::default();
        sendmsg(&self.0, &[IoSlice::new(&byte)], &mut nothing, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for this word. An error when the time is over, the other side is gone, or it says something else.
    pub(super) fn hear(&self, word: Word, most: Duration) -> io::Result<()> {
        let (text, _) = self.next(most)?;
        match text.as_slice() {
            [byte] if *byte == word.byte() => Ok(()),
            _ => Err(unexpected(&text, &format!("{word:?}"))),
        }
    }

    /// Waits until the other side is gone: whether it has said by then that it passed on, and never that this was in vain, or that it
    /// stops.
    pub(super) fn is_left_in_order(&self) -> bool {
        let mut last = None;
        loop {
            match self.next(LONG) {
                Ok((text, _)) => last = text.first().copied(),
                Err(fault) if is_not_the_end(&fault) => {}
                Err(_) => return [Word::Passed, Word::Stops].map(|word| Some(word.byte())).contains(&last),
            }
        }
    }

    /// Whether the other side is gone by now.
    pub(super) fn is_gone(&self) -> bool {
        let mut byte = [0];
        let mut nothing = RecvAncillaryBuffer::default();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recvmsg(&self.0, &mut [IoSliceMut::new(&mut byte)], &mut nothing, flags) {
            Ok(peeked) => peeked.bytes == 0,
            Err(fault) => fault != Errno::AGAIN && fault != Errno::INTR,
        }
    }

    /// How the process ended, where that is why something failed here: it stands behind all that it said before.
    pub(super) fn why(&self, fault: io::Error) -> io::Error {
        const GONE: [io::ErrorKind; 3] =
            [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
        if !GONE.contains(&fault.kind()) {
            return fault;
        }
        loop {
            match self.next(LAST_WORDS_MAX) {
                Ok((text, _)) if text.first() == Some(&ENDED) => return unexpected(&text, ""),
                Ok(_) => {}
                Err(fault) if fault.kind() == io::ErrorKind::ConnectionReset => {}
                Err(_) => return fault,
            }
        }
    }

    /// Calls it off: whoever waits on either side is told.
    pub(super) fn close(&self) {
        // Fails where the other side is gone, which comes to the same.
        let _ = shutdown(&self.0, Shutdown::Both);
    }

    fn next(&self, most: Duration) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        set_socket_timeout(&self.0, Timeout::Recv, Some(most))?;
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no answer within {most:?}"),
                    ));
                }
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other process has gone"));
        }
        bytes.truncate(received.bytes);
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                descriptor = descriptor.or(descriptors.next());
            }
        }
        Ok((bytes, descriptor))
    }
}

/// A reset is told once, where the other side left something unread; what it said before is still there, and then the end.
fn is_not_the_end(fault: &io::Error) -> bool {
    [io::ErrorKind::TimedOut, io::ErrorKind::ConnectionReset].contains(&fault.kind())
}

fn unexpected(text: &[u8], expected: &str) -> io::Error {
    match text.split_first() {
        Some((&ENDED, how)) => io::Error::other(format!("it has ended ({})", String::from_utf8_lossy(how))),
        _ => io::Error::other(format!("{expected} was expected, and something else was said")),
    }
}

impl Word {
    fn byte(self) -> u8 {
        match self {
            Word::End => b'E',
            Word::Ready => b'R',
            Word::Go => b'G',
            Word::Serving => b'V',
            Word::Passed => b'P',
            Word::Lost => b'L',
            Word::Stops => b'T',
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn sockets_come_over_with_their_names_and_words_are_heard_in_order() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel(theirs);
        let listeners: Vec<_> = (0..40).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let names: Vec<_> = listeners.iter().map(|one| one.local_addr().unwrap().to_string()).collect();
        ours.send("here", names.iter().map(String::as_str).zip(listeners.iter().map(AsFd::as_fd))).unwrap();
        drop(listeners);
        for ((name, socket), sent) in theirs.receive("here").unwrap().into_iter().zip(&names) {
            assert_eq!(&name, sent);
            let client = TcpStream::connect(sent).unwrap();
            let (_accepted, peer) = TcpListener::from(socket).accept().unwrap();
            assert_eq!(peer, client.local_addr().unwrap());
        }
        theirs.say(Word::Ready).unwrap();
        ours.hear(Word::Ready, PROMPT).unwrap();
        theirs.say(Word::Serving).unwrap();
        assert!(ours.hear(Word::Ready, PROMPT).is_err());
    }

    #[test]
    fn nothing_is_taken_over_from_a_process_with_other_books() {
        let (ours, theirs) = Channel::pair().unwrap();
        ours.send("there", std::iter::empty()).unwrap();
        let refused = Channel(theirs).receive("here").unwrap_err().to_string();
        assert!(refused.contains("at there") && refused.contains("at here"), "{refused}");
    }

    #[test]
    fn a_wait_ends_when_the_time_is_over_when_the_other_is_gone_and_when_it_is_called_off() {
        let (ours, theirs) = Channel::pair().unwrap();
        let late = ours.hear(Word::Ready, Duration::from_millis(10)).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        let called_off = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ours.hear(Word::Ready, PROMPT));
            std::thread::sleep(Duration::from_millis(20));
            ours.close();
            waiting.join().unwrap().unwrap_err()
        });
        assert_eq!(called_off.kind(), io::ErrorKind::UnexpectedEof);
        drop(ours);
        let gone = Channel(theirs).receive("here").unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }
}
