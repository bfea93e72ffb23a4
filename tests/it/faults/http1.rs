//! Faults of a provider that speaks HTTP/1.1.

use super::{Answered, Broken, CUT, ERROR, GOOD, LIMITED, Matrix, QUICK, Refused, Row, SLOW_TEXT, TIMEOUT};
use crate::support::gateway::Gateway;
use crate::support::upstream::{chat, chunk, last_chunk, usage, usage_chunk};
use crate::support::{Answer, Upstream, ms};
use serde_json::{Value, json};

/// A whole answer with this status, on a connection that is not used again.
fn status(status: u16, body: &Value, more: &[(&str, &str)]) -> [Answer; 2] {
    let headers = [&[("Content-Type", "application/json"), ("Connection", "close")], more].concat();
    let answer = Answer::with_headers(status, &headers, body.to_string()).close();
    [answer.clone(), answer]
}

/// The same for both kinds of requests.
fn both(answer: Answer) -> [Answer; 2] {
    [answer.clone(), answer]
}

/// The head of a success, and half of its body.
fn begun() -> [Answer; 2] {
    let body = chat("half an answer", &usage(9, 9)).to_string();
    let half = &body[..body.len() / 2];
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [Answer::silent().write(head + half), Answer::stream().event(&chunk("Hello"))]
}

fn slow() -> [Answer; 2] {
    let body = chat(SLOW_TEXT, &usage(9, 2)).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let stream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    let streamed = Answer::silent().wait(ms(300)).write(stream).wait(ms(300)).event(&chunk(SLOW_TEXT));
    let streamed = streamed.event(&last_chunk()).event(&usage_chunk(&usage(9, 2))).done().close();
    [Answer::silent().wait(ms(300)).write(head).close(), streamed]
}

fn error(code: &str) -> Value {
    json!({"error": {"message": "This is too long.", "type": "invalid_request_error", "param": null, "code": code}})
}

/// Every fault: what becomes of a request, and what the provider does with one that is not streamed and with one that is.
fn faults() -> Vec<(Row, [Answer; 2])> {
    let mut faults = vec![
        (Row::told("reset after the request", ERROR), both(Answer::silent().wait(ms(30)).reset())),
        (Row::told("closed after the request", ERROR), both(Answer::silent().wait(ms(30)).close())),
        (Row::told("no first byte", TIMEOUT), both(Answer::never())),
        (Row::told("a slow first byte, in time", Answered("bad")), slow()),
        (Row::broken("a stall in the middle", TIMEOUT, CUT), begun().map(Answer::wait_for_end)),
        (Row::broken("cut in the middle", ERROR, CUT), begun().map(Answer::close)),
        (Row::broken("reset in the middle", ERROR, CUT), begun().map(|answer| answer.wait(ms(30)).reset())),
        (Row::told("not HTTP", ERROR), both(Answer::silent().write("SSH-2.0-OpenSSH_9.7\r\n\r\n").close())),
        (Row::told("not JSON, and no stream", ERROR), both(Answer::new(200, "text/html", "<html>").close())),
        (Row::told("nothing in the answer", ERROR), both(Answer::new(200, "application/json", "").close())),
        (
            Row::broken("an event that is none", ERROR, Broken("upstream_error")),
            [
                Answer::new(200, "text/plain", "data").close(),
                Answer::stream().event(&chunk("Hello")).piece("data: <\n\n").close(),
            ],
        ),
        (
            Row::told("400", Refused(400, "context_length_exceeded")),
            status(400, &error("context_length_exceeded"), &[]),
        ),
        (Row::told("422", Refused(400, "null")), status(422, &error("odd"), &[])),
    ];
    for (name, code) in [("401", 401), ("402", 402), ("403", 403)] {
        faults.push((Row::told(name, ERROR), status(code, &error("x"), &[])));
    }
    for (name, code) in [("408", 408), ("500", 500), ("502", 502), ("504", 504)] {
        let alone = match code {
            504 | 408 => TIMEOUT,
            _ => ERROR,
        };
        faults.push((Row::passed_on(name, alone), status(code, &error("x"), &[])));
    }
    for (name, code) in [("429", 429), ("503", 503), ("529", 529)] {
        faults.push((Row::passed_on(name, LIMITED), status(code, &error("x"), &[])));
    }
    faults
}

#[test]
fn each_fault_over_http_1() {
    let (bad, good) = (Upstream::start(), Upstream::start());
    let builder = Gateway::builder()
        .provider_with("bad", &bad, QUICK)
        .provider("good", &good)
        .model_in_order("tiny", &["bad", "good"])
        .model_in_order("rich", &["bad"]);
    let mut matrix = Matrix::start(builder, &good);
    for (row, answers) in faults() {
        for (streamed, answer) in [false, true].into_iter().zip(&answers) {
            for (model, told) in [("tiny", row.before_another), ("rich", row.alone)] {
                let before = bad.count();
                bad.next(answer.clone());
                matrix.check(row.fault, model, streamed, told[usize::from(streamed)]);
                assert_eq!(bad.count() - before, row.seen, "{} is seen so often: {model}", row.fault);
            }
        }
    }
    matrix.end();
}

#[test]
fn a_limit_with_a_time_is_kept_to() {
    let (bad, good) = (Upstream::start(), Upstream::start());
    let builder = Gateway::builder()
        .provider_with("bad", &bad, QUICK)
        .provider("good", &good)
        .model_in_order("tiny", &["bad", "good"])
        .model_in_order("rich", &["bad"]);
    let mut matrix = Matrix::start(builder, &good);
    let [limited, _] = status(429, &error("x"), &[("Retry-After", "30")]);
    for streamed in [false, true] {
        // The first finds out, for both models or for each; from then on nobody asks for half a minute.
        bad.always(limited.clone());
        matrix.check("limited", "tiny", streamed, GOOD);
        let seen = bad.count();
        for _ in 0..3 {
            matrix.check("limited before", "tiny", streamed, GOOD);
        }
        assert_eq!(bad.count(), seen, "a provider that said when is not asked before");
    }
    let reply = matrix.ask("rich", false);
    reply.refused(503, "no_capacity");
    let wait: u64 = reply.header("retry-after").expect("Retry-After").parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    matrix.end();
}
