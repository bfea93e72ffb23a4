//! What operators see of the process: its metrics, its health and its log.
//!
//! Promises: nothing here can slow a request down or change one. Refuses to know: where numbers come from.

pub mod admin;
mod json;
mod lines;
pub mod log;
