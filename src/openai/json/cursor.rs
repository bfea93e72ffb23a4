//! A place in a JSON text that only goes forward, and checks what it passes.

use super::plain::plain_bytes;
use super::{Fault, Watch};
use std::ops::Range;

/// A place in a text, and the objects and arrays around it.
pub(super) struct Cursor<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    depth_max: usize,
    /// Which of the levels around are objects, the innermost lowest; as many as fit.
    objects: u64,
    /// The levels further out, by the word.
    outer: Vec<u64>,
}

const LEVELS_A_WORD: usize = 64;

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a str, depth_max: usize) -> Self {
        let bytes = text.as_bytes();
        let mut cursor = Cursor { text, bytes, at: 0, depth: 0, depth_max, objects: 0, outer: Vec::new() };
        cursor.space();
        cursor
    }

    /// Passes over one value that begins here; its text.
    #[inline]
    pub(super) fn value(&mut self, key: &[u8], watch: &mut impl Watch) -> Result<&'a str, Fault> {
        let (start, depth) = (self.at, self.depth);
        let mut key = key;
        loop {
            let goes_in = match self.peek().ok_or(Fault::Syntax)? {
                b'"' => {
                    let (at, _) = self.string()?;
                    watch.string(key, &self.bytes[at]);
                    false
                }
                open @ (b'{' | b'[') => {
                    self.open(open == b'{')?;
                    watch.open(key);
                    !self.take(if open == b'{' { b'}' } else { b']' }) || self.close()
                }
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.literal(b"true")?,
                b'f' => self.literal(b"false")?,
                b'n' => self.literal(b"null")?,
                _ => return Err(Fault::Syntax),
            };
            if !goes_in && (self.depth == depth || !self.leave(depth)?) {
                return Ok(&self.text[start..self.at]);
            }
            key = b"";
            if self.is_in_object() {
                let (at, is_plain) = self.key()?;
                key = &self.bytes[at];
                watch.key(key, is_plain);
            }
        }
    }

    /// Behind a value: closes what ends here, down to a depth. Whether another value follows before that.
    fn leave(&mut self, depth: usize) -> Result<bool, Fault> {
        while self.depth > depth {
            let end = if self.is_in_object() { b'}' } else { b']' };
            if self.goes_on(end)? {
                return Ok(true);
            }
            self.close();
        }
        Ok(false)
    }

    /// Behind a value: whether there is a comma, and not the end.
    pub(super) fn goes_on(&mut self, end: u8) -> Result<bool, Fault> {
        self.space();
        let next = self.peek();
        self.at += 1;
        match next {
            Some(b',') => {
                self.space();
                Ok(true)
            }
            Some(next) if next == end => Ok(false),
            Some(_) | None => Err(Fault::Syntax),
        }
    }

    /// A key and its colon; stops where the value begins. Where the inside of the key is, and whether it has no escapes.
    pub(super) fn key(&mut self) -> Result<(Range<usize>, bool), Fault> {
        if self.peek() != Some(b'"') {
            return Err(Fault::Syntax);
        }
        let key = self.string()?;
        self.space();
        if !self.take(b':') {
            return Err(Fault::Syntax);
        }
        self.space();
        Ok(key)
    }

    /// Where the inside of the string is that begins here, and whether it has no escapes.
    pub(super) fn string(&mut self) -> Result<(Range<usize>, bool), Fault> {
        let start = self.at + 1;
        let mut is_plain = true;
        self.at = start;
        loop {
            self.at += plain_bytes(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok((start..self.at - 1, is_plain));
                }
                Some(b'\\') => {
                    is_plain = false;
                    self.at += match self.bytes.get(self.at + 1) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
                        Some(b'u') if self.has_hex_at(self.at + 2) => 6,
                        Some(_) | None => return Err(Fault::Syntax),
                    };
                }
                Some(_) | None => return Err(Fault::Syntax),
            }
        }
    }

    fn has_hex_at(&self, at: usize) -> bool {
        self.bytes.get(at..at + 4).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    }

    /// Passes over a number. False, for nothing is within it.
    fn number(&mut self) -> Result<bool, Fault> {
        self.at += usize::from(self.peek() == Some(b'-'));
        match self.peek() {
            // No digit follows a leading zero: what comes next fails on one.
            Some(b'0') => self.at += 1,
            Some(_) | None => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            self.digits()?;
        }
        Ok(false)
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start { Err(Fault::Syntax) } else { Ok(()) }
    }

    /// Passes over a literal. False, for nothing is within it.
    fn literal(&mut self, literal: &[u8]) -> Result<bool, Fault> {
        if !self.bytes[self.at..].starts_with(literal) {
            return Err(Fault::Syntax);
        }
        self.at += literal.len();
        Ok(false)
    }

    /// Goes into the object or array that begins here.
    pub(super) fn open(&mut self, is_object: bool) -> Result<(), Fault> {
        if self.depth >= self.depth_max {
            return Err(Fault::TooDeep);
        }
        if self.depth > 0 && self.depth.is_multiple_of(LEVELS_A_WORD) {
            self.outer.push(self.objects);
        }
        self.objects = self.objects << 1 | u64::from(is_object);
        self.depth += 1;
        self.at += 1;
        self.space();
        Ok(())
    }

    /// Leaves the innermost object or array, whose end was taken. False, for nothing more is within it.
    fn close(&mut self) -> bool {
        self.depth -= 1;
        self.objects >>= 1;
        if self.depth > 0 && self.depth.is_multiple_of(LEVELS_A_WORD) {
            self.objects = self.outer.pop().unwrap_or_default();
        }
        false
    }

    fn is_in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// Takes this byte if it comes next.
    pub(super) fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    #[inline]
    pub(super) fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(super) fn end(&mut self) -> Result<(), Fault> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(Fault::Syntax) }
    }
}
