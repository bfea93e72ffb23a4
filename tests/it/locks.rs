//! The warm path asks no database: traffic goes on while another process holds the one write lock that SQLite has.

use crate::support::gateway::{hello, hello_stream};
use crate::support::{Gateway, Request, Upstream, wait_for};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the lock is held.
const HELD: Duration = Duration::from_secs(10);

/// Takes the write lock in another process, and returns once it is taken.
fn hold_the_lock(gateway: &Gateway, held: Duration) -> Child {
    let program = "import sqlite3, sys, time\n\
        db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n\
        db.execute('BEGIN IMMEDIATE')\n\
        print('held', flush=True)\n\
        time.sleep(float(sys.argv[2]))\n\
        db.execute('ROLLBACK')\n";
    let mut child = Command::new("python3")
        .args(["-c", program])
        .arg(gateway.database())
        .arg(held.as_secs().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 with sqlite3 holds the lock: `make test` installs it");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "held");
    child
}

#[test]
fn warm_traffic_goes_on_while_another_process_holds_the_write_lock() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    gateway.rows_when(1);
    let mut lock = hold_the_lock(&gateway, HELD);
    let begun = Instant::now();
    let mut count = 1;
    let mut slowest = Duration::ZERO;
    let mut connection = gateway.connect();
    while begun.elapsed() < HELD - Duration::from_millis(500) {
        for body in [hello(), hello_stream()] {
            let request = Request::post("/v1/chat/completions", body.to_string()).key(&gateway.account.key);
            let asked = Instant::now();
            gateway.note(&connection.ask(&request).ok());
            slowest = slowest.max(asked.elapsed());
            count += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(lock.try_wait().unwrap().is_none(), "the lock was held all the time");
    assert!(slowest < Duration::from_millis(1000), "{slowest:?}: a request waited for the lock");
    assert!(count > 50, "{count}");
    assert!(lock.wait().unwrap().success());

    // What was owed to the books is paid once the lock is free.
    wait_for("every row", Duration::from_secs(10), || {
        (gateway.rows().len() >= count.min(1000)).then_some(())
    });
    // Told when it began and when it was over, not at each of the tries between.
    let told = |what: &str| gateway.log().matches(what).count();
    assert_eq!(told("the database did not take a batch"), 1, "{}", gateway.log());
    wait_for("the end to be told", Duration::from_secs(5), || {
        (told("the database takes batches again") == 1).then_some(())
    });
}

#[test]
fn cold_traffic_is_told_to_come_back_while_the_lock_is_held() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let mut lock = hold_the_lock(&gateway, HELD);
    let begun = Instant::now();
    let reply = gateway.hello();
    // A grant needs a write; that the database is slow is not the customer's lack of credit.
    reply.refused(503, "no_capacity");
    assert!(reply.header("retry-after").is_some(), "{:?}", reply.head);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    assert!(lock.wait().unwrap().success());
    wait_for("the account to be served", Duration::from_secs(5), || {
        Some(gateway.hello()).filter(|reply| reply.status == 200)
    });
}

#[test]
fn an_idempotency_key_that_could_not_be_freed_while_the_lock_was_held_is_free_soon_after() {
    let (good, silent) = (Upstream::start(), Upstream::start());
    let gateway = Gateway::builder()
        .provider("good", &good)
        .provider_of_url("silent", &format!("https://{}/v1", silent.address()), "connect_timeout_ms = 1500")
        .model("tiny", &[("good", 1)])
        .model("rich", &[("silent", 1)])
        .start();
    gateway.hello().ok();
    let request = |model: &str| {
        let mut body = hello();
        body["model"] = model.into();
        Request::post("/v1/chat/completions", body.to_string())
            .key(&gateway.account.key)
            .header("Idempotency-Key", "k")
    };
    let mut first = gateway.connect();
    first.send(&request("rich").to_bytes(gateway.address())).unwrap();
    wait_for("an attempt, with the key taken", Duration::from_secs(5), || {
        (silent.connections() == 1).then_some(())
    });

    let mut lock = hold_the_lock(&gateway, Duration::from_secs(4));
    // Nothing was sent, so that no row of the request frees the key: that is for a write of its own.
    assert!(first.reply().unwrap().status >= 500);
    assert!(lock.try_wait().unwrap().is_none(), "the lock was still held");
    assert!(lock.wait().unwrap().success());
    wait_for("the key to be free", Duration::from_secs(10), || {
        Some(gateway.ask(&request("tiny"))).filter(|reply| reply.status == 200)
    });
}
