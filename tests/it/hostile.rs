//! Clients that mean harm, over raw sockets: each has an end, memory stays bounded, and honest requests beside them all succeed.

mod http2;
mod shapes;

use crate::support::gateway::{hello, hello_stream};
use crate::support::http::Connection;
use crate::support::upstream::{chat, usage};
use crate::support::{Answer, Gateway, Request, Upstream, ms, wait_for};
use std::fs;
use std::time::{Duration, Instant};

/// Resident memory of the gateway, in bytes.
fn resident(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.process_id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// The value of a metric without labels, or with exactly these.
fn metric(gateway: &Gateway, name: &str) -> f64 {
    let text = gateway.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

fn closed_within(connection: &mut Connection, limit: Duration) -> bool {
    connection.stream().set_read_timeout(Some(limit)).unwrap();
    let begun = Instant::now();
    connection.is_closed() && begun.elapsed() < limit
}

/// A chat request's head that promises this body.
fn head(gateway: &Gateway, framing: &str) -> Vec<u8> {
    let request = Request::post("/v1/chat/completions", "").key(&gateway.account.key);
    let text = String::from_utf8(request.to_bytes(gateway.address())).unwrap();
    text.replace("Content-Length: 0\r\n", &format!("{framing}\r\n")).into_bytes()
}

#[test]
fn five_hundred_slow_connections_leave_honest_requests_and_memory_alone() {
    let upstream = Upstream::start();
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder
        .server("head_timeout_ms = 8000\nbody_timeout_ms = 8000\nbody_min_bytes_per_s = 0\nkeepalive_timeout_ms = 8000")
        .start();
    for _ in 0..20 {
        gateway.hello().ok();
    }
    let before = resident(&gateway);
    let mut slow: Vec<Connection> = (0..500)
        .map(|number| {
            let mut connection = gateway.connect();
            let begun = match number % 4 {
                0 => Vec::new(),
                1 => b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ".to_vec(),
                2 => [head(&gateway, "Content-Length: 20000"), b"{\"model\": \"tiny\", ".to_vec()].concat(),
                _ => [head(&gateway, "Transfer-Encoding: chunked"), b"4000\r\n{".to_vec()].concat(),
            };
            connection.send(&begun).unwrap();
            connection
        })
        .collect();
    wait_for("all of them to be accepted", ms(3000), || {
        (metric(&gateway, "weir_connections") >= 500.0).then_some(())
    });
    let mut peak = before;
    let begun = Instant::now();
    let mut honest = 0;
    while begun.elapsed() < ms(3000) {
        for (_, connection) in
            slow.iter_mut().enumerate().filter(|(number, _)| number % 4 > 0).skip(honest % 7).step_by(7)
        {
            // A byte now and then would keep a deadline for each read happy.
            connection.send(b" ").unwrap();
        }
        std::thread::sleep(ms(20));
        gateway.hello().ok();
        gateway.hello_stream().ok();
        honest += 2;
        peak = peak.max(resident(&gateway));
    }
    assert!(honest >= 20, "{honest} honest requests in three seconds");
    let each = (peak - before) / 500;
    assert!(each < 48 << 10, "{each} bytes for each slow connection");
    let last = begun + Duration::from_secs(20);
    for (number, connection) in slow.iter_mut().enumerate() {
        if number % 4 >= 2 {
            connection.reply().expect("an answer").refused(408, "request_timeout");
        } else {
            assert!(closed_within(connection, last.saturating_duration_since(Instant::now())), "{number}");
        }
    }
    gateway.hello().ok();
    gateway.rows_when(20 + honest + 1);
}

#[test]
fn a_slow_head_is_closed_in_time_on_a_new_and_on_a_used_connection() {
    let upstream = Upstream::start();
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("head_timeout_ms = 700").start();
    for used in [false, true] {
        let mut connection = gateway.connect();
        if used {
            gateway.note(
                &connection
                    .ask(
                        &Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key),
                    )
                    .ok(),
            );
        }
        let begun = Instant::now();
        connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
        while connection.send(b"a").is_ok() && begun.elapsed() < ms(5000) {
            std::thread::sleep(ms(50));
        }
        let took = begun.elapsed();
        assert!(took >= ms(600) && took < ms(4000), "used before: {used}: {took:?}");
        gateway.hello().ok();
    }
    gateway.rows_when(3);
}

#[test]
fn an_idle_connection_is_closed_when_its_time_is_over() {
    let upstream = Upstream::start();
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("keepalive_timeout_ms = 1000").start();
    let mut connection = gateway.connect();
    let request = Request::post("/v1/chat/completions", hello().to_string()).key(&gateway.account.key);
    gateway.note(&connection.ask(&request).ok());
    assert!(closed_within(&mut connection, ms(6000)));
    gateway.row();
}

#[test]
fn more_connections_than_the_process_takes_are_closed_at_once_and_counted() {
    let upstream = Upstream::start();
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("max_connections = 20").start();
    let mut open: Vec<Connection> = Vec::new();
    wait_for("the process to be full", ms(5000), || {
        let connection = gateway.connect();
        connection.stream().set_read_timeout(Some(ms(100))).unwrap();
        let mut byte = [0];
        let refused = !matches!(connection.stream().peek(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
        open.push(connection);
        refused.then_some(())
    });
    assert!(open.len() <= 21, "{}", open.len());
    let refused = metric(&gateway, "weir_connections_refused_total");
    assert!(refused >= 1.0, "{refused}");
    drop(open);
    wait_for("places to be free", ms(5000), || (metric(&gateway, "weir_connections") < 1.0).then_some(()));
    gateway.hello().ok();
    gateway.row();
}

#[test]
fn a_client_that_reads_nothing_is_cut_and_billed_for_what_passed() {
    let upstream = Upstream::start();
    let text = "word ".repeat(1 << 20);
    upstream.always(Answer::json(200, &chat(&text, &usage(5, 9))));
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("write_timeout_ms = 700").start();
    let before = resident(&gateway);
    let stalled: Vec<Connection> = (0..8).map(|_| gateway.send(&hello())).collect();
    let rows = gateway_rows(&gateway, stalled.len());
    assert!(rows.iter().all(|row| row["outcome"] != "completed" || row["status"] == 200), "{rows:#?}");
    wait_for("the stalled requests to end", ms(10_000), || {
        (metric(&gateway, "weir_requests_in_flight") < 1.0).then_some(())
    });
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 160 << 20, "{grown} bytes for eight answers of five MiB that nobody reads");
    drop(stalled);
}

/// Rows that come later than two seconds after the request.
fn gateway_rows(gateway: &Gateway, count: usize) -> Vec<serde_json::Value> {
    wait_for("the rows", ms(15_000), || Some(gateway.rows()).filter(|rows| rows.len() == count))
}

#[test]
fn a_head_without_an_end_is_cut_and_never_kept() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    gateway.hello().ok();
    let before = resident(&gateway);
    let floods: [fn(u32) -> String; 3] = [
        |number| format!("X-Flood-{number}: {}\r\n", "x".repeat(4000)),
        |number| format!("A{number}: b\r\n"),
        |_| "x".repeat(4096),
    ];
    for flood in floods {
        let mut connection = gateway.connect();
        connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: ").unwrap();
        let mut sent = 0;
        for number in 0.. {
            let piece = flood(number);
            sent += piece.len();
            if connection.send(piece.as_bytes()).is_err() || sent > 64 << 20 {
                break;
            }
        }
        assert!(sent < 32 << 20, "{sent} bytes of one head were taken");
        gateway.hello().ok();
    }
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes");

    // As many as the parser takes are too many, and told so.
    let mut connection = gateway.connect();
    let many: String = (0..1000).map(|number| format!("A{number}: b\r\n")).collect();
    connection.send(format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes()).unwrap();
    let reply = connection.reply().expect("an answer");
    assert!(matches!(reply.status, 400 | 431), "{}", reply.status);
    assert_eq!(upstream.count(), 4);
    let _streams_too = gateway.chat(&hello_stream()).ok();
    gateway.rows_when(5);
}
