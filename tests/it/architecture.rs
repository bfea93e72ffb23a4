//! The layers of `src/ARCHITECTURE.md`, held: who may import whom, who may name which crate, how long a file may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Layer of each top-level module. Stages have layers of their own, in the order of a request.
const LAYERS: &[(&str, u32)] = &[
    ("money", 0),
    ("ids", 0),
    ("secret", 0),
    ("usage", 0),
    ("refusal", 0),
    ("clock", 0),
    ("spend", 0),
    ("sse", 10),
    ("tokens", 10),
    ("document", 10),
    ("proxy_protocol", 10),
    ("openai", 10),
    ("metrics", 10),
    ("telemetry", 11),
    ("store", 10),
    ("price", 20),
    ("provider", 20),
    ("feed", 20),
    ("ledger", 30),
    ("authenticate", 41),
    ("admit", 42),
    ("route", 43),
    ("relay", 44),
    ("meter", 45),
    ("settle", 46),
    ("proxy", 50),
    ("control", 50),
    ("demo", 50),
    ("config", 60),
    ("cli", 60),
    ("server", 60),
    ("main", 60),
];

/// A word that only these modules may use, as code.
const KEPT_IN: &[(&str, &[&str])] = &[
    ("pingora", &["proxy", "server", "relay", "route", "admit"]),
    ("prometheus", &["metrics"]),
    ("opentelemetry", &["telemetry"]),
    ("sqlx", &["store"]),
    ("maxminddb", &["admit"]),
    ("rustls", &["server", "relay"]),
    ("serde_json::Value", &["openai", "provider"]),
    ("crate::config", &["cli", "server", "config"]),
];

const FILE_LINES_MAX: usize = 500;

#[test]
fn a_module_imports_only_from_lower_layers() {
    let layers: BTreeMap<&str, u32> = LAYERS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, module) in sources() {
        let Some(own) = layers.get(module.as_str()) else {
            wrong.push(format!("{} has no layer", path.display()));
            continue;
        };
        for imported in crate_paths(&code(&path)) {
            let Some(layer) = layers.get(imported.as_str()) else { continue };
            if imported != module && (layer > own || (layer == own && *own >= 41 && *own < 60)) {
                wrong.push(format!("{} imports crate::{imported}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_foreign_crate_is_spoken_to_in_one_place() {
    let mut wrong = Vec::new();
    for (path, module) in sources() {
        let code = code(&path);
        for (word, allowed) in KEPT_IN {
            if !allowed.contains(&module.as_str()) && uses(&code, word) {
                wrong.push(format!("{} uses {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let all = sources().into_iter().map(|(path, _)| path).chain(rust_files(&root().join("tests")));
    let long: Vec<String> = all
        .map(|path| (fs::read_to_string(&path).unwrap().lines().count(), path))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, path)| format!("{} has {lines} lines", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn a_providers_name_stands_in_its_own_file_alone() {
    // "OpenAI" itself is the name of the API that the gateway speaks to clients, too.
    let names = ["anthropic", "gemini", "mistral", "groq", "bedrock", "cohere"];
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|(_, module)| module != "provider")
        .flat_map(|(path, _)| {
            let code = code(&path).to_lowercase();
            names
                .iter()
                .filter(move |name| code.contains(**name))
                .map(move |name| format!("{} names {name}", path.display()))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file with the top-level module that it belongs to.
fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    rust_files(&src)
        .into_iter()
        .filter(|path| path.file_name().unwrap() != "lib.rs")
        .map(|path| {
            let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
            let module = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
            (path, module)
        })
        .collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The file without comments and without its unit tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// The modules named in `crate::module` and `crate::{module, ..}` paths.
fn crate_paths(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            modules.extend(group_heads(group));
        } else {
            modules.push(head(rest));
        }
    }
    modules
}

/// The first words of a `{a::b, c::{d, e}}` group, after its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut heads) = (0_usize, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => {
                heads.push(head(group[start..at].trim()));
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(head(group[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Whether the code names the crate or path, as a word of its own.
fn uses(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '"');
        // `pingora` also stands for `pingora_limits` and its like.
        let ends = after.is_none_or(|c| c == ':' || c == '_' || !(c.is_alphanumeric() || c == '"'));
        let is_path = word.contains("::") || code[at + word.len()..].starts_with("::") || after == Some('_');
        starts && ends && is_path
    })
}

#[test]
fn the_checks_above_see_what_they_look_for() {
    assert_eq!(crate_paths("use crate::{a::b, c::{d, e}};\ncrate::f::g();"), ["a", "c", "f"]);
    assert!(uses("use sqlx::query;", "sqlx"));
    assert!(uses("use pingora_limits::rate;", "pingora"));
    assert!(uses("let v: serde_json::Value = x;", "serde_json::Value"));
    assert!(!uses("fn my_sqlx() {}", "sqlx"));
}
