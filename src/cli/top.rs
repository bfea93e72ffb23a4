//! `weir top`: what the running process does, while it does it.

mod draw;
mod view;

use super::failure::Failure;
use super::output::Report;
use super::ready::reachable;
use super::scrape::{Samples, scrape};
use crate::clock::Clock;
use crate::config::Config;
use crossterm::event::{Event, EventStream, KeyCode, KeyModifiers};
use futures::future;
use futures::stream::{self, StreamExt};
use ratatui::DefaultTerminal;
use ratatui::style::Stylize;
use ratatui::text::Line;
use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use view::View;

/// Watch traffic, models, routes and ledger of the running server
///
/// It asks the server's own `/metrics`, at `[admin] listen`, once a second. `q` quits. Where it is not on a terminal, and with --json, it
/// prints what happened in one second and ends.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir --config weir.toml top")]
pub(super) struct Top {}

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// The shortest time that is taken for one between two looks, in seconds.
const SECONDS_MIN: f64 = 1e-3;

/// One look.
struct Look {
    samples: Samples,
    at: Instant,
}

/// Whose looks they are.
struct Watcher {
    admin: SocketAddr,
    clock: Clock,
}

impl Top {
    pub(super) fn run(self, config: &Config, json: bool) -> Result<Report, Failure> {
        let Top {} = self;
        let watcher = Watcher { admin: reachable(config.admin.listen), clock: Clock::system() };
        if json || !io::stdout().is_terminal() {
            let view = super::block_on(watcher.one_second())??;
            return Report::new(&view, draw::page(&view));
        }
        super::block_on(watcher.live())??;
        Report::done("")
    }
}

impl Watcher {
    async fn look(&self) -> Result<Look, Failure> {
        match scrape(self.admin).await {
            Ok(samples) => Ok(Look { samples, at: self.clock.now() }),
            Err(error) => {
                let message = format!("no server tells what it does at {}: {error}", self.admin);
                Err(Failure::new("unreachable", message))
            }
        }
    }

    async fn one_second(&self) -> Result<View, Failure> {
        let before = self.look().await?;
        tokio::time::sleep(EVERY).await;
        Ok(self.look().await?.since(&before))
    }

    /// Until `q`, Ctrl-C or a signal. The terminal is as it was after that, and after a panic.
    async fn live(&self) -> Result<(), Failure> {
        // Where there is nothing to see, the terminal is left alone.
        let first = self.look().await?;
        let watched = match ratatui::try_init() {
            Ok(mut terminal) => self.watch(&mut terminal, first).await,
            Err(error) => Err(error),
        };
        watched.and(ratatui::try_restore()).map_err(|error| Failure::new("terminal", error.to_string()))
    }

    async fn watch(&self, terminal: &mut DefaultTerminal, first: Look) -> io::Result<()> {
        let (mut view, mut before, mut foot) = (first.since(&first), first, quits());
        let mut signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .map(signal)
            .into_iter()
            .collect::<io::Result<Vec<Signal>>>()?;
        let ticks = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
        // A key that is pressed while a look is under way does not undo it.
        let mut looks = pin!(stream::unfold(ticks, |mut ticks| async {
            ticks.tick().await;
            Some((self.look().await, ticks))
        }));
        let mut keys = EventStream::new();
        loop {
            terminal.draw(|frame| draw::draw(frame.buffer_mut(), &view, foot.clone()))?;
            let signalled = future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv())));
            tokio::select! {
                _ = signalled => return Ok(()),
                look = looks.next() => match look {
                    Some(Ok(now)) => {
                        view = now.since(&before);
                        (before, foot) = (now, quits());
                    }
                    Some(Err(failure)) => foot = Line::from(failure.message).red(),
                    None => return Ok(()),
                },
                event = keys.next() => match event {
                    Some(Ok(event)) if is_end(&event) => return Ok(()),
                    // Whatever it is, a new size among them: it is drawn again.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                },
            }
        }
    }
}

impl Look {
    fn since(&self, before: &Look) -> View {
        let seconds = self.at.saturating_duration_since(before.at).as_secs_f64().max(SECONDS_MIN);
        View::between(&before.samples, &self.samples, seconds)
    }
}

fn quits() -> Line<'static> {
    Line::from("q quits").dim()
}

fn is_end(event: &Event) -> bool {
    event.as_key_press_event().is_some_and(|key| {
        let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
    })
}
