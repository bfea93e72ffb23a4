//! A provider that does what its script says, byte for byte, and remembers what it was sent.

use super::http::{Connection, Head};
use super::ms;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// The credential with which the gateway authenticates at every scripted provider. It must show up nowhere else.
pub(crate) const PROVIDER_KEY: &str = "sk-provider-7f3a91c2-never-to-be-seen";

/// What the provider does with one request, step by step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    steps: Vec<Step>,
    /// The status of the head that the steps write, where they write one.
    status: Option<u16>,
}

#[derive(Clone, Debug)]
enum Step {
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Does nothing for a while; ends early where the gateway leaves.
    Wait(Duration),
    /// Does nothing until the gateway leaves, then notes how long that took.
    WaitForEnd,
    /// Does nothing until the gate is opened.
    Gate(Arc<Gate>),
    /// Closes the connection in an orderly way.
    Close,
    /// Resets it.
    Reset,
}

/// A gate in a script that the test opens.
#[derive(Debug)]
pub(crate) struct Gate {
    open: AtomicBool,
}

impl Gate {
    /// A closed one.
    pub(crate) fn new() -> Arc<Gate> {
        Arc::new(Gate { open: AtomicBool::new(false) })
    }

    /// Opens it, for good.
    pub(crate) fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    fn wait(&self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.open.load(Ordering::SeqCst) && Instant::now() < end {
            thread::sleep(ms(2));
        }
    }
}

impl Answer {
    /// A whole answer with this body and a Content-Length.
    pub(crate) fn new(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Answer {
        Answer::with_headers(status, &[("Content-Type", content_type)], body)
    }

    /// A whole JSON answer.
    pub(crate) fn json(status: u16, body: &Value) -> Answer {
        Answer::new(status, "application/json", body.to_string())
    }

    /// A whole answer with these headers besides Content-Length.
    pub(crate) fn with_headers(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Answer {
        let body = body.as_ref();
        let mut head = format!("HTTP/1.1 {status} Scripted\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let bytes = [head.as_bytes(), body].concat();
        Answer { status: Some(status), ..Answer::default() }.write(bytes)
    }

    /// The head of an event stream; pieces follow with [`Answer::piece`], the end with [`Answer::end`].
    pub(crate) fn stream() -> Answer {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_owned();
        Answer { status: Some(200), ..Answer::default() }.write(head)
    }

    /// An event stream of these pieces, properly ended.
    pub(crate) fn stream_of<T: AsRef<[u8]>>(pieces: impl IntoIterator<Item = T>) -> Answer {
        pieces.into_iter().fold(Answer::stream(), |answer, piece| answer.piece(piece)).end()
    }

    /// A script that begins with nothing: no head.
    pub(crate) fn silent() -> Answer {
        Answer::default()
    }

    /// Takes the request and never answers.
    pub(crate) fn never() -> Answer {
        Answer::silent().wait_for_end()
    }

    /// These bytes, outside of any framing.
    pub(crate) fn write(mut self, bytes: impl Into<Vec<u8>>) -> Answer {
        let bytes = bytes.into();
        let told = bytes
            .strip_prefix(b"HTTP/1.1 ")
            .and_then(|rest| std::str::from_utf8(rest.get(..3)?).ok()?.parse().ok());
        self.status = self.status.or(told.filter(|status| *status >= 200));
        self.steps.push(Step::Write(bytes));
        self
    }

    /// One chunk of a chunked body, in a write of its own.
    pub(crate) fn piece(self, bytes: impl AsRef<[u8]>) -> Answer {
        let bytes = bytes.as_ref();
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(chunk)
    }

    /// One event with this payload.
    pub(crate) fn event(self, data: &Value) -> Answer {
        self.piece(format!("data: {data}\n\n"))
    }

    /// The end of a stream: `[DONE]` and the last chunk.
    pub(crate) fn done(self) -> Answer {
        self.piece("data: [DONE]\n\n").end()
    }

    /// The last chunk.
    pub(crate) fn end(self) -> Answer {
        self.write(*b"0\r\n\r\n")
    }

    /// Then nothing for a while.
    pub(crate) fn wait(mut self, time: Duration) -> Answer {
        self.steps.push(Step::Wait(time));
        self
    }

    /// Then nothing until the gateway leaves.
    pub(crate) fn wait_for_end(mut self) -> Answer {
        self.steps.push(Step::WaitForEnd);
        self
    }

    /// Then nothing until the gate is opened.
    pub(crate) fn gate(mut self, gate: &Arc<Gate>) -> Answer {
        self.steps.push(Step::Gate(Arc::clone(gate)));
        self
    }

    /// Then the end of the connection.
    pub(crate) fn close(mut self) -> Answer {
        self.steps.push(Step::Close);
        self
    }

    /// Then a reset of the connection.
    pub(crate) fn reset(mut self) -> Answer {
        self.steps.push(Step::Reset);
        self
    }
}

/// A request as the provider got it.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
}

impl Received {
    /// The path of the request line.
    pub(crate) fn path(&self) -> &str {
        self.head.first_line.split(' ').nth(1).unwrap_or_default()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the provider gets JSON")
    }
}

/// A scripted provider on a port of its own.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    script: Mutex<VecDeque<Answer>>,
    fallback: Mutex<Option<Answer>>,
    received: Mutex<Vec<Received>>,
    answered: Mutex<Vec<u16>>,
    ends: Mutex<Vec<Duration>>,
    connections: Mutex<u64>,
}

impl Upstream {
    /// Starts one. Without a script it answers as [`plausible`] does.
    pub(crate) fn start() -> Upstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port for the provider");
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&for_thread);
                *lock(&shared.connections) += 1;
                thread::spawn(move || serve(stream, address, &shared));
            }
        });
        Upstream { address, shared }
    }

    /// What to answer the next request that has no answer yet.
    pub(crate) fn next(&self, answer: Answer) -> &Upstream {
        lock(&self.shared.script).push_back(answer);
        self
    }

    /// What to answer every request for which the script has nothing.
    pub(crate) fn always(&self, answer: Answer) -> &Upstream {
        *lock(&self.shared.fallback) = Some(answer);
        self
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests so far, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The only request so far.
    #[track_caller]
    pub(crate) fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "one request reaches the provider");
        received[0].clone()
    }

    /// How many requests it got.
    pub(crate) fn count(&self) -> usize {
        lock(&self.shared.received).len()
    }

    /// How many connections it was opened.
    pub(crate) fn connections(&self) -> u64 {
        *lock(&self.shared.connections)
    }

    /// How many answers with a 2xx status it began.
    pub(crate) fn successes(&self) -> usize {
        lock(&self.shared.answered).iter().filter(|status| (200..300).contains(*status)).count()
    }

    /// How long each script that waited for the gateway to leave had to wait.
    pub(crate) fn ends(&self) -> Vec<Duration> {
        lock(&self.shared.ends).clone()
    }
}

fn serve(stream: TcpStream, address: SocketAddr, shared: &Shared) {
    let mut connection = Connection::over(stream, address);
    while let Ok(Some((head, body))) = connection.request() {
        let received = Received { head, body };
        let scripted = lock(&shared.script).pop_front();
        let answer = scripted
            .or_else(|| lock(&shared.fallback).clone())
            .unwrap_or_else(|| plausible(received.path(), &received.body));
        lock(&shared.received).push(received);
        match play(&mut connection, &answer, shared) {
            End::KeepAlive => {}
            End::Close => return,
            End::Reset => return connection.reset(),
        }
    }
}

enum End {
    KeepAlive,
    Close,
    Reset,
}

/// Plays a script. A gateway that has left ends it.
fn play(connection: &mut Connection, answer: &Answer, shared: &Shared) -> End {
    let mut status = answer.status;
    for step in &answer.steps {
        match step {
            Step::Write(bytes) => {
                if connection.send(bytes).is_err() {
                    return End::Close;
                }
                if let Some(status) = status.take() {
                    lock(&shared.answered).push(status);
                }
            }
            Step::Wait(time) => {
                if left_within(connection, *time) {
                    return End::Close;
                }
            }
            Step::WaitForEnd => {
                let begun = Instant::now();
                left_within(connection, Duration::from_secs(60));
                lock(&shared.ends).push(begun.elapsed());
                return End::Close;
            }
            Step::Gate(gate) => gate.wait(),
            Step::Close => return End::Close,
            Step::Reset => return End::Reset,
        }
    }
    End::KeepAlive
}

/// Waits, and tells whether the gateway closed the connection meanwhile.
fn left_within(connection: &Connection, time: Duration) -> bool {
    let stream = connection.stream();
    let before = stream.read_timeout().unwrap_or(None);
    let end = Instant::now() + time;
    let left = loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            break false;
        }
        let _ = stream.set_read_timeout(Some(rest));
        match stream.peek(&mut [0]) {
            Ok(0) => break true,
            // A pipelined request: the gateway is there.
            Ok(_) => thread::sleep(ms(5)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break true,
        }
    };
    let _ = stream.set_read_timeout(before);
    left
}

/// What a healthy provider answers: a short text with exact usage, streamed where the request says so.
fn plausible(path: &str, body: &[u8]) -> Answer {
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let streamed = asked["stream"] == true;
    let with_usage = asked["stream_options"]["include_usage"] == true;
    match path.rsplit('/').next().unwrap_or_default() {
        "embeddings" => Answer::json(200, &embeddings(5)),
        "completions" if streamed => {
            let mut answer = Answer::stream();
            for word in HELLO {
                answer = answer.event(&chunk(word));
            }
            answer = answer.event(&last_chunk());
            if with_usage {
                answer = answer.event(&usage_chunk(&usage(12, 3)));
            }
            answer.done()
        }
        _ => Answer::json(200, &chat("Hello from the weir", &usage(12, 5))),
    }
}

/// The words of the healthy stream.
pub(crate) const HELLO: [&str; 3] = ["Hello", " from", " upstream"];

/// A whole chat answer.
pub(crate) fn chat(text: &str, usage: &Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "provider-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage,
    })
}

/// An embeddings answer that used so many tokens.
pub(crate) fn embeddings(tokens: u64) -> Value {
    json!({
        "object": "list", "model": "provider-model",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    })
}

/// A usage object.
pub(crate) fn usage(prompt: u64, completion: u64) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

/// A chunk of a streamed chat answer with these words.
pub(crate) fn chunk(text: &str) -> Value {
    choice_chunk(&json!([{"index": 0, "delta": {"content": text}, "finish_reason": null}]))
}

/// The chunk that says that the answer is whole.
pub(crate) fn last_chunk() -> Value {
    choice_chunk(&json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
}

/// The chunk that carries the usage and no choices.
pub(crate) fn usage_chunk(usage: &Value) -> Value {
    let mut chunk = choice_chunk(&json!([]));
    chunk["usage"] = usage.clone();
    chunk
}

/// A chunk with these choices.
pub(crate) fn choice_chunk(choices: &Value) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "provider-model",
        "choices": choices,
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn a_scripted_provider_does_what_its_script_says() {
    use super::{Connection, Request};

    let upstream = Upstream::start();
    let ask = |answer: Answer| {
        upstream.next(answer);
        let mut connection = Connection::open(upstream.address());
        connection.send(&Request::post("/v1/chat/completions", "{}").to_bytes(upstream.address())).unwrap();
        (connection.reply(), connection)
    };

    let (reply, mut connection) = ask(Answer::json(429, &json!({"a": 1})));
    assert_eq!(reply.unwrap().json(), json!({"a": 1}));
    let again = connection.ask(&Request::post("/v1/embeddings", "{}")).ok();
    assert_eq!(again.json()["usage"]["prompt_tokens"], 5);

    let (reply, _) = ask(Answer::stream().event(&chunk("a")).wait(ms(20)).event(&last_chunk()).done());
    let reply = reply.unwrap();
    assert!(reply.whole && reply.done() && reply.said() == "a");

    let (reply, _) = ask(Answer::stream().event(&chunk("a")).close());
    assert!(!reply.unwrap().whole);
    let (reply, _) = ask(Answer::stream().event(&chunk("a")).wait(ms(20)).reset());
    assert!(!reply.unwrap().whole);
    let (reply, _) = ask(Answer::silent().reset());
    assert_eq!(reply.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let (reply, _) = ask(Answer::silent().close());
    assert_eq!(reply.unwrap_err().kind(), ErrorKind::UnexpectedEof);

    upstream.next(Answer::never());
    let mut connection = Connection::open(upstream.address());
    connection.send(&Request::post("/", "{}").to_bytes(upstream.address())).unwrap();
    thread::sleep(ms(50));
    drop(connection);
    let ends = super::wait_for("the provider to see the client leave", ms(2000), || {
        Some(upstream.ends()).filter(|ends| !ends.is_empty())
    });
    assert!(ends[0] < ms(1000), "{ends:?}");
    assert_eq!((upstream.count(), upstream.successes()), (8, 4));
}
