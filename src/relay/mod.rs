//! The relay: carries one request to a provider and its answer back.
//!
//! Promises: the body is read once, whole and bounded; every attempt sends it again; nothing of an answer has reached
//! the client while another attempt, or an error in our words, is still possible.
//! Refuses to know: who pays, which provider is tried next, what an answer means.

pub mod adapter;
pub mod body;
pub mod head;
pub mod peer;
pub mod resolve;
