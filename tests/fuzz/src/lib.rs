//! What must hold for any bytes at all: each function takes the bytes of one case and panics where a promise is broken.
//!
//! A file of each one's name in `bin/` gives it to libFuzzer, which begins with its seeds and looks for cases that reach code that none has
//! reached (`make fuzz`).

use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock};
use weir::authenticate::Network;
use weir::config::Config;
use weir::ledger::journal::{self, Disk, Durability, Journal, Progress, Record, Segment, Sent, Settings};
use weir::meter::{Fed, StreamMeter, StreamSettings, Whole};
use weir::money::Micros;
use weir::openai::{Answer, Ask, Endpoint, UpstreamFault, prompt_tokens, splice};
use weir::relay::forwarded::ForwarderHeader;
use weir::relay::proxy_protocol::{self as head, Head};
use weir::secret::ApiKey;
use weir::usage::Class;

/// Small, so that cases reach it.
const EVENT_BYTES_MAX: usize = 256;

/// Events are the same at whatever bytes a stream is cut.
pub fn sse(data: &[u8]) {
    let Some((cut, text)) = data.split_first() else { return };
    let whole = events(&[text]);
    assert_eq!(events(&pieces(text, *cut)), whole, "cut every {cut} bytes");
    for (name, data) in &whole.0 {
        assert!(name.len() <= EVENT_BYTES_MAX && data.len() <= EVENT_BYTES_MAX, "within the bound");
    }
}

type Events = (Vec<(Vec<u8>, Vec<u8>)>, bool);

/// The events of a stream that comes in these pieces, and whether it was given up.
fn events(pieces: &[&[u8]]) -> Events {
    let mut parser = weir::sse::Parser::new(EVENT_BYTES_MAX);
    let mut events = Vec::new();
    for piece in pieces {
        let mut piece = *piece;
        loop {
            match parser.next(&mut piece) {
                Ok(Some(event)) => events.push((event.name.to_vec(), event.data.to_vec())),
                Ok(None) => break,
                Err(weir::sse::TooLong) => return (events, true),
            }
        }
    }
    if let Some(event) = parser.finish() {
        events.push((event.name.to_vec(), event.data.to_vec()));
    }
    (events, false)
}

/// What a client gets of a stream, and what is billed, does not depend on where it was cut.
pub fn stream(data: &[u8]) {
    let Some((cut, text)) = data.split_first() else { return };
    let settings = StreamSettings {
        endpoint: if cut & 1 == 0 { Endpoint::ChatCompletions } else { Endpoint::Completions },
        usage_asked: cut & 2 == 0,
        max_event_bytes: 4 * EVENT_BYTES_MAX,
    };
    let whole = metered(settings, &[text]);
    assert_eq!(metered(settings, &pieces(text, cut >> 2)), whole, "cut at {}", cut >> 2);
}

fn metered(settings: StreamSettings, pieces: &[&[u8]]) -> String {
    let mut meter = StreamMeter::new(settings);
    let mut out = Vec::new();
    let ended = pieces.iter().find_map(|piece| match meter.feed(piece, &mut out) {
        Fed::Ended(ending) => Some(ending),
        Fed::Open => None,
    });
    let ending = ended.unwrap_or_else(|| meter.finish(&mut out));
    meter.write_end(&ending, &mut out);
    let out = String::from_utf8_lossy(&out).into_owned();
    let tokens = meter.output_tokens();
    assert!(tokens <= meter.said_bytes(), "a token has at least one byte: {out}");
    format!("{ending:?} {:?} {tokens} {} {:?} {out}", meter.usage(), meter.said_bytes(), meter.service_tier())
}

/// A body that is taken is JSON, is read by others as it is read here, and is changed in what the gateway changes alone.
pub fn body(data: &[u8]) {
    for endpoint in Endpoint::ALL {
        let Ok(mut ask) = Ask::parse(endpoint, data) else { continue };
        let before = keys(data);
        assert_eq!(before["model"].get().parse::<serde_json::Value>().unwrap(), ask.model.as_str());
        prompt_tokens(endpoint, data);
        ask.affinity(b"account", data);
        let lowered = endpoint.has_output().then(|| ask.max_output_tokens.map_or(7, |asked| asked.min(7)));
        if let Some(lowered) = lowered {
            ask.lower_output(lowered);
        }
        let sent = splice(data, &ask.edits("up\"stream"));
        let after = keys(&sent);
        for (key, value) in &before {
            if !["model", "stream_options", "max_tokens", "max_completion_tokens"].contains(&key.as_str()) {
                assert_eq!(after.get(key).map(|value| value.get()), Some(value.get()), "{key} is not ours");
            }
        }
        let again = Ask::parse(endpoint, &sent).expect("what is sent is as good as what came");
        assert_eq!(
            (again.model.as_str(), again.stream, again.choices),
            ("up\"stream", ask.stream, ask.choices)
        );
        assert!(lowered.is_none() || again.max_output_tokens == lowered, "{lowered:?}: {again:?}");
        assert!(again.include_usage || !ask.stream || !endpoint.has_output(), "the usage is asked for");
    }
}

fn keys(body: &[u8]) -> BTreeMap<String, Box<RawValue>> {
    serde_json::from_slice(body).expect("what is taken is an object of JSON")
}

/// Providers are not trusted either.
pub fn answer(data: &[u8]) {
    UpstreamFault::parse(data);
    for endpoint in Endpoint::ALL {
        if let Ok(whole) = Whole::read(endpoint, data) {
            whole.output_tokens();
        }
        if let Ok(answer) =
            std::str::from_utf8(data).map_err(|_| ()).and_then(|text| Answer::parse(text).map_err(|_| ()))
        {
            answer.usage(endpoint);
            answer.each_choice(|choice| choice.each_text(|_said| ()));
        }
    }
}

/// Whatever became of a journal on the disk, what is read of it is the beginning of what was written.
pub fn journal(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else { return };
    let (mut image, written) = written_journal();
    if mode & 1 == 0 {
        if let Ok(scanned) = journal::scan(&Memory::of(rest.to_vec())) {
            let numbers: Vec<u64> = scanned.records().map(|(seq, _)| seq).collect();
            assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "numbers without a gap");
            assert_eq!(
                (numbers.first(), numbers.last()),
                (scanned.first_seq().as_ref(), scanned.last_seq().as_ref())
            );
        }
        return;
    }
    let used = image.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 64);
    for change in rest.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % used;
        image[at] ^= change[2];
    }
    if mode & 2 != 0 {
        image.truncate(usize::from(rest.first().copied().unwrap_or(0)) * used / 255);
    }
    if let Ok(scanned) = journal::scan(&Memory::of(image)) {
        let read: Vec<_> = scanned.records().collect();
        assert!(written.starts_with(&read), "{read:?}");
    }
}

/// A segment with a few records, and those.
fn written_journal() -> (Vec<u8>, &'static [(u64, Record)]) {
    type Written = (Vec<u8>, Vec<(u64, Record)>);
    static WRITTEN: OnceLock<Written> = OnceLock::new();
    let (image, records) = WRITTEN.get_or_init(|| {
        let disk = Memory::default();
        let settings =
            Settings { durability: Durability::Group, segment_bytes: 64 << 10, max_bytes: 1 << 20 };
        let journal = Journal::without_threads(disk.clone(), settings).unwrap();
        let room = journal.reserve().unwrap();
        for id in 0..6 {
            journal.sent(&room, &sent(id));
            journal.progress(Progress { request_id: [id; 16], input_tokens: 3, output_tokens: 4 });
            if id == 3 {
                journal.failed(&room, [id; 16]);
                journal.sync_once();
            }
        }
        let records = journal::scan(&disk).unwrap().records().collect::<Vec<_>>();
        assert!(records.len() > 12, "{records:?}");
        (disk.read(FIRST).unwrap(), records)
    });
    (image.clone(), records)
}

fn sent(id: u8) -> Sent {
    Sent {
        request_id: [id; 16],
        account: [1; 16],
        key: [2; 16],
        created_at: 1_700_000_000_000_000,
        client_request_id: id.is_multiple_of(2).then(|| "theirs".to_owned()),
        model: "model".to_owned(),
        provider: "provider".to_owned(),
        upstream_model: "upstream".to_owned(),
        service_tier: None,
        stream: true,
        price_version: 1,
        input_tokens: 3,
        input_price: 150_000,
        output_price: 600_000,
    }
}

const FIRST: &str = "0000000000000001.journal";

/// A disk that keeps what is written.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

struct MemorySegment(Memory, String);

impl Memory {
    /// With one segment.
    fn of(bytes: Vec<u8>) -> Memory {
        Memory(Arc::new(Mutex::new(BTreeMap::from([(FIRST.to_owned(), bytes)]))))
    }
}

impl Disk for Memory {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }

    fn create(&self, name: &str, size_bytes: u64, head: &[u8]) -> io::Result<Arc<dyn Segment>> {
        let mut bytes = vec![0; usize::try_from(size_bytes).unwrap()];
        bytes[..head.len()].copy_from_slice(head);
        self.0.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(Arc::new(MemorySegment(self.clone(), name.to_owned())))
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.lock().unwrap().get(name).cloned().ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}

impl Segment for MemorySegment {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut files = self.0.0.lock().unwrap();
        let at = usize::try_from(offset).unwrap();
        files.get_mut(&self.1).ok_or(ErrorKind::NotFound)?[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What a client writes before it changes nothing of what a forwarder says, and makes nobody a client of whom nothing stands there.
pub fn forwarded(data: &[u8]) {
    let forwarder = IpAddr::from([10, 0, 0, 1]);
    let client = |header: ForwarderHeader, lines: &[&[u8]]| {
        header.client(forwarder, lines.iter().copied(), |address| address == forwarder)
    };
    let six = "2001:db8::7".parse::<IpAddr>().expect("an address");
    for (header, appended) in [
        (ForwarderHeader::XForwardedFor, "[2001:db8::7]:1"),
        (ForwarderHeader::Forwarded, "by=\"\\\",\";for=\"[2001:db8::7]:1\""),
    ] {
        assert_eq!(client(header, &[&[data, b",", appended.as_bytes()].concat()]), six, "in one line");
        assert_eq!(client(header, &[data, appended.as_bytes()]), six, "in two lines");
        let told = client(header, &[data]);
        // The address of zeroes has no digit.
        let stands = data.iter().any(u8::is_ascii_hexdigit) || data.windows(2).any(|two| two == b"::");
        assert!(told == forwarder || stands, "{told} stands nowhere");
    }
}

/// A head of version 1, or one of version 2 with the longest addresses, is not longer than this.
const PROXY_HEAD_BYTES: usize = 256;

/// What a balancer says is the same however its bytes come in, and ends where it says that it ends.
pub fn proxy_protocol(data: &[u8]) {
    let whole = head::parse(data);
    // What can differ stands in the first bytes; behind them is padding, of which a piece now and then is enough.
    let cuts = (0..PROXY_HEAD_BYTES).chain((PROXY_HEAD_BYTES..data.len()).step_by(61)).chain([data.len()]);
    let arrived = cuts
        .filter(|have| *have <= data.len())
        .map(|have| head::parse(&data[..have]))
        .find(|said| *said != Head::Incomplete);
    assert_eq!(arrived.unwrap_or(Head::Incomplete), whole, "byte by byte");
    if let Head::Whole { bytes, .. } = whole {
        assert!(bytes <= data.len() && bytes <= head::MAX_BYTES, "{bytes} of {}", data.len());
        assert_eq!(head::parse(&data[..bytes]), whole, "what follows is the client's");
    }
}

/// A configuration is taken, or refused with the file's name and what is wrong.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = Config::parse(text, "file.toml") {
        assert!(error.to_string().contains("file.toml"), "{error}");
    }
}

/// The same for a file of prices, none of which is below zero.
pub fn prices(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match weir::price::file::parse(text, "prices.toml") {
        Ok(prices) => assert!(prices.iter().all(|price| price.price.0 >= 0), "{prices:?}"),
        Err(error) => assert!(error.to_string().contains("prices.toml"), "{error}"),
    }
}

/// The words that people and clients type.
pub fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(amount) = Micros::parse_usd(text) {
        assert!(amount.0 >= 0, "{text} is {amount:?}");
    }
    if let Some(key) = ApiKey::parse(text) {
        assert_eq!(key.expose(), text);
        assert!(text.starts_with(key.prefix()) && text.ends_with(key.last_four()), "{text}");
    }
    if let Ok(network) = text.parse::<Network>() {
        network.contains([127, 0, 0, 1].into());
    }
    Class::parse(text);
}

/// The bytes in pieces of this size; zero is all in one.
fn pieces(bytes: &[u8], size: u8) -> Vec<&[u8]> {
    match usize::from(size) {
        0 => vec![bytes],
        size => bytes.chunks(size).collect(),
    }
}
