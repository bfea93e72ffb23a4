//! Changes to a body, by offset: all else goes on byte for byte as it came.

use std::borrow::Cow;
use std::ops::Range;

/// Puts `text` in the place of the bytes at `at`; an empty range inserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Where, in bytes of the body.
    pub at: Range<usize>,
    /// What.
    pub text: Cow<'static, str>,
}

/// The body with the edits, in one pass. Edits must lie within the body and must not overlap; one that does not is made at the
/// nearest place behind the edits before it.
pub fn splice(body: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut ordered = Cow::Borrowed(edits);
    if !edits.is_sorted_by_key(|edit| edit.at.start) {
        ordered.to_mut().sort_by_key(|edit| edit.at.start);
    }
    let mut out = Vec::with_capacity(body.len() + edits.iter().map(|edit| edit.text.len()).sum::<usize>());
    let mut done = 0;
    for edit in &*ordered {
        let start = edit.at.start.clamp(done, body.len());
        out.extend_from_slice(&body[done..start]);
        out.extend_from_slice(edit.text.as_bytes());
        done = edit.at.end.clamp(start, body.len());
    }
    out.extend_from_slice(&body[done..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(at: Range<usize>, text: &str) -> Edit {
        Edit { at, text: text.to_owned().into() }
    }

    #[test]
    fn edits_apply_in_any_order_and_leave_the_rest() {
        let edits = [edit(8..9, "JJ"), edit(1..1, "__"), edit(2..4, "")];
        assert_eq!(splice(b"0123456789", &edits), b"0__14567JJ9");
        assert_eq!(splice(b"0123", &[]), b"0123");
        assert_eq!(splice(b"", &[edit(0..0, "a")]), b"a");
    }

    #[test]
    fn an_edit_that_lies_outside_loses_nothing_of_the_body() {
        assert_eq!(splice(b"0123", &[edit(2..9, "a"), edit(7..9, "b")]), b"01ab");
        assert_eq!(splice(b"0123", &[edit(0..3, "a"), edit(1..2, "b")]), b"ab3");
    }
}
