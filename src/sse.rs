//! Event streams (`text/event-stream`) in pieces, as the WHATWG HTML standard parses them.
//!
//! Promises: the same events at whatever bytes the stream is cut; work linear in the bytes; memory bounded by the largest event
//! allowed; an event that lies in one piece with its one `data` line is lent from that piece, not copied.
//! Refuses to know: sockets, what is in an event.

use memchr::{memchr, memchr2};

/// An event with at least one `data` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The value of the last `event` field; empty where there was none.
    pub name: &'a [u8],
    /// The `data` lines, joined by line feeds. May be empty.
    pub data: &'a [u8],
}

/// An event, or a line of one, is larger than the bound. The stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than the bound")]
pub struct TooLong;

/// The state between two pieces of a stream.
#[derive(Debug)]
pub struct Parser {
    max_event_bytes: usize,
    /// The line under way, without its end.
    line: Vec<u8>,
    /// The `data` lines of the event under way.
    data: Vec<u8>,
    name: Vec<u8>,
    has_data: bool,
    /// What is above was handed out and goes before the next line comes in.
    is_spent: bool,
    /// The last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// How much of the byte order mark has been seen; its length once the question is settled.
    mark: usize,
    is_too_long: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A buffer that one event made larger than this is given back: a stream can last long after its largest event.
const ROOM_KEPT_BYTES: usize = 16 * 1024;

impl Parser {
    /// A parser at the start of a stream. No line, and no `data` of an event, may be longer than `max_event_bytes`.
    pub fn new(max_event_bytes: usize) -> Self {
        Parser {
            max_event_bytes,
            line: Vec::new(),
            data: Vec::new(),
            name: Vec::new(),
            has_data: false,
            is_spent: false,
            after_return: false,
            mark: 0,
            is_too_long: false,
        }
    }

    /// The next event that ends within `piece`, which is shortened by what was read. `None` when all of it has been read; call
    /// again with the piece that follows.
    ///
    /// # Errors
    ///
    /// [`TooLong`], from then on at every call.
    pub fn next<'s, 'p: 's>(&'s mut self, piece: &mut &'p [u8]) -> Result<Option<Event<'s>>, TooLong> {
        self.drop_spent();
        self.skip_mark(piece)?;
        // A lone `data` line of this piece, not copied as long as the event may end within the piece.
        let mut lent: Option<&'p [u8]> = None;
        loop {
            if self.after_return && !piece.is_empty() {
                self.after_return = false;
                *piece = piece.strip_prefix(b"\n").unwrap_or(piece);
            }
            let Some(end) = memchr2(b'\n', b'\r', piece) else { break };
            let (line, rest) = piece.split_at(end);
            self.after_return = rest.first() == Some(&b'\r');
            *piece = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.bound(line.len())?;
                if line.is_empty() {
                    if self.has_data || lent.is_some() {
                        self.is_spent = true;
                        return Ok(Some(Event { name: &self.name, data: lent.unwrap_or(&self.data) }));
                    }
                    self.name.clear();
                } else if let Some(value) = self.field(line)? {
                    match lent.take() {
                        None if !self.has_data => lent = Some(value),
                        first => {
                            self.keep(first)?;
                            self.keep(Some(value))?;
                        }
                    }
                }
            } else {
                self.bound(self.line.len().saturating_add(line.len()))?;
                self.keep(lent.take())?;
                self.line.extend_from_slice(line);
                self.end_kept_line()?;
            }
        }
        self.keep(lent)?;
        self.bound(self.line.len().saturating_add(piece.len()))?;
        self.line.extend_from_slice(piece);
        *piece = &[];
        Ok(None)
    }

    /// The event that the end of the stream left without its empty line. The standard discards it; whoever takes it must see
    /// for himself that it is whole.
    pub fn finish(&mut self) -> Option<Event<'_>> {
        self.drop_spent();
        if self.mark < BYTE_ORDER_MARK.len() {
            self.line.extend_from_slice(&BYTE_ORDER_MARK[..self.mark]);
        }
        if self.is_too_long || self.end_kept_line().is_err() {
            return None;
        }
        self.is_spent = true;
        self.has_data.then_some(Event { name: &self.name, data: &self.data })
    }

    fn drop_spent(&mut self) {
        if self.is_spent {
            self.is_spent = false;
            self.has_data = false;
            clear(&mut self.data);
            clear(&mut self.name);
        }
    }

    fn skip_mark(&mut self, piece: &mut &[u8]) -> Result<(), TooLong> {
        if self.is_too_long {
            return Err(TooLong);
        }
        while self.mark < BYTE_ORDER_MARK.len() {
            let Some((first, rest)) = piece.split_first() else { return Ok(()) };
            if *first != BYTE_ORDER_MARK[self.mark] {
                // Half a mark is no mark: it begins the first line.
                self.line.extend_from_slice(&BYTE_ORDER_MARK[..self.mark]);
                self.mark = BYTE_ORDER_MARK.len();
                return Ok(());
            }
            self.mark += 1;
            *piece = rest;
        }
        Ok(())
    }

    /// Ends the line that was kept from earlier pieces.
    fn end_kept_line(&mut self) -> Result<(), TooLong> {
        let line = std::mem::take(&mut self.line);
        let value = self.field(&line)?;
        let kept = self.keep(value);
        // The room is used again.
        self.line = line;
        clear(&mut self.line);
        kept
    }

    /// Reads a line that is not empty. The value, if it is a `data` line.
    fn field<'l>(&mut self, line: &'l [u8]) -> Result<Option<&'l [u8]>, TooLong> {
        if let Some(value) = line.strip_prefix(b"data:") {
            return Ok(Some(value.strip_prefix(b" ").unwrap_or(value)));
        }
        let colon = memchr(b':', line);
        let (name, value) = line.split_at(colon.unwrap_or(line.len()));
        let value = value.strip_prefix(b":").unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            // Without a colon: a line that is empty.
            b"data" => return Ok(Some(value)),
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            // A comment, a field for reconnecting, or one that nobody knows.
            _ => {}
        }
        Ok(None)
    }

    /// Takes a `data` line into the event under way.
    fn keep(&mut self, value: Option<&[u8]>) -> Result<(), TooLong> {
        let Some(value) = value else { return Ok(()) };
        let joint = usize::from(self.has_data);
        self.bound(self.data.len().saturating_add(joint).saturating_add(value.len()))?;
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        self.data.extend_from_slice(value);
        Ok(())
    }

    fn bound(&mut self, bytes: usize) -> Result<(), TooLong> {
        self.is_too_long |= bytes > self.max_event_bytes;
        if self.is_too_long { Err(TooLong) } else { Ok(()) }
    }
}

fn clear(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(ROOM_KEPT_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Owned = (String, String);

    fn read(pieces: &[&[u8]], max: usize) -> (Vec<Owned>, Option<Owned>, bool) {
        let mut parser = Parser::new(max);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let owned = |event: Event<'_>| (text(event.name), text(event.data));
        let mut events = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            loop {
                match parser.next(&mut rest) {
                    Ok(Some(event)) => events.push(owned(event)),
                    Ok(None) => break,
                    Err(TooLong) => return (events, None, true),
                }
            }
        }
        let left = parser.finish().map(owned);
        (events, left, false)
    }

    fn events(text: &str) -> Vec<Owned> {
        read(&[text.as_bytes()], 1_000).0
    }

    fn data(text: &str) -> Vec<String> {
        events(text).into_iter().map(|(_, data)| data).collect()
    }

    #[test]
    fn events_are_those_of_the_standard() {
        for end in ["\n", "\r", "\r\n"] {
            let text = |lines: &[&str]| lines.iter().map(|line| format!("{line}{end}")).collect::<String>();
            assert_eq!(data(&text(&["data: a", "", "data:b", "", "data:  c", ""])), ["a", "b", " c"]);
            assert_eq!(data(&text(&["data: a", "data", "data: b", ""])), ["a\n\nb"]);
            assert_eq!(
                data(&text(&[": comment", "", "retry: 3", "", "id: 7", "", "database: x", ""])),
                [""; 0]
            );
            assert_eq!(data(&text(&["data", "", "data:", "", "", ""])), ["", ""]);
            let named = text(&[
                "event: one",
                "event: two",
                "data: a",
                "",
                "data: b",
                "",
                "event: x",
                "",
                "data: c",
                "",
            ]);
            let want = [("two", "a"), ("", "b"), ("", "c")].map(|(n, d)| (n.to_owned(), d.to_owned()));
            assert_eq!(events(&named), want);
        }
        assert_eq!(data("\u{feff}data: a\n\n\u{feff}data: b\n\n"), ["a"]);
        assert_eq!(data("data: a\n\r\ndata: b\r\n\n"), ["a", "b"]);
    }

    #[test]
    fn what_the_end_leaves_open_is_told_apart() {
        let (events, left, _) = read(&[b"data: a\n\ndata: b\ndata: c"], 100);
        assert_eq!(events.len(), 1);
        assert_eq!(left.unwrap().1, "b\nc");
        assert_eq!(read(&[b"data: a\n\n: b"], 100).1, None);
        assert_eq!(read(&[b"\xef\xbb"], 100).1, None);
    }

    #[test]
    fn an_event_above_the_bound_is_refused_however_it_comes() {
        let long = format!("data: a\n\ndata: {}\n\n", "x".repeat(100));
        let lines = "data: a\n\n".to_owned() + &"data: 0123456789\n".repeat(10);
        for text in [
            &long,
            &lines,
            &format!("data: a\n\n{}", "x".repeat(101)),
            &format!("data: a\n\n: {}\n", "x".repeat(101)),
        ] {
            let bytes = text.as_bytes();
            for size in [1, 7, bytes.len()] {
                let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
                let (events, left, too_long) = read(&pieces, 100);
                assert!(too_long && left.is_none() && events.len() == 1, "{text:?} by {size}");
            }
        }
        assert!(!read(&["data: ".as_bytes(), "x".repeat(90).as_bytes(), b"\n\n"], 100).2);
    }

    #[test]
    fn a_whole_event_is_lent_and_not_copied() {
        let piece = b"data: hello\n\ndata: again\n\n";
        let mut parser = Parser::new(100);
        let mut rest = &piece[..];
        let event = parser.next(&mut rest).unwrap().unwrap();
        assert!(std::ptr::eq(event.data.as_ptr(), piece[6..].as_ptr()));
    }

    proptest! {
        #[test]
        fn every_cut_gives_the_same_events(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "data", "data: ", "event: ", ":", "\n", "\r", "\r\n", "\n\n", "x", " ", "\u{feff}", "id: 1", "川", "ping",
                ]),
                0..40,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
            mark in any::<bool>(),
        ) {
            let text = if mark { "\u{feff}".to_owned() } else { String::new() } + &parts.concat();
            let bytes = text.as_bytes();
            let whole = read(&[bytes], 30);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&read(&single, 30), &whole);
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.sort_unstable();
            let mut pieces = Vec::new();
            let mut rest = bytes;
            for cut in at.iter().rev() {
                let (head, tail) = rest.split_at(*cut);
                pieces.push(tail);
                rest = head;
            }
            pieces.push(rest);
            pieces.reverse();
            prop_assert_eq!(&read(&pieces, 30), &whole);
        }
    }
}
