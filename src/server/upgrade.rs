//! The upgrade of a running process: the program at its own path is started beside it, gets its listening sockets, and serves before
//! this one stops accepting.
//!
//! Promises: one at a time; a new process that ends, hangs or cannot read its configuration leaves this one serving as before, and
//! whoever asked is told. Refuses to know: how this process ends afterwards.

use super::handover::{Channel, Word};
use super::sockets::Sockets;
use super::starter::{Process, Starting};
use crate::config::Config;
use crate::store::Store;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// How this process was started, which is how the new one is.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program, as it was found at the start: a package replaces the file there.
    pub program: PathBuf,
    /// Its arguments, without [`TAKE_OVER`].
    pub arguments: Vec<OsString>,
    /// Another process waits to hand its listeners over.
    pub takes_over: bool,
}

/// Ends the arguments of a process that takes over.
pub const TAKE_OVER: &str = "--take-over";

/// Takes requests for an upgrade. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    is_under_way: Arc<AtomicBool>,
    requests: mpsc::Sender<Request>,
}

/// Requests, from [`Asking`] and from SIGUSR2.
#[derive(Debug)]
pub(super) struct Requests {
    asking: Asking,
    requests: mpsc::Receiver<Request>,
    user2: Signal,
}

/// Somebody wants an upgrade, and waits to hear what came of it.
#[derive(Debug)]
pub(super) struct Request {
    is_under_way: Arc<AtomicBool>,
    answer: Option<oneshot::Sender<Result<u32, String>>>,
}

/// The process that serves in this one's place. It is no child of this one.
#[derive(Debug)]
pub(super) struct Successor {
    pub(super) process: Process,
    /// It says here when it hands over in its turn, and when it is told to stop.
    pub(super) channel: Arc<Channel>,
}

/// An upgrade under way.
#[derive(Debug)]
pub(super) struct Attempt {
    channel: Arc<Channel>,
    decided: Decided,
    outcome: JoinHandle<Result<Successor, String>>,
}

/// Whether it is decided what comes of an upgrade: that it is called off, or that the new process is told to go. From "go" on that one
/// may have accepted something, and is not ended any more for a stop of this one. Cheap to clone.
#[derive(Clone, Debug, Default)]
struct Decided(Arc<AtomicBool>);

/// Where the books of this configuration are, in words that are the same for each process that has the same.
pub(super) fn books(config: &Config) -> io::Result<String> {
    let database = Store::path(&config.store.url).map_err(io::Error::other)?;
    let place = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    Ok(format!("journal.dir {:?} and store.url {:?}", place(&config.journal.dir)?, place(&database)?))
}

/// From "go" to accepting: nothing is left to be opened then.
const SERVING_MAX: Duration = Duration::from_secs(10);

impl Requests {
    /// Call on a runtime.
    pub(super) fn new() -> io::Result<Requests> {
        let (sender, requests) = mpsc::channel(1);
        let asking = Asking { is_under_way: Arc::default(), requests: sender };
        Ok(Requests { asking, requests, user2: signal(SignalKind::user_defined2())? })
    }

    pub(super) fn asking(&self) -> Asking {
        self.asking.clone()
    }

    /// From now on there is no upgrade any more: whoever asks, or has asked, is told at once.
    pub(super) fn close(&mut self) {
        self.requests.close();
        while self.requests.try_recv().is_ok() {}
    }

    /// The next one.
    pub(super) async fn next(&mut self) -> Request {
        loop {
            tokio::select! {
                Some(request) = self.requests.recv() => return request,
                _ = self.user2.recv() => match self.asking.begin(None) {
                    Ok(request) => return request,
                    Err(refused) => tracing::warn!(reason = refused, "SIGUSR2 is not followed"),
                },
            }
        }
    }
}

impl Asking {
    /// Asks for an upgrade and waits for its end: the process id of the new one, or why there is none.
    pub(super) async fn ask(&self) -> Result<u32, String> {
        let (answer, answered) = oneshot::channel();
        let request = self.begin(Some(answer))?;
        let gone = |()| "the process stops".to_owned();
        self.requests.send(request).await.map_err(|_| gone(()))?;
        answered.await.map_err(|_| gone(()))?
    }

    fn begin(&self, answer: Option<oneshot::Sender<Result<u32, String>>>) -> Result<Request, String> {
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            return Err("an upgrade is under way".to_owned());
        }
        Ok(Request { is_under_way: Arc::clone(&self.is_under_way), answer })
    }
}

impl Request {
    /// Tells who asked.
    pub(super) fn answer(mut self, outcome: Result<u32, String>) {
        if let Some(answer) = self.answer.take() {
            // Who does not wait any more need not know.
            let _ = answer.send(outcome);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.is_under_way.store(false, Ordering::Release);
    }
}

impl Attempt {
    /// Starts the new process, which has so long to get ready.
    pub(super) fn start(
        launch: &Launch,
        books: String,
        sockets: &Arc<Sockets>,
        most: Duration,
        on: &Handle,
    ) -> io::Result<Attempt> {
        if std::process::id() == 1 {
            return Err(io::Error::other(
                "this is the first process of a container, which ends with it: start a new container instead",
            ));
        }
        let (ours, theirs) = Channel::pair()?;
        let arguments = [launch.arguments.as_slice(), &[TAKE_OVER.into()]].concat();
        let channel = Arc::new(ours);
        let starting = Starting::begin(&launch.program, &arguments, Arc::clone(&channel), theirs)?;
        let (speaking, sockets) = (Arc::clone(&channel), Arc::clone(sockets));
        let decided = Decided::default();
        let go = decided.clone();
        let outcome = on.spawn_blocking(move || {
            let process = hand_over(&speaking, &books, &sockets, starting, most, &go)?;
            Ok(Successor { process, channel: speaking })
        });
        Ok(Attempt { channel, decided, outcome })
    }

    /// What came of it: the new process, which serves, or why there is none.
    pub(super) async fn outcome(&mut self) -> Result<Successor, String> {
        (&mut self.outcome).await.unwrap_or_else(|fault| Err(fault.to_string()))
    }

    /// Ends the new process, unless it was told to go: the outcome tells.
    pub(super) fn call_off(&self) {
        if self.decided.is_mine() {
            self.channel.close();
        }
    }
}

impl Decided {
    /// True for the first who asks, who decides.
    fn is_mine(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

fn hand_over(
    channel: &Channel,
    books: &str,
    sockets: &Sockets,
    mut starting: Starting,
    most: Duration,
    decided: &Decided,
) -> Result<Process, String> {
    let go = || match decided.is_mine() {
        true => channel.say(Word::Go),
        false => Err(io::Error::other("it is called off, since this process ends")),
    };
    let told = starting
        .started()
        .and_then(|()| channel.send(books, sockets.all()))
        .and_then(|()| channel.hear(Word::Ready, most))
        .and_then(|()| go())
        .and_then(|()| channel.hear(Word::Serving, SERVING_MAX))
        .and_then(|()| starting.let_go());
    told.map_err(|fault| format!("the new process did not take over: {}", channel.why(fault)))
}
