//! What an operator is told of each kind of mistake in a configuration, word for word.
//!
//! `mistakes/*.told` are the texts. A start, a reload and `weir check` read a configuration by one function, which is asked here; that
//! they pass on what it says is in the tests of each.

use crate::support::cli::Cli;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use weir::config::Loaded;

/// What is said of a configuration of this text, in a directory where some secrets are.
fn told(text: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("weir.toml"), text).unwrap();
    fs::write(at("empty"), "\n").unwrap();
    fs::write(at("short"), "too short").unwrap();
    fs::write(at("binary"), [0xff, 0xfe]).unwrap();
    fs::write(at("lines"), "one\ntwo\n").unwrap();
    fs::write(at("long"), vec![b'x'; 70_000]).unwrap();
    symlink("loop", at("loop")).unwrap();
    let made = rcgen::generate_simple_self_signed(["api.example".to_owned()]).unwrap();
    fs::write(at("chain.pem"), made.cert.pem()).unwrap();
    fs::write(at("chain.key"), made.signing_key.serialize_pem()).unwrap();
    fs::write(at("other.key"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let here = directory.path().display().to_string() + "/";
    // Files stand at absolute places, so that no test depends on where it runs.
    let placed = String::from_utf8_lossy(text).replace("HERE/", &here);
    if std::str::from_utf8(text).is_ok() {
        fs::write(at("weir.toml"), &placed).unwrap();
    }
    let said = told_of(&at("weir.toml")).replace(&here, "HERE/").replace("HERE/weir.toml", "weir.toml");
    said.replace(&tables(), "there are: TABLES")
}

/// The tables that there are, as they are told: the next part brings its own, which changes no message.
fn tables() -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "nothing = 1\n").unwrap();
    let said = told_of(file.path());
    let list =
        said.lines().next().and_then(|line| line.strip_prefix("unknown key `nothing`; ")).expect("a list");
    assert!(list.starts_with("there are: server, ") && list.ends_with(", provider, model, tier"), "{list}");
    list.to_owned()
}

fn told_of(path: &Path) -> String {
    match Loaded::read(Some(path)) {
        Ok(_) => "nothing".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The cases of a file: what is wrong, the configuration, and all that is said of it.
fn cases(file: &str) -> Vec<(&str, &str, &str)> {
    file.split("=== ")
        .skip(1)
        .map(|case| {
            let (name, rest) = case.split_once('\n').unwrap();
            let (text, told) = rest.split_once("---\n").unwrap_or_else(|| panic!("{name} has no ---"));
            (name, text, told.trim_end())
        })
        .collect()
}

/// Carets under a place that has another length here are as long as there.
#[track_caller]
fn hold(file: &str) {
    let mut wrong = Vec::new();
    for (name, text, expected) in cases(file) {
        let said = told(text.as_bytes());
        if evened(&said) != evened(expected) {
            wrong.push(format!("=== {name}\n{text}---\n{said}\n"));
        }
    }
    assert!(wrong.is_empty(), "{} are told otherwise, namely:\n{}", wrong.len(), wrong.join("\n"));
}

/// A text whose carets do not tell how long the name of the directory was.
fn evened(told: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in told.lines() {
        let is_moved = lines.last().is_some_and(|above| above.contains("HERE/"));
        lines.push(if is_moved { line.trim_end_matches('^').to_owned() } else { line.to_owned() });
    }
    lines.join("\n")
}

#[test]
fn each_mistake_of_the_document_is_told_word_for_word() {
    hold(include_str!("mistakes/document.told"));
}

#[test]
fn each_mistake_of_the_server_is_told_word_for_word() {
    hold(include_str!("mistakes/server.told"));
}

#[test]
fn each_mistake_of_providers_models_and_tiers_is_told_word_for_word() {
    hold(include_str!("mistakes/routes.told"));
}

#[test]
fn each_secret_that_cannot_be_had_is_told_word_for_word() {
    hold(include_str!("mistakes/secrets.told"));
}

#[test]
fn each_file_that_cannot_be_used_is_told_word_for_word() {
    hold(include_str!("mistakes/files.told"));
}

#[test]
fn what_may_be_a_secret_is_not_shown() {
    let all = [include_str!("mistakes/secrets.told"), include_str!("mistakes/files.told")];
    let said = all.into_iter().flat_map(cases).map(|(_, text, _)| told(text.as_bytes()));
    for said in said {
        assert!(!said.contains("sk-proj") && !said.contains("0123456789abcdef"), "{said}");
    }
}

#[test]
fn of_very_many_mistakes_the_first_fifty_are_told() {
    let text: String = (0..60).map(|at| format!("key_{at} = 1\n")).collect();
    let said = told(text.as_bytes());
    assert_eq!(said.matches("unknown key").count(), 50);
    assert!(said.ends_with("\n\nand 10 more problems in weir.toml"), "{said}");
}

#[test]
fn a_file_that_cannot_be_read_is_told_word_for_word() {
    let directory = tempfile::tempdir().unwrap();
    let shown = |path: &Path| path.display().to_string();
    let none = directory.path().join("none.toml");
    assert_eq!(
        told_of(&none),
        format!("the configuration {} cannot be read: No such file or directory (os error 2)", shown(&none))
    );
    assert_eq!(
        told_of(directory.path()),
        format!("the configuration {} cannot be read: Is a directory (os error 21)", shown(directory.path()))
    );
    let file = directory.path().join("weir.toml");
    symlink("weir.toml", &file).unwrap();
    assert_eq!(
        told_of(&file),
        format!(
            "the configuration {} cannot be read: Too many levels of symbolic links (os error 40)",
            shown(&file)
        )
    );
    assert_eq!(
        told(b"[server]\nthreads = 1\n# caf\xe9\n"),
        "the configuration weir.toml is not UTF-8 text: byte 0xe9 in line 3"
    );
    assert_eq!(
        told(&vec![b'#'; (4 << 20) + 1]),
        "the configuration weir.toml is longer than 4194304 bytes, the most that is read"
    );
}

#[test]
fn the_command_says_it_with_exit_status_3_in_text_and_in_json_and_a_start_says_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let text = "[server]\nthreads = \"many\"\n\n[[provider]]\nname = \"p\"\ndialect = \"openai\"\nbase_url = \"https://a/v1\"\n\
                api_key = \"env:WEIR_NO_SUCH_VARIABLE\"\n";
    fs::write(directory.path().join("weir.toml"), text).unwrap();
    let expected = "`threads`: a whole number is expected, not a string\n --> weir.toml:2:11\n  |\n\
                    2 | threads = \"many\"\n  |           ^^^^^^\n\n\
                    `api_key`: the environment variable WEIR_NO_SUCH_VARIABLE is not set\n --> weir.toml:8:11\n  |\n\
                    8 | api_key = \"env:WEIR_NO_SUCH_VARIABLE\"\n  |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^\n";
    let cli = Cli::new(directory.path(), Some(Path::new("weir.toml")));
    for command in ["check", "serve"] {
        let output = cli.run(&[command]);
        assert_eq!(output.status.code(), Some(3), "{command}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("error: {expected}"), "{command}");
        let error = cli.fails(3, &[command]);
        assert_eq!(
            (error["message"].as_str(), error["code"].as_str()),
            (Some(expected.trim_end()), Some("configuration"))
        );
    }
    // The books can be looked at without the keys of providers.
    fs::write(directory.path().join("weir.toml"), text.replace("\"many\"", "1")).unwrap();
    cli.json(&["price", "list"]);
    cli.fails(3, &["check"]);
}
