use super::*;
use crate::clock::Clock;
use crate::feed::{self, Feed};
use crate::ledger::{Ledger, Settings, Shortage};
use crate::money::{Micros, PricePicos};
use crate::price::Book;
use crate::spend::SpendWindow;
use crate::store::{LotKind, NewCredit, Opened, PriceRow, Store};
use crate::usage::Class;
use tempfile::TempDir;

/// Books with one account, at a price of a micro-dollar an output token and nothing for the input.
struct Books {
    _directory: TempDir,
    store: Store,
    ledger: Ledger,
    account: AccountId,
    price: Arc<ModelPrice>,
}

impl Books {
    async fn with(credit: Micros) -> Books {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", directory.path().join("weir.db").display());
        let (store, clock) = (Store::open(&url, Opened::ByCommand).await.unwrap(), Clock::system());
        let account = store.create_account("a@example.com", None, clock.wall()).await.unwrap();
        let credit = NewCredit {
            account_id: account,
            amount: credit,
            kind: LotKind::Paid,
            reason: "test".into(),
            idempotency_key: None,
        };
        store.add_credit(&credit, clock.wall()).await.unwrap();
        let feed = Feed::new(store.clone(), clock.clone(), feed::Settings::default());
        feed.start().await.unwrap();
        let settings = Settings::new(directory.path().join("journal"), Durability::Os);
        let books = tokio::runtime::Handle::current();
        let ledger = Ledger::open(settings, store.clone(), feed, clock.clone(), books).await.unwrap();
        let row = |class, price| PriceRow {
            version: 1,
            effective_at: UnixMicros(0),
            model: "m".into(),
            service_tier: None,
            above_input_tokens: 0,
            class,
            price: PricePicos(price),
        };
        let book = Book::build(vec![row(Class::Input, 0), row(Class::Output, 1_000_000)]);
        let price = book.model("m", clock.wall()).unwrap();
        Books { _directory: directory, store, ledger, account, price }
    }

    async fn hold(
        &self,
        output: u64,
        is_stream: bool,
        limit: Option<(KeyId, i64)>,
    ) -> Result<Hold, Shortage> {
        let spend_limit =
            limit.map(|(_, amount)| SpendLimit { amount: Micros(amount), window: SpendWindow::Total });
        let need = Need {
            input_usual: 10,
            input_bound: 40,
            output,
            output_least: output.min(64),
            choices: 1,
            is_extendable: is_stream,
        };
        let request = HoldRequest {
            request_id: RequestId::new(),
            account: self.account,
            key: limit.map_or_else(KeyId::new, |(key, _)| key),
            model: ModelName::from("m"),
            need,
            spend_limit,
            price: Arc::clone(&self.price),
            stand_ins: Vec::new(),
            service_tier: None,
            stream: is_stream,
            created_at: Clock::system().wall(),
            client_request_id: None,
        };
        self.ledger.hold(request, None).await
    }

    /// Ends the books, and tells what is left of the credit.
    async fn end(self) -> Micros {
        self.ledger.close().await.unwrap();
        self.store.account(self.account).await.unwrap().balance
    }
}

fn settle(mut hold: Hold, output: u64) -> Settled {
    hold.sent(&ProviderName::from("p"), "m");
    let end = End {
        usage: Usage { output, ..Usage::default() },
        source: UsageSource::Reported,
        outcome: Outcome::Completed,
        status: 200,
        latency_ms: 1,
        ttft_ms: None,
        service_tier: None,
    };
    hold.settle(&end).0
}

/// Lets output pass as long as it is covered, and tells how much that was.
async fn pass(hold: &mut Hold, most: u64, step: u64) -> u64 {
    let mut passed = 0;
    while passed < most {
        let next = passed + step;
        if !hold.extend(next) && !hold.extending(next).await {
            break;
        }
        passed = next;
    }
    passed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_extended_to_the_last_of_the_credit_and_not_beyond() {
    let books = Books::with(Micros(10_000)).await;
    let mut hold = books.hold(100_000, true, None).await.unwrap();
    assert_eq!(hold.output_limit(), Some(10_000), "all credit there is");
    assert_eq!(hold.held.amount(), Picos(1_024_000_000), "a slice at first");
    let passed = pass(&mut hold, 100_000, 7).await;
    assert!((9_980..=10_000).contains(&passed), "{passed}");
    let settled = settle(hold, passed);
    assert_eq!(settled.over, Picos(0));
    let stats = books.ledger.stats();
    assert_eq!((stats.held, stats.open_holds), (Picos(0), 0));
    assert_eq!(books.end().await, Micros(10_000 - i64::try_from(passed).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_waits_for_what_another_request_holds() {
    let books = Books::with(Micros(3_000)).await;
    let mut stream = books.hold(100_000, true, None).await.unwrap();
    let other = books.hold(1_976, false, None).await.unwrap();
    assert_eq!(other.output_limit(), None);
    assert!(stream.extend(1_024));
    assert!(!stream.extend(1_025));
    let waiting = stream.extending(1_025);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    drop(other);
    assert!(waiting.await);
    assert!(stream.extend(1_025));
    drop(stream);
    assert_eq!(books.end().await, Micros(3_000), "what was never sent costs nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_comes_after_the_end_of_its_hold_is_given_back() {
    let books = Books::with(Micros(50_000)).await;
    let hold = books.hold(100_000, true, None).await.unwrap();
    let waiting = hold.extending(5_000);
    drop(hold);
    assert!(!waiting.await);
    assert_eq!(books.ledger.stats().held, Picos(0));
    assert_eq!(books.end().await, Micros(50_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_kinds_of_shortage_are_told_apart_for_accounts_and_for_keys() {
    let books = Books::with(Micros(1_000)).await;
    let key = Some((KeyId::new(), 500));
    let of_key = books.hold(450, false, key).await.unwrap();
    assert_eq!(books.hold(100, false, key).await.err(), Some(Shortage::InFlight));
    settle(of_key, 450);
    assert_eq!(books.hold(100, false, key).await.err(), Some(Shortage::KeyLimit));
    // Fifty tokens are asked for and left.
    settle(books.hold(50, false, key).await.unwrap(), 50);
    assert_eq!(books.hold(1, false, key).await.err(), Some(Shortage::KeyLimit));

    let rest = books.hold(500, false, None).await.unwrap();
    assert_eq!(books.hold(100, false, None).await.err(), Some(Shortage::InFlight));
    settle(rest, 480);
    assert_eq!(books.hold(100, false, None).await.err(), Some(Shortage::Exhausted));
    assert_eq!(books.end().await, Micros(20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_refuses_no_request_by_a_key_that_is_known() {
    let books = Books::with(Micros(50_000)).await;
    let key = Some((KeyId::new(), 500));
    settle(books.hold(50, false, key).await.unwrap(), 50);
    // Idle for so long that what others spent is to be read again.
    tokio::time::sleep(std::time::Duration::from_millis(2_200)).await;
    books.store.close().await;
    for _ in 0..3 {
        let begun = Clock::system().now();
        drop(books.hold(50, false, key).await.unwrap());
        let took = Clock::system().now().saturating_duration_since(begun);
        assert!(took < std::time::Duration::from_millis(500), "{took:?}");
    }
    let rest = books.hold(451, false, key).await.unwrap();
    assert_eq!(rest.output_limit(), Some(450), "what was spent is known");
}
