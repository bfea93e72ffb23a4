//! What the books cost: the batched writer, the journal under a request, many accounts, and a recovery. `make bench`, or
//! `make bench QUICK=1` for a rough look.
//!
//! Everything is the product's own code on real files, in cargo's target directory: put that on the disk that is to be measured. What
//! waits for the disk is told by wall time, beside a bare insert of the same rows in turn; what does not, by the CPU time of the process.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a bench that cannot measure stops")]
#![expect(clippy::print_stdout, reason = "the report")]
#![expect(clippy::disallowed_methods, reason = "what is measured is real time")]

#[path = "books/made.rs"]
mod made;

use made::*;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle, Runtime};
use weir::clock::{Clock, UnixMicros};
use weir::feed::{self, Feed};
use weir::ids::{AccountId, KeyId, ModelName, ProviderName, RequestId, SessionId};
use weir::ledger::journal::{self, Directory, Disk, Journal, Reservation, Segment, Sent, Settle};
use weir::ledger::{Durability, End, HoldRequest, Ledger, Need, Settings, replay, write};
use weir::money::{Picos, PricePicos};
use weir::price::{Book, ModelPrice};
use weir::store::{Grant, NewSession, Opened, PriceRow, RequestRow, Store};
use weir::usage::{Class, Outcome, Usage, UsageSource};

const MIB: u64 = 1 << 20;
const SEGMENT_BYTES: u64 = 8 * MIB;
const MANY_ACCOUNTS: usize = 10_000;

fn main() {
    // `cargo bench` adds `--bench`.
    let is_quick = std::env::args().any(|argument| argument == "--quick");
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("Medians, and the lowest and highest of the rounds in parentheses.\n");
    writer(&runtime, is_quick);
    hot_path(is_quick);
    stalled_disk();
    accounts(&runtime, is_quick);
    recovery(&runtime, is_quick);
}

/// The writer beside a bare insert.
fn writer(runtime: &Runtime, is_quick: bool) {
    let (rounds, batches) = if is_quick { (9, 20) } else { (21, 50) };
    println!("Writer, synchronous=FULL, {rounds} rounds of {batches} batches of {BATCH_ROWS} rows, in turn.");
    for accounts in [1, MANY_ACCOUNTS] {
        let directory = directory();
        let measured = runtime.block_on(Box::pin(async {
            let (store, session) = fresh(&directory.path().join("weir.db")).await;
            let path = directory.path().join("bare.db");
            fresh(&path).await.0.close().await;
            let mut bare = connect(&path, SqliteSynchronous::Full).await;
            let payers: Vec<(AccountId, KeyId)> =
                (0..accounts).map(|_| (AccountId::new(), KeyId::new())).collect();
            let mut seq = 0;
            let mut measured = Vec::new();
            for round in 0..=rounds {
                let rows: Vec<RequestRow> = (0..batches * BATCH_ROWS)
                    .map(|_| {
                        seq += 1;
                        row(seq, payers[usize::try_from(seq * 7_919).unwrap() % accounts])
                    })
                    .collect();
                let pair = if round % 2 == 0 {
                    let ours = by_writer(&store, session, &rows).await;
                    (ours, by_insert(&mut bare, session, &rows).await)
                } else {
                    let bare = by_insert(&mut bare, session, &rows).await;
                    (by_writer(&store, session, &rows).await, bare)
                };
                // The first round makes the files.
                if round > 0 {
                    measured.push(pair);
                }
            }
            bare.close().await.unwrap();
            store.close().await;
            measured
        }));
        let writer = Spread::of(measured.iter().map(|(ours, _)| *ours));
        let bare = Spread::of(measured.iter().map(|(_, bare)| *bare));
        let ratio = Spread::of(measured.iter().map(|(ours, bare)| ours / bare));
        println!("  {accounts:>6} accounts: writer {} rows/s", writer.show(0));
        println!("                   bare   {} rows/s", bare.show(0));
        println!("                   ratio  {}, to be at least 0.8", ratio.show(2));
    }
}

/// Rows in a transaction.
const BATCH_ROWS: usize = 1_000;
/// Rows in a bare statement.
const BARE_ROWS: usize = 200;

/// Rows a second of the writer.
async fn by_writer(store: &Store, session: SessionId, rows: &[RequestRow]) -> f64 {
    let begun = Instant::now();
    let mut applied_seq = rows[0].seq - 1;
    for batch in rows.chunks(BATCH_ROWS) {
        let written = write(store, session, applied_seq, batch, Clock::system().wall()).await.unwrap();
        assert_eq!((written.rows, written.quarantined), (batch.len(), 0));
        applied_seq = written.applied_seq;
    }
    per_second(rows.len(), begun)
}

static BARE_INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = "id, account_id, key_id, session_id, seq, created_at, client_request_id, model, provider, upstream_model, \
                   service_tier, status, outcome, is_stream, usage, usage_source, price_version, cost_pico, over_pico, latency_ms, \
                   ttft_ms";
    let row = format!("({})", vec!["?"; columns.split(',').count()].join(", "));
    format!("INSERT INTO request ({columns}) VALUES {}", vec![row; BARE_ROWS].join(", "))
});

/// Rows a second of nothing but inserts. The text of the usage is ready: it is not the database's work.
async fn by_insert(connection: &mut SqliteConnection, session: SessionId, rows: &[RequestRow]) -> f64 {
    let usages: Vec<String> = rows.iter().map(|row| serde_json::to_string(&row.usage).unwrap()).collect();
    let ready: Vec<(&RequestRow, &String)> = rows.iter().zip(&usages).collect();
    let begun = Instant::now();
    for batch in ready.chunks(BATCH_ROWS) {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
        for rows in batch.chunks_exact(BARE_ROWS) {
            let mut query = sqlx::query(AssertSqlSafe(BARE_INSERT.as_str()));
            for (row, usage) in rows {
                query = query
                    .bind(row.request_id.as_bytes())
                    .bind(row.account.as_bytes())
                    .bind(row.key.as_bytes())
                    .bind(session.as_bytes())
                    .bind(signed(row.seq))
                    .bind(row.created_at.0)
                    .bind(row.client_request_id.as_deref())
                    .bind(row.model.as_str())
                    .bind(row.provider.as_str())
                    .bind(row.upstream_model.as_str())
                    .bind(row.service_tier.as_deref())
                    .bind(i64::from(row.status))
                    .bind(row.outcome.as_str())
                    .bind(row.stream)
                    .bind(usage.as_str())
                    .bind(row.source.as_str())
                    .bind(signed(row.price_version))
                    .bind(row.cost.0)
                    .bind(row.over.0)
                    .bind(signed(row.latency_ms))
                    .bind(row.ttft_ms.map(signed));
            }
            query.execute(&mut *transaction).await.unwrap();
        }
        transaction.commit().await.unwrap();
    }
    per_second(rows.len(), begun)
}

/// What the journal adds to a request.
fn hot_path(is_quick: bool) {
    let rounds: u32 = if is_quick { 50 } else { 500 };
    let pairs: u32 = 2_000;
    let directory = directory();
    let journal =
        Journal::start(Directory::new(directory.path()), sizes(Durability::Group, 1 << 30)).unwrap();
    let mut refused = 0_u64;
    let nanoseconds = Spread::of((0..rounds).map(|_| {
        let requests: Vec<(Sent, Settle)> = (0..pairs).map(|_| records()).collect();
        let mut last_seq = 0;
        let begun = Instant::now();
        for (sent, settle) in &requests {
            let room = room(&journal, &mut refused);
            journal.sent(&room, sent);
            last_seq = journal.settle(&room, settle, |_| {});
        }
        let took = begun.elapsed();
        journal.applied(last_seq);
        took.as_secs_f64() * 1e9 / f64::from(pairs)
    }));
    journal.stop();
    println!("\nJournal, durability group, one thread, {rounds} rounds of {pairs} requests.");
    println!("  room, sent and settled: {} ns a request", nanoseconds.show(0));
    println!("  times without room at once: {refused}");
}

/// A directory whose waits take a second more.
struct Slow(Directory, Arc<Waits>);

struct SlowSegment(Arc<dyn Segment>, Arc<Waits>);

#[derive(Default)]
struct Waits {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Disk for Slow {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        Ok(Arc::new(SlowSegment(self.0.create(name, size_bytes, head)?, Arc::clone(&self.1))))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
}

impl Segment for SlowSegment {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.1.begun.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(1));
        let synced = self.0.sync();
        self.1.ended.fetch_add(1, Ordering::SeqCst);
        synced
    }
}

/// Whether an append waits while the disk does not answer.
fn stalled_disk() {
    const REQUESTS: u32 = 10_000;
    let directory = directory();
    let waits = Arc::new(Waits::default());
    let disk = Slow(Directory::new(directory.path()), Arc::clone(&waits));
    let journal = Journal::start(disk, sizes(Durability::Group, 1 << 30)).unwrap();
    let requests: Vec<(Sent, Settle)> = (0..REQUESTS).map(|_| records()).collect();
    let mut refused = 0;
    let first = records();
    journal.sent(&room(&journal, &mut refused), &first.0);
    while waits.begun.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut appends = Vec::new();
    let (mut during, begun) = (0_u32, Instant::now());
    for (sent, settle) in &requests {
        let room = room(&journal, &mut refused);
        let before = Instant::now();
        journal.sent(&room, sent);
        let between = Instant::now();
        journal.settle(&room, settle, |_| {});
        appends.extend([between - before, between.elapsed()]);
        during += if waits.ended.load(Ordering::SeqCst) == 0 { 2 } else { 0 };
    }
    let took = begun.elapsed();
    appends.sort();
    let slowest = appends[appends.len() - 1];
    println!("\nJournal, durability group, while a wait for the disk takes a second.");
    println!(
        "  appends: {}, {during} of them during the first wait, in {} ms",
        appends.len(),
        took.as_millis()
    );
    println!(
        "  slowest append {:.3} ms, one in a thousand above {:.3} ms; times without room at once: {refused}",
        slowest.as_secs_f64() * 1e3,
        appends[appends.len() - appends.len() / 1_000].as_secs_f64() * 1e3,
    );
    assert!(during > 0, "no append fell into the wait");
    assert!(slowest < Duration::from_millis(500), "an append waited for the disk");
    journal.stop();
}

/// One account beside many.
fn accounts(runtime: &Runtime, is_quick: bool) {
    let (rounds, requests) = if is_quick { (5, 20_000) } else { (9, 50_000) };
    println!("\nHold, sent, settled and in the database, {rounds} rounds of {requests} requests, CPU.");
    let [one, many] = [1, MANY_ACCOUNTS].map(|accounts| {
        let used = runtime.block_on(Box::pin(requests_of(accounts, rounds, requests, runtime.handle())));
        let of_request = Spread::of(used.iter().map(|(of_request, _)| *of_request));
        let of_all = Spread::of(used.iter().map(|(_, of_all)| *of_all));
        println!(
            "  {accounts:>6} accounts: {} us a request in its own thread, {} with writer and database",
            of_request.show(2),
            of_all.show(1)
        );
        (of_request, of_all)
    });
    println!("  many to one: {} in its own thread, {} in all", many.0.to(&one.0), many.1.to(&one.1));
}

/// CPU microseconds a request, round by round: of the thread that makes the requests, and of the process.
async fn requests_of(accounts: usize, rounds: u32, requests: u32, handle: &Handle) -> Vec<(f64, f64)> {
    let directory = directory();
    let path = directory.path().join("weir.db");
    let (store, _) = fresh(&path).await;
    let payers = funded(&path, accounts).await;
    let ledger = open(&store, &directory.path().join("journal"), handle).await;
    let price = price();
    // Every account has its lease before the clock runs, and has had one more look at its size.
    for turn in 0..2 * accounts.max(100) {
        request(&ledger, &price, payers[turn % accounts]).await;
    }
    let mut used = Vec::new();
    let mut turns = payers.iter().cycle();
    for _ in 0..rounds {
        written(&ledger).await;
        let (all_before, own_before) = (cpu_us(), thread_cpu_ns());
        for turn in 1..=requests {
            request(&ledger, &price, *turns.next().unwrap()).await;
            // The clients of a real process leave the books some time.
            if turn % 500 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let own = thread_cpu_ns() - own_before;
        written(&ledger).await;
        let each = |us: u64| f64::from(u32::try_from(us).unwrap()) / f64::from(requests);
        used.push((each(own / 1_000), each(cpu_us() - all_before)));
    }
    ledger.close().await.unwrap();
    used
}

async fn request(ledger: &Ledger, price: &Arc<ModelPrice>, account: AccountId) {
    let mut hold = ledger.hold(hold_request(account, price), None).await.expect("the account has credit");
    hold.sent(&ProviderName::from("up"), "upstream-model");
    let end = End {
        usage: Usage { input: 40, output: 20, ..Usage::default() },
        source: UsageSource::Reported,
        outcome: Outcome::Completed,
        status: 200,
        latency_ms: 1,
        ttft_ms: None,
        service_tier: None,
    };
    let (settled, _) = hold.settle(&end);
    assert_eq!(settled.over, Picos(0));
}

/// Waits until all that is settled is in the database.
async fn written(ledger: &Ledger) {
    while ledger.stats().backlog > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A dead session's journal, of which nothing is in the database.
fn recovery(runtime: &Runtime, is_quick: bool) {
    let bytes = if is_quick { 64 * MIB } else { 1 << 30 };
    let directory = directory();
    let home = directory.path().join("journal");
    let session = SessionId::new();
    let path = home.join(session.to_string());
    DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
    let payer = AccountId::new();
    let requests = fill(&path, payer, bytes);

    let begun = Instant::now();
    let scanned = journal::scan(&Directory::new(&path)).unwrap();
    let (took, bytes, records) = (begun.elapsed(), scanned.bytes, scanned.records().count());
    let mib = bytes / MIB;
    println!(
        "\nRecovery of a journal of {mib} MiB, {requests} requests, {records} records, none in the database."
    );
    let rate = |took: Duration| f64::from(u32::try_from(bytes >> 10).unwrap()) / 1024.0 / took.as_secs_f64();
    println!("  read: {:.2} s, {:.0} MiB/s", took.as_secs_f64(), rate(took));
    let replayed = runtime.block_on(Box::pin(async {
        let store = leased(&directory.path().join("first.db"), session, payer).await;
        let begun = Instant::now();
        let recovered = replay(session, scanned, &store, &Clock::system()).await.unwrap();
        assert_eq!((recovered.settled, recovered.died), (requests, 0));
        store.close().await;
        begun.elapsed()
    }));
    println!(
        "  read and replayed: {:.2} s, {:.1} MiB/s",
        (took + replayed).as_secs_f64(),
        rate(took + replayed)
    );
    runtime.block_on(Box::pin(async {
        let store = leased(&directory.path().join("second.db"), session, payer).await;
        let begun = Instant::now();
        let ledger = open(&store, &home, runtime.handle()).await;
        let opened = begun.elapsed();
        request(&ledger, &price(), payer).await;
        let admitted = begun.elapsed();
        assert_eq!(ledger.stats().sessions_recovered, 1);
        ledger.close().await.unwrap();
        println!("  books open: {:.2} s, {:.1} MiB/s", opened.as_secs_f64(), rate(opened));
        println!("  first request admitted and settled: {:.2} s", admitted.as_secs_f64());
    }));
    println!("  most memory of this process: {} MiB", peak_kib() / 1024);
}

/// Fills a session's directory with so many bytes of segments; tells the number of requests in them.
fn fill(path: &Path, payer: AccountId, bytes: u64) -> u64 {
    let journal = Journal::start(Directory::new(path), sizes(Durability::Os, 2 * bytes)).unwrap();
    let (mut requests, mut refused) = (0, 0);
    while journal.stats().bytes < bytes {
        for _ in 0..1_000 {
            let (mut sent, mut settle) = records();
            (sent.account, settle.account) = (payer.0.into_bytes(), payer.0.into_bytes());
            let room = room(&journal, &mut refused);
            journal.sent(&room, &sent);
            journal.settle(&room, &settle, |_| {});
            requests += 1;
        }
    }
    journal.stop();
    requests
}

/// A database with one funded account, of which a session has a lease.
async fn leased(path: &Path, session: SessionId, payer: AccountId) -> Store {
    let store = fresh(path).await.0;
    fund(path, &[payer]).await;
    open_session(&store, session).await;
    let some = weir::money::Micros(CREDIT_MICRO / 4);
    let grant = Grant { session, account: payer, need: some, want: some };
    store.grant(&grant, Clock::system().wall()).await.unwrap().expect("there is credit");
    store
}
