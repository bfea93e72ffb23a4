//! Upgrades under load: requests on fresh and on kept connections, and streams all along.

use super::{asking, gateway, said, words};
use crate::support::{Connection, Gateway, Reply, Request, Upstream, ms, number};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Words of a stream, one each 100 ms.
const WORDS: u64 = 30;

/// What clients got: whole answers, and what went wrong.
#[derive(Debug, Default)]
struct Seen {
    replies: Vec<Reply>,
    failed: Vec<String>,
}

impl Seen {
    fn note(&mut self, reply: io::Result<Reply>) {
        match reply {
            Ok(reply) if reply.whole && reply.status == 200 => self.replies.push(reply),
            other => self.failed.push(format!("{other:?}")),
        }
    }
}

/// Asks once, on this connection.
fn once(connection: &mut Connection, address: SocketAddr, request: &Request) -> io::Result<Reply> {
    connection.send(&request.to_bytes(address))?;
    connection.reply()
}

/// Asks so often until it is told to stop. A connection that is kept is used until its server asks to come anew.
fn ask_on(
    address: SocketAddr,
    request: &Request,
    every: Duration,
    keeps: bool,
    is_over: &AtomicBool,
) -> Seen {
    let mut seen = Seen::default();
    let mut kept: Option<Connection> = None;
    while !is_over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut connection = kept.take().unwrap_or_else(|| Connection::open(address));
        let reply = once(&mut connection, address, request);
        let stays = keeps && reply.as_ref().is_ok_and(|reply| reply.header("connection") != Some("close"));
        kept = stays.then_some(connection);
        seen.note(reply);
        thread::sleep(every.saturating_sub(begun.elapsed()));
    }
    seen
}

fn body(stream: bool) -> Value {
    let text = if stream { "the long one" } else { "the short one" };
    json!({"model": "tiny", "max_tokens": 200, "stream": stream, "messages": [{"role": "user", "content": text}]})
}

#[test]
fn an_upgrade_under_load_fails_no_request_and_bills_each_once() {
    let (per_second, streams) = (number("WEIR_UPGRADE_REQUESTS", 40), number("WEIR_UPGRADE_STREAMS", 30));
    let upgrades = number("WEIR_UPGRADES", 2);
    let upstream = Upstream::start();
    upstream.when("the long one", words(WORDS, ms(100)));
    let mut gateway = gateway(&upstream, "");
    gateway.add_credit(&gateway.account.id, "1000");
    let (short, long) = (asking(&gateway, &body(false)), asking(&gateway, &body(true)));
    let (address, is_over) = (gateway.address(), AtomicBool::new(false));
    const CLIENTS: u64 = 4;
    let every = Duration::from_secs(CLIENTS) / u32::try_from(per_second).unwrap();
    let mut waits = Vec::new();
    let (shorts, longs) = thread::scope(|scope| {
        let (is_over, short, long) = (&is_over, &short, &long);
        let asking: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || ask_on(address, short, every, client % 2 == 0, is_over)))
            .collect();
        let streaming: Vec<_> = (0..streams)
            .map(|stream| {
                // They begin one after the other, all along.
                thread::sleep(Duration::from_secs(1) / u32::try_from(streams).unwrap());
                scope.spawn(move || ask_on(address, long, Duration::ZERO, stream % 2 == 0, is_over))
            })
            .collect();
        // Also when an upgrade fails, and with it the test.
        let _end = End(is_over);
        for _ in 0..upgrades {
            let begun = Instant::now();
            gateway.upgrade();
            waits.push(begun.elapsed());
            thread::sleep(ms(1_000));
        }
        is_over.store(true, Ordering::Relaxed);
        let all = |threads: Vec<thread::ScopedJoinHandle<'_, Seen>>| {
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        };
        (all(asking), all(streaming))
    });
    let failed: Vec<_> = shorts.iter().chain(&longs).flat_map(|seen| &seen.failed).collect();
    let (asked, streamed) = (count(&shorts), count(&longs));
    assert_eq!(failed, Vec::<&String>::new(), "of {asked} and {streamed}");
    for reply in longs.iter().flat_map(|seen| &seen.replies) {
        assert!(reply.done() && reply.said() == said(WORDS), "{}", reply.text());
    }
    for reply in shorts.iter().chain(&longs).flat_map(|seen| &seen.replies) {
        gateway.note(reply);
    }
    let billed = billed_once(&gateway, asked + streamed);
    eprintln!(
        "{upgrades} upgrades, each within {waits:?}, under {per_second} requests/s and {streams} streams at a time: \
         {asked} requests and {streamed} streams, 0 failed, {billed} billed, 0 twice"
    );
}

/// Ends the clients.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn count(all: &[Seen]) -> usize {
    all.iter().map(|seen| seen.replies.len()).sum()
}

/// The rows of the account, which must be as many as the answers, and all of them different.
fn billed_once(gateway: &Gateway, answers: usize) -> usize {
    let rows = gateway.rows_when(answers);
    let ids: HashSet<_> = rows.iter().map(|row| row["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), answers);
    assert!(rows.iter().all(|row| row["outcome"] == "completed"));
    ids.len()
}
