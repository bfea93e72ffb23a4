//! Floods of HTTP/2 frames, written byte by byte: RFC 9113, section 10.5.

use super::resident;
use crate::support::{Gateway, Upstream, ms};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET /` of the authority `x`, in HPACK.
fn request() -> Vec<u8> {
    vec![0x82, 0x86, 0x84, 0x41, 0x01, b'x']
}

fn connect(gateway: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
    stream
}

/// Writes until the other side has enough, while its answers are read. The kinds of the frames that came, and whether the connection ended.
fn flood(gateway: &Gateway, mut pieces: impl Iterator<Item = Vec<u8>> + Send) -> (Vec<u8>, bool) {
    let mut stream = connect(gateway);
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let answers = scope.spawn(move || {
            let (mut bytes, mut piece) = (Vec::new(), [0; 16_384]);
            let has_ended = loop {
                match reader.read(&mut piece) {
                    Ok(0) => break true,
                    Ok(read) => bytes.extend_from_slice(&piece[..read]),
                    Err(error) => break !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
                }
            };
            (kinds(&bytes), has_ended)
        });
        // Whether all of it was taken is told by the other direction.
        let _ = pieces.try_for_each(|piece| stream.write_all(&piece));
        answers.join().unwrap()
    })
}

fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while bytes.len() >= 9 {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        kinds.push(bytes[3]);
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    kinds
}

/// Floods, while honest requests go on.
fn hold(pieces: impl Iterator<Item = Vec<u8>> + Send) -> (Vec<u8>, bool) {
    let upstream = Upstream::start();
    let builder = Gateway::builder().provider("main", &upstream).standard_models("main");
    let gateway = builder.server("head_timeout_ms = 2000\nkeepalive_timeout_ms = 2000").start();
    gateway.hello().ok();
    let before = resident(&gateway);
    let ended = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(&gateway, pieces));
        let begun = Instant::now();
        while !flooding.is_finished() && begun.elapsed() < Duration::from_secs(20) {
            gateway.hello().ok();
            std::thread::sleep(ms(20));
        }
        flooding.join().unwrap()
    });
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 48 << 20, "{grown} bytes");
    gateway.hello().ok();
    ended
}

#[test]
fn a_rapid_reset_of_streams_harms_nobody_and_ends() {
    let resets = (0..50_000_u32).map(|number| {
        let stream = 2 * number + 1;
        let opened = frame(HEADERS, END_STREAM | END_HEADERS, stream, &request());
        [opened, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    let (_, has_ended) = hold(resets);
    assert!(has_ended, "the connection is open");
}

#[test]
fn a_head_of_continuations_without_an_end_is_cut() {
    let begun = frame(HEADERS, 0, 1, &request());
    // Of a literal field, ever more octets.
    let field = [&[0x00, 0x01, b'a', 0x7f, 0xff, 0xff, 0x03][..], &[b'x'; 8_000]].concat();
    let flood = (0..20_000).map(move |_| frame(CONTINUATION, 0, 1, &field));
    let (kinds, has_ended) = hold(std::iter::once(begun).chain(flood));
    assert!(has_ended, "the connection is open");
    assert!(kinds.contains(&GOAWAY), "{kinds:?}");
}

#[test]
fn a_flood_of_settings_and_pings_without_a_request_ends() {
    let flood = (0..40_000).map(|number| match number % 2 {
        0 => frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]),
        _ => frame(PING, 0, 0, &[7; 8]),
    });
    let (_, has_ended) = hold(flood);
    assert!(has_ended, "the connection is open");
}
