//! What the measures are made of: rows, prices, accounts, databases, and how figures are shown.

use super::*;

/// Room for a request; waits for it where there is none, and counts that.
pub(super) fn room(journal: &Journal, refused: &mut u64) -> Reservation {
    loop {
        match journal.reserve() {
            Some(room) => return room,
            None => *refused += 1,
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(super) fn sizes(durability: Durability, max_bytes: u64) -> journal::Settings {
    journal::Settings { durability, segment_bytes: SEGMENT_BYTES, max_bytes }
}

/// What a request writes to the journal.
pub(super) fn records() -> (Sent, Settle) {
    let row = row(0, (AccountId::new(), KeyId::new()));
    let sent = Sent {
        request_id: row.request_id.0.into_bytes(),
        account: row.account.0.into_bytes(),
        key: row.key.0.into_bytes(),
        created_at: row.created_at.0,
        client_request_id: None,
        model: row.model.as_str().to_owned(),
        provider: row.provider.as_str().to_owned(),
        upstream_model: row.upstream_model.clone(),
        service_tier: None,
        stream: row.stream,
        price_version: row.price_version,
        input_tokens: row.usage.input,
        input_price: 150_000,
        output_price: 600_000,
    };
    let classes = (0_u8..).zip(row.usage.by_class()).filter(|(_, (_, units))| *units > 0);
    let settle = Settle {
        request_id: sent.request_id,
        account: sent.account,
        key: sent.key,
        created_at: sent.created_at,
        client_request_id: None,
        model: sent.model.clone(),
        provider: sent.provider.clone(),
        upstream_model: sent.upstream_model.clone(),
        service_tier: None,
        status: row.status,
        outcome: 0,
        stream: row.stream,
        usage: classes.map(|(at, (_, units))| (at, units)).collect(),
        is_reported: true,
        price_version: row.price_version,
        cost_pico: row.cost.0,
        over_pico: 0,
        latency_ms: row.latency_ms,
        ttft_ms: row.ttft_ms,
    };
    (sent, settle)
}

/// A settled request of this payer.
pub(super) fn row(seq: u64, (account, key): (AccountId, KeyId)) -> RequestRow {
    RequestRow {
        seq,
        request_id: RequestId::new(),
        account,
        key,
        created_at: Clock::system().wall(),
        client_request_id: None,
        model: ModelName::from("gpt-4o-mini"),
        provider: ProviderName::from("openai"),
        upstream_model: "gpt-4o-mini-2024-07-18".to_owned(),
        service_tier: None,
        status: 200,
        outcome: Outcome::Completed,
        stream: true,
        usage: Usage { input: 812, cache_read: 256, output: 164, ..Usage::default() },
        source: UsageSource::Reported,
        price_version: 3,
        cost: Picos(240_000_000),
        over: Picos(0),
        latency_ms: 1_840,
        ttft_ms: Some(312),
    }
}

pub(super) fn hold_request(account: AccountId, price: &Arc<ModelPrice>) -> HoldRequest {
    HoldRequest {
        request_id: RequestId::new(),
        account,
        key: KeyId::new(),
        model: ModelName::from("m"),
        need: Need {
            input_usual: 40,
            input_bound: 160,
            output: 256,
            output_least: 64,
            choices: 1,
            is_extendable: true,
        },
        spend_limit: None,
        price: Arc::clone(price),
        stand_ins: Vec::new(),
        service_tier: None,
        stream: true,
        created_at: Clock::system().wall(),
        client_request_id: None,
    }
}

pub(super) fn price() -> Arc<ModelPrice> {
    let row = |class, price| PriceRow {
        version: 1,
        effective_at: UnixMicros(0),
        model: "m".into(),
        service_tier: None,
        above_input_tokens: 0,
        class,
        price: PricePicos(price),
    };
    let book = Book::build(vec![row(Class::Input, 150_000), row(Class::Output, 600_000)]);
    book.model("m", Clock::system().wall()).unwrap()
}

pub(super) fn directory() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory beside what cargo builds")
}

/// A new database with a session.
pub(super) async fn fresh(path: &Path) -> (Store, SessionId) {
    let store = Store::open(&format!("sqlite:{}", path.display()), Opened::ByServer).await.unwrap();
    let session = SessionId::new();
    open_session(&store, session).await;
    (store, session)
}

pub(super) async fn open_session(store: &Store, session: SessionId) {
    let new = NewSession { session_id: session, host: "bench".into(), version: "bench".into() };
    store.open_session(&new, Clock::system().wall()).await.unwrap();
}

pub(super) async fn open(store: &Store, journal: &Path, handle: &Handle) -> Ledger {
    let feed = Feed::new(store.clone(), Clock::system(), feed::Settings::default());
    feed.start().await.unwrap();
    let settings = Settings::new(journal.to_owned(), Durability::Group);
    Ledger::open(settings, store.clone(), feed, Clock::system(), handle.clone()).await.unwrap()
}

/// A connection set as the product's are.
pub(super) async fn connect(path: &Path, synchronous: SqliteSynchronous) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    let options = options.synchronous(synchronous).pragma("journal_size_limit", "67108864");
    options.pragma("cache_size", "-1024").connect().await.unwrap()
}

/// A million dollars.
pub(super) const CREDIT_MICRO: i64 = 1_000_000_000_000;

pub(super) async fn funded(path: &Path, accounts: usize) -> Vec<AccountId> {
    let accounts: Vec<AccountId> = (0..accounts).map(|_| AccountId::new()).collect();
    fund(path, &accounts).await;
    accounts
}

/// Accounts with a lot each, in one transaction: one by one, as the product makes them, takes minutes and is not what is measured.
pub(super) async fn fund(path: &Path, accounts: &[AccountId]) {
    let mut connection = connect(path, SqliteSynchronous::Off).await;
    let mut transaction = connection.begin().await.unwrap();
    for account in accounts {
        sqlx::query("INSERT INTO account (id, email, available_micro, created_at) VALUES (?, ?, ?, 0)")
            .bind(account.as_bytes())
            .bind(account.to_string())
            .bind(CREDIT_MICRO)
            .execute(&mut *transaction)
            .await
            .unwrap();
        sqlx::query("INSERT INTO lot (id, account_id, seq, kind, amount_micro, reason, created_at) VALUES (?1, ?1, 1, 'paid', ?2, '', 0)")
            .bind(account.as_bytes())
            .bind(CREDIT_MICRO)
            .execute(&mut *transaction)
            .await
            .unwrap();
    }
    transaction.commit().await.unwrap();
    connection.close().await.unwrap();
}

pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}

pub(super) fn per_second(count: usize, begun: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap()) / begun.elapsed().as_secs_f64()
}

/// CPU microseconds of this process so far, user and system.
pub(super) fn cpu_us() -> u64 {
    // The kernel tells in ticks of a hundredth of a second, whatever its own rate (USER_HZ).
    const TICK_US: u64 = 10_000;
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<u64>().unwrap();
    (ticks(11) + ticks(12)) * TICK_US
}

/// CPU nanoseconds of this thread so far.
pub(super) fn thread_cpu_ns() -> u64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

pub(super) fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

pub(super) struct Spread {
    median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        Spread { median: values[values.len() / 2], low: values[0], high: values[values.len() - 1] }
    }

    pub(super) fn show(&self, digits: usize) -> String {
        let Spread { median, low, high } = self;
        format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
    }

    /// The ratio of these to those, which were measured at another time: of the medians, and of the furthest apart.
    pub(super) fn to(&self, other: &Spread) -> String {
        let [median, low, high] = [self.median / other.median, self.low / other.high, self.high / other.low];
        Spread { median, low, high }.show(2)
    }
}
