#![no_main]
#[path = "../harness.rs"]
#[expect(dead_code, reason = "this target is one of them")]
mod harness;
libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::forwarded(data));
