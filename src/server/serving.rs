//! The life of the process from its first request to its last: serving, being upgraded, draining.
//!
//! Promises: it ends as soon as nothing is under way; what is still under way when its time is over is told so and billed what has
//! passed. Refuses to know: how requests are served, and how the books are closed.

use super::handover::{Channel, Word};
use super::listen::Running;
use super::notify::Notifier;
use super::reload::SERVING;
use super::sockets::Sockets;
use super::stop::{Drained, Signals, Stop};
use super::upgrade::{Attempt, Launch, Request, Requests, Successor};
use super::{CURFEW_MAX, DROP_MAX, Parts, ServeError, greeting};
use crate::config::Config;
use crate::control::admin::Readiness;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A process that serves.
pub(super) struct Serving<'a> {
    pub(super) config: &'a Config,
    pub(super) parts: &'a Parts,
    pub(super) launch: &'a Launch,
    pub(super) books: &'a Runtime,
    pub(super) running: Running,
    pub(super) sockets: Arc<Sockets>,
    /// True: the admin listener and that for commands accept nothing more.
    pub(super) closing: watch::Sender<bool>,
    /// The process that this one took over from.
    pub(super) before: Option<Channel>,
    pub(super) readiness: Readiness,
    pub(super) notifier: Notifier,
}

/// Why it ends.
enum End {
    Told(Stop),
    Broken(ServeError),
    /// Another process serves in its place. This one was told to stop in the same moment, or was not.
    HandedOver(Successor, Option<Stop>),
}

impl Serving<'_> {
    /// Serves until it is told to stop, cannot go on, or has handed over; then until nothing is under way.
    pub(super) fn run(mut self, signals: &mut Signals, requests: &mut Requests) -> Result<(), ServeError> {
        self.readiness.set(true);
        greeting::say(self.config, self.parts.demonstration.as_deref());
        // The one before accepts nothing more from then on. It may be gone, or have called it off; what this one has accepted by now
        // is ended in order.
        let told = self.before.as_ref().map_or(Ok(()), |before| before.say(Word::Serving));
        if told.is_ok() {
            self.notifier.ready(SERVING);
        }
        let watching = self.books.spawn(self.notifier.clone().watch(self.parts.ledger.clone()));
        let books = self.books;
        let ended = books.block_on(async {
            let end = match told {
                Ok(()) => self.until_the_end(signals, requests).await,
                Err(fault) => End::Broken(fault.into()),
            };
            requests.close();
            match end {
                End::HandedOver(successor, told) => self.hand_over(successor, told, signals).await,
                End::Told(stop) => {
                    self.tell_before(Word::Stops);
                    self.stop(stop, self.config.server.stop_delay, signals).await;
                    Ok(())
                }
                End::Broken(error) => {
                    let is_of_the_books = matches!(error, ServeError::Ledger(_));
                    let stop = if is_of_the_books { Stop::Drain } else { Stop::Now };
                    // It cannot serve any more: nothing is gained by looking as if it did.
                    self.stop(stop, Duration::ZERO, signals).await;
                    Err(error)
                }
            }
        });
        watching.abort();
        self.running.stop(DROP_MAX);
        ended
    }

    async fn until_the_end(&mut self, signals: &mut Signals, requests: &mut Requests) -> End {
        let ledger = self.parts.ledger.clone();
        loop {
            let request = tokio::select! {
                stop = signals.next() => return End::Told(stop),
                // Nothing more can be served. Whoever supervises the process starts a new one.
                error = ledger.broken() => return End::Broken(error.into()),
                () = self.running.ended() => return End::Broken(listeners_ended()),
                request = requests.next() => request,
            };
            let mut attempt = match self.attempt() {
                Ok(attempt) => attempt,
                Err(reason) => {
                    self.note_failure(request, reason);
                    continue;
                }
            };
            self.notifier.status("serving; a new process is being started");
            let (outcome, end) = tokio::select! {
                // A stop that came before the outcome is passed on to the new process.
                biased;
                stop = signals.next() => (called_off(&mut attempt).await, Some(End::Told(stop))),
                error = ledger.broken() => (called_off(&mut attempt).await, Some(End::Broken(error.into()))),
                () = self.running.ended() => (called_off(&mut attempt).await, Some(End::Broken(listeners_ended()))),
                outcome = attempt.outcome() => (outcome, None),
            };
            match (outcome, end) {
                (Ok(successor), end) => {
                    let process_id = successor.process.id();
                    tracing::info!(process_id, "another process serves from now on");
                    self.notifier.hand_over(process_id);
                    request.answer(Ok(process_id));
                    let told = match end {
                        Some(End::Told(stop)) => Some(stop),
                        Some(End::Broken(_) | End::HandedOver(..)) | None => None,
                    };
                    if let Some(stop) = told {
                        self.notifier.pass_on(stop, &successor.process);
                    }
                    return End::HandedOver(successor, told);
                }
                (Err(reason), end) => {
                    self.note_failure(request, reason);
                    if let Some(end) = end {
                        return end;
                    }
                }
            }
        }
    }

    fn attempt(&self) -> Result<Attempt, String> {
        if self.parts.demonstration.is_some() {
            return Err("a demonstration is not upgraded: its key is made anew at each start".to_owned());
        }
        tracing::info!(program = %self.launch.program.display(), "an upgrade begins");
        let most = self.config.server.upgrade_timeout;
        super::upgrade::books(self.config)
            .and_then(|books| Attempt::start(self.launch, books, &self.sockets, most, self.books.handle()))
            .map_err(|error| error.to_string())
    }

    fn note_failure(&self, request: Request, reason: String) {
        tracing::error!(reason, "the upgrade failed; this process serves on");
        self.parts.upgrade_failures.fetch_add(1, Ordering::Relaxed);
        self.notifier.status("serving; the last upgrade failed");
        request.answer(Err(reason));
    }

    /// Stops by order, or because nothing else is left; the listeners stay open for this long.
    async fn stop(&mut self, stop: Stop, delay: Duration, signals: &mut Signals) {
        self.readiness.set(false);
        let drain_timeout = self.parts.stopping.begin();
        let status = format!("stopping; {} requests under way", self.parts.under_way());
        self.notifier.stopping(&status, delay + drain_timeout + CLOSE_MAX);
        let mut drain = if stop == Stop::Now { Duration::ZERO } else { drain_timeout };
        if stop == Stop::Drain && !delay.is_zero() {
            // Load balancers look, and send their clients elsewhere.
            let delayed = signals.drain(|| false, delay).await;
            if let Drained::Told(_) = delayed {
                drain = Duration::ZERO;
            }
        }
        self.close();
        self.running.close_idle().await;
        tracing::info!(
            under_way = self.parts.under_way(),
            drain_ms = u64::try_from(drain.as_millis()).unwrap_or(u64::MAX),
            "stopping"
        );
        if signals.drain(self.is_last(), drain).await != Drained::All {
            self.end_what_is_left(signals).await;
        }
    }

    /// Whether nothing is under way here, nor in the process that this one took over from, where a service manager stops both: it takes
    /// the end of its main process for that of the service, and tells who is left once more to stop, which would hurry it.
    fn is_last(&self) -> impl Fn() -> bool {
        let has_drained = self.parts.has_drained();
        let before = self.before.as_ref().filter(|_| Notifier::is_managed());
        move || has_drained() && before.is_none_or(Channel::is_gone)
    }

    /// Drains behind a process that serves already. Connections that are kept are served, each for one more request, until their time is
    /// over: who sends one just now finds an answer and not a closed door.
    ///
    /// An error when that process ends and leaves nobody: this one has no listeners any more, and its own end must look like the
    /// failure that it is to whoever would start the service anew.
    async fn hand_over(
        &mut self,
        successor: Successor,
        told: Option<Stop>,
        signals: &mut Signals,
    ) -> Result<(), ServeError> {
        let drain_timeout = self.parts.stopping.begin();
        self.readiness.set(false);
        self.close();
        self.closing.send_replace(true);
        self.tell_before(Word::Passed);
        let channel = Arc::clone(&successor.channel);
        let lost = lost(successor, self.books);
        tokio::pin!(lost);
        let server = &self.config.server;
        let (connections, clock) = (self.parts.connections.clone(), self.parts.clock.clone());
        let kept_until = clock.now() + server.keepalive_timeout;
        let has_drained = self.parts.has_drained();
        let has_ended = move || has_drained() && (connections.open() == 0 || clock.now() >= kept_until);
        let (mut drained, mut ended) = tokio::select! {
            biased;
            stop = std::future::ready(told), if told.is_some() => (stop.map_or(Drained::All, Drained::Told), Ok(())),
            drained = signals.drain(has_ended, server.max_stream_time) => (drained, Ok(())),
            error = &mut lost => (Drained::Told(Stop::Drain), Err(error)),
        };
        if ended.is_ok() && drained == Drained::Told(Stop::Drain) {
            // The service stops: it has so long for what is under way as it would have without the upgrade. Or the new process has failed,
            // and the service manager saw it first.
            (drained, ended) = tokio::select! {
                biased;
                drained = signals.drain(self.is_last(), drain_timeout) => (drained, Ok(())),
                error = &mut lost => (drained, Err(error)),
            };
        }
        if let Err(error) = &ended {
            tracing::error!(%error, "this one ends, too, so that the service is started anew");
            self.notifier.take_back("the process that took over has ended");
            self.tell_before(Word::Lost);
            drained = signals.drain(self.parts.has_drained(), drain_timeout.min(LOST_DRAIN_MAX)).await;
        }
        if drained != Drained::All {
            self.end_what_is_left(signals).await;
        }
        // Who waits for its end does so no more.
        channel.close();
        ended
    }

    /// Tells the process that this one took over from, if there is one. It may be gone, which comes to the same.
    fn tell_before(&self, word: Word) {
        if let Some(before) = &self.before {
            let _ = before.say(word);
        }
    }

    fn close(&mut self) {
        self.running.close();
        // Another process may have them, too; here they are listened on no more.
        self.sockets = Arc::default();
    }

    async fn end_what_is_left(&self, signals: &mut Signals) {
        self.parts.curfew.call();
        if signals.drain(self.parts.has_drained(), CURFEW_MAX).await != Drained::All {
            let under_way = self.parts.under_way();
            tracing::warn!(under_way, "requests are dropped; each is billed what has passed");
        }
    }
}

impl Parts {
    pub(super) fn under_way(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    fn has_drained(&self) -> impl Fn() -> bool + use<> {
        let in_flight = Arc::clone(&self.in_flight);
        move || in_flight.load(Ordering::Acquire) == 0
    }
}

fn listeners_ended() -> ServeError {
    ServeError::System(std::io::Error::other("the listeners ended by themselves"))
}

/// The new process may serve all the same: it had been told to go.
async fn called_off(attempt: &mut Attempt) -> Result<Successor, String> {
    attempt.call_off();
    attempt.outcome().await
}

/// Ends when the process that took over has, and left nobody in its place, and was not told to stop.
async fn lost(successor: Successor, books: &Runtime) -> ServeError {
    let is_in_order =
        books.spawn_blocking(move || successor.channel.is_left_in_order()).await.unwrap_or(true);
    tracing::info!(is_in_order, "the process that took over has ended");
    if is_in_order {
        std::future::pending::<()>().await;
    }
    ServeError::System(std::io::Error::other("the process that took over has ended"))
}

/// What a stop may take beyond the wait for requests: for those that are ended, and for the books.
const CLOSE_MAX: Duration = Duration::from_secs(30);
/// How long requests under way may go on while nobody accepts new ones: until this process ends, none is started anew.
const LOST_DRAIN_MAX: Duration = Duration::from_secs(2);
