//! The promises of `tests/fuzz/harness.rs` over its seeds, and over changes of them that shrink where one fails. Blind, where libFuzzer
//! sees what code a case reaches, but on any toolchain and in every run.

#[path = "../fuzz/harness.rs"]
mod harness;

use harness::TARGETS;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// How many changed seeds a target is given; `make fuzz` gives more where it has no libFuzzer.
const CASES: u32 = 10_000;

/// What is put into seeds: the words of the formats, and what readers differ on.
const TOKENS: &[&[u8]] = &[
    b"data: ",
    b"event:",
    b"\n\n",
    b"\r",
    b"\r\n",
    b"[DONE]",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"18446744073709551616",
    b"\"model\":\"x\",",
    b"\"Model\":1,",
    b"\"\\u006dodel\":1,",
    b"\"n\":0,",
    b"\"stream\":true,",
    b"\"stream_options\":{},",
    b"\"max_tokens\":1,",
    b"\\ud800",
    b"\"usage\":{\"prompt_tokens\":-1},",
    b"\"finish_reason\":\"stop\"",
    b"\"error\":{}",
    b"[[provider]]\n",
    b"[server]\n",
    b"name = \"\"\n",
    b"'''",
    b"#",
    b" = ",
    b"/33",
    b"weirjrnl",
];

/// A change of a seed.
#[derive(Clone, Debug)]
enum Change {
    Insert(Index, &'static [u8]),
    Set(Index, u8),
    Remove(Index, Index),
    Repeat(Index, Index, u8),
    /// Goes on as another seed does.
    Splice(Index, Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), select(TOKENS)).prop_map(|(at, token)| Change::Insert(at, token)),
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (at(), at()).prop_map(|(from, to)| Change::Remove(from, to)),
        1 => (at(), at(), 1..=40_u8).prop_map(|(from, to, times)| Change::Repeat(from, to, times)),
        1 => (at(), at(), at()).prop_map(|(at, seed, from)| Change::Splice(at, seed, from)),
    ]
}

/// The bytes that a target is given. What is left of them after shrinking is a seed: `printf 'THAT' > tests/fuzz/seeds/TARGET/NAME`.
#[derive(Clone)]
struct Case(Vec<u8>);

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// The longest piece that is taken out or repeated, in bytes.
const PIECE_BYTES_MAX: usize = 64;

impl Change {
    fn make(&self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let place = |at: &Index, bytes: &[u8]| at.index(bytes.len() + 1);
        match self {
            Change::Insert(at, token) => {
                let at = place(at, bytes);
                bytes.splice(at..at, token.iter().copied());
            }
            Change::Set(at, byte) => {
                let at = place(at, bytes);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Change::Remove(from, length) => {
                let from = place(from, bytes);
                let to = bytes.len().min(from + length.index(PIECE_BYTES_MAX));
                bytes.drain(from..to);
            }
            Change::Repeat(from, length, times) => {
                let from = place(from, bytes);
                let to = bytes.len().min(from + length.index(PIECE_BYTES_MAX));
                let piece = bytes[from..to].repeat(usize::from(*times));
                bytes.splice(to..to, piece);
            }
            Change::Splice(at, seed, from) => {
                let other = &seeds[seed.index(seeds.len())];
                bytes.truncate(place(at, bytes));
                bytes.extend_from_slice(&other[place(from, other)..]);
            }
        }
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder().join("seeds").join(target)).expect(target);
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{target} has seeds");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn what_must_hold_for_any_bytes_holds() {
    let cases =
        std::env::var("WEIR_FUZZ_CASES").map_or(CASES, |cases| cases.parse().expect("WEIR_FUZZ_CASES"));
    std::thread::scope(|scope| {
        for (name, run) in TARGETS {
            scope.spawn(move || {
                let seeds = seeds(name);
                seeds.iter().for_each(|seed| run(seed));
                let case = (any::<Index>(), vec(change(), 1..8)).prop_map(|(seed, changes)| {
                    let mut bytes = seeds[seed.index(seeds.len())].clone();
                    changes.iter().for_each(|change| change.make(&mut bytes, &seeds));
                    Case(bytes)
                });
                let mut runner =
                    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
                let held = runner.run(&case, |Case(bytes)| {
                    run(&bytes);
                    Ok(())
                });
                held.unwrap_or_else(|error| panic!("{name}: {error}"));
            });
        }
    });
}

#[test]
fn every_target_is_built_for_libfuzzer_too() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let file = fs::read_to_string(folder().join("targets").join(format!("{name}.rs"))).expect(name);
        assert!(file.contains(&format!("harness::{name}(data)")), "{file}");
        assert!(manifest.contains(&format!("[[bin]]\nname = \"{name}\"\n")), "{name} in {manifest}");
    }
    assert_eq!(fs::read_dir(folder().join("targets")).unwrap().count(), TARGETS.len());
}
