//! How far a string goes on without anything to look at: a word at a time, and in long texts by vectors.

/// The bytes of a step in long texts.
const WIDE: usize = 32;

/// How many bytes come before the first one that a string cannot simply hold: a quote, a backslash, or a control character.
#[inline]
pub(super) fn plain_bytes(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    // Most strings end within these.
    for _ in 0..4 {
        let Some((word, after)) = rest.split_first_chunk() else { break };
        let specials = specials(u64::from_le_bytes(*word));
        if specials != 0 {
            return bytes.len() - rest.len() + (specials.trailing_zeros() / 8) as usize;
        }
        rest = after;
    }
    bytes.len() - rest.len() + plain_bytes_of_many(rest)
}

#[inline(never)]
fn plain_bytes_of_many(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some((wide, after)) = rest.split_first_chunk::<WIDE>() {
        // Without a branch for each byte, so that it is done with vectors.
        if wide.iter().fold(0, |found, byte| found | u8::from(is_special(*byte))) != 0 {
            break;
        }
        rest = after;
    }
    while let Some((word, after)) = rest.split_first_chunk() {
        let specials = specials(u64::from_le_bytes(*word));
        if specials != 0 {
            return bytes.len() - rest.len() + (specials.trailing_zeros() / 8) as usize;
        }
        rest = after;
    }
    let tail = rest.iter().position(|byte| is_special(*byte)).unwrap_or(rest.len());
    bytes.len() - rest.len() + tail
}

fn is_special(byte: u8) -> bool {
    (byte == b'"') | (byte == b'\\') | (byte < 0x20)
}

/// The highest bit of each byte of a word that is special; of those above the first such byte, perhaps more.
fn specials(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let quotes = zeros(word ^ (ONES * u64::from(b'"')));
    let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    (quotes | backslashes | controls) & (ONES << 7)
}
