//! HTTP/1.1 over a plain socket: what is written is exactly what the test says, what is read is shown as it came.

use serde_json::Value;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any deadline in these tests: a read that takes this long is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A head: its first line and its headers as they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) first_line: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Head {
    /// The value of a header, whatever its case; the first where there are several.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn parse(text: &[u8]) -> Head {
        let text = String::from_utf8_lossy(text);
        let mut lines = text.split("\r\n");
        let first_line = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect();
        Head { first_line, headers }
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"))
    }

    fn content_length(&self) -> Option<usize> {
        self.header("content-length").and_then(|value| value.parse().ok())
    }
}

/// A request to be written.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Request {
    /// A GET without a body.
    pub(crate) fn get(path: &str) -> Request {
        Request { method: "GET", path: path.to_owned(), headers: Vec::new(), body: None }
    }

    /// A POST of this body, its type JSON.
    pub(crate) fn post(path: &str, body: impl Into<Vec<u8>>) -> Request {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Request { method: "POST", path: path.to_owned(), headers, body: Some(body.into()) }
    }

    /// Whether it is a POST.
    pub(crate) fn is_post(&self) -> bool {
        self.method == "POST"
    }

    /// Another method.
    pub(crate) fn method(mut self, method: &'static str) -> Request {
        self.method = method;
        self
    }

    /// One more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Request {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The key as a bearer token.
    pub(crate) fn key(self, key: &str) -> Request {
        self.header("Authorization", &format!("Bearer {key}"))
    }

    /// The bytes on the wire. A Content-Length is added where there is a body and the test set no framing of its own.
    pub(crate) fn to_bytes(&self, host: SocketAddr) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = |name: &str| self.headers.iter().any(|(have, _)| have.eq_ignore_ascii_case(name));
        if let Some(body) = &self.body
            && !framed("content-length")
            && !framed("transfer-encoding")
        {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: Head,
    pub(crate) body: Vec<u8>,
    /// Whether the body ended as its framing says, rather than by the end of the connection.
    pub(crate) whole: bool,
}

impl Reply {
    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?} {:?}", self.text()))
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// Asserts the status, and hands the answer on.
    #[track_caller]
    pub(crate) fn ok(self) -> Reply {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.whole, "the answer was cut: {:?}", self.text());
        self
    }

    /// Asserts an error in the one shape that all have, with this status and code, and hands the `error` object on.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"), "{:?}", self.head);
        let error = error_of(&self.json());
        assert_eq!(error["code"], code, "{error}");
        let (want_type, want_retry) = advice(status, code);
        assert_eq!(error["type"], want_type, "{error}");
        assert_eq!(self.header("x-should-retry"), want_retry, "{:?}", self.head);
        error
    }

    /// The payloads of a stream's events, in order. Asserts that the framing is the one that every client understands.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<String> {
        assert_eq!(self.status, 200, "{}", self.text());
        let kind = self.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        events_of(&self.text())
    }

    /// The events that are JSON: all but `[DONE]`.
    #[track_caller]
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let events = self.events();
        events
            .iter()
            .filter(|data| *data != "[DONE]")
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }

    /// Whether the stream ended with `[DONE]`, the sign of a proper end.
    #[track_caller]
    pub(crate) fn done(&self) -> bool {
        self.events().last().is_some_and(|data| data == "[DONE]")
    }

    /// The text that the choices of the stream say, together.
    #[track_caller]
    pub(crate) fn said(&self) -> String {
        let text = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
        self.chunks().iter().filter_map(text).collect()
    }
}

/// The `error` object, asserting that it has the four keys and no more.
#[track_caller]
pub(crate) fn error_of(answer: &Value) -> Value {
    let error = &answer["error"];
    let mut keys: Vec<&str> =
        error.as_object().expect("an error object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["code", "message", "param", "type"], "{answer}");
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    error.clone()
}

/// `error.type` and `x-should-retry` by status and code.
fn advice(status: u16, code: &str) -> (&'static str, Option<&'static str>) {
    match status {
        402 if code == "credit_in_flight" => ("insufficient_quota", Some("true")),
        402 => ("insufficient_quota", Some("false")),
        409 if code == "request_in_progress" => ("invalid_request_error", Some("true")),
        429 => ("rate_limit_error", None),
        500.. => ("server_error", None),
        _ => ("invalid_request_error", Some("false")),
    }
}

/// Splits a stream into the payloads of its events. Every line must be a comment or a `data:` line of an event that an
/// empty line ends, and no carriage return may be left: some clients lose events over anything else.
#[track_caller]
pub(crate) fn events_of(text: &str) -> Vec<String> {
    assert!(!text.contains('\r'), "carriage returns in {text:?}");
    assert!(!text.starts_with('\u{feff}'), "a byte order mark in {text:?}");
    assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is not ended: {text:?}");
    let mut events = Vec::new();
    for block in text.split_terminator("\n\n") {
        let data: Vec<&str> = block
            .lines()
            .filter(|line| !line.starts_with(':'))
            .map(|line| line.strip_prefix("data: ").unwrap_or_else(|| panic!("not a data line: {line:?}")))
            .collect();
        if !data.is_empty() {
            let data = data.join("\n");
            assert!(!data.trim().is_empty(), "an event without data in {text:?}");
            events.push(data);
        }
    }
    events
}

/// A connection, either side.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    address: SocketAddr,
}

impl Connection {
    /// Connects as a client.
    pub(crate) fn open(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).expect("a connection");
        Connection::over(stream, address)
    }

    /// Takes an accepted socket.
    pub(crate) fn over(stream: TcpStream, address: SocketAddr) -> Connection {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream, read: Vec::new(), address }
    }

    /// Writes a request and reads the whole answer.
    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        self.send(&request.to_bytes(self.address)).expect("the request is written");
        self.reply().expect("an answer")
    }

    /// Writes a request and reads only the head of the answer.
    pub(crate) fn begin(&mut self, request: &Request) -> Head {
        self.send(&request.to_bytes(self.address)).expect("the request is written");
        self.head().expect("the head of an answer")
    }

    /// Writes these bytes.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Reads a whole answer; interim ones (1xx) are passed over.
    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        loop {
            let head = self.head()?;
            let status = status_of(&head);
            if (100..200).contains(&status) {
                continue;
            }
            let mut body = Vec::new();
            let whole = match status {
                204 | 304 => true,
                _ => self.body(&head, &mut body, true)?,
            };
            return Ok(Reply { status, head, body, whole });
        }
    }

    /// Reads what is left of an answer after its head.
    pub(crate) fn finish(mut self, head: Head) -> io::Result<Reply> {
        let mut body = Vec::new();
        let whole = self.body(&head, &mut body, true)?;
        Ok(Reply { status: status_of(&head), head, body, whole })
    }

    /// Reads a request as a server does, or nothing where the client has left. Answers `Expect: 100-continue`.
    pub(crate) fn request(&mut self) -> io::Result<Option<(Head, Vec<u8>)>> {
        let head = match self.head() {
            Ok(head) => head,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.read.is_empty() => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if head.header("expect").is_some() {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let mut body = Vec::new();
        self.body(&head, &mut body, false)?;
        Ok(Some((head, body)))
    }

    /// Reads a head.
    pub(crate) fn head(&mut self) -> io::Result<Head> {
        loop {
            if let Some(end) = find(&self.read, b"\r\n\r\n") {
                let head = Head::parse(&self.read[..end]);
                self.read.drain(..end + 4);
                return Ok(head);
            }
            self.more()?;
        }
    }

    /// Reads the next piece of a chunked body, as it was framed; nothing at its end.
    pub(crate) fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let size = loop {
            if let Some(end) = find(&self.read, b"\r\n") {
                let line = String::from_utf8_lossy(&self.read[..end]).into_owned();
                self.read.drain(..end + 2);
                let digits = line.split(';').next().unwrap_or_default().trim();
                break usize::from_str_radix(digits, 16)
                    .map_err(|_| broken(format!("chunk size {line:?}")))?;
            }
            self.more()?;
        };
        while self.read.len() < size + 2 {
            self.more()?;
        }
        let piece = self.read.drain(..size).collect();
        self.read.drain(..2);
        Ok((size > 0).then_some(piece))
    }

    /// Whether the other side has closed or reset the connection, waiting for it as long as a read may take.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.more() {
            Ok(()) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        }
    }

    /// Tears the connection down at once, with a reset; data under way is lost.
    pub(crate) fn reset(self) {
        // The standard library cannot set a lingering time of zero yet; tokio can.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let reset = async {
            self.stream.set_nonblocking(true)?;
            tokio::net::TcpStream::from_std(self.stream)?.set_zero_linger()
        };
        runtime.block_on(reset).expect("a reset");
    }

    /// The socket.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads a body as its head frames it. Returns whether it ended as framed.
    fn body(&mut self, head: &Head, body: &mut Vec<u8>, until_close: bool) -> io::Result<bool> {
        if head.is_chunked() {
            loop {
                match self.chunk() {
                    Ok(Some(piece)) => body.extend(piece),
                    Ok(None) => return Ok(true),
                    Err(error) if is_cut(&error) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
        }
        let length = head.content_length();
        if length.is_none() && !until_close {
            return Ok(true);
        }
        while length.is_none_or(|length| self.read.len() < length) {
            match self.more() {
                Ok(()) => {}
                Err(error) if is_cut(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let end = length.unwrap_or(self.read.len()).min(self.read.len());
        body.extend(self.read.drain(..end));
        Ok(length.is_none_or(|length| body.len() == length))
    }

    fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 64 * 1024];
        match self.stream.read(&mut piece)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            got => {
                self.read.extend_from_slice(&piece[..got]);
                Ok(())
            }
        }
    }
}

/// The status of an answer's head.
pub(crate) fn status_of(head: &Head) -> u16 {
    let text = head.first_line.split(' ').nth(1).unwrap_or_default();
    text.parse().unwrap_or_else(|_| panic!("not a status line: {:?}", head.first_line))
}

/// Whether the admin listener says that the gateway is ready.
pub(crate) fn is_ready(admin: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(admin) else { return false };
    let mut connection = Connection::over(stream, admin);
    let asked = connection.send(&Request::get("/readyz").to_bytes(admin));
    asked.and_then(|()| connection.reply()).is_ok_and(|reply| reply.status == 200)
}

fn is_cut(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
