//! What packages need of the binary: the manual, and what makes shells complete the commands, both made from the commands; and the
//! question that a container's health check asks.

use crate::support::cli::{Cli, shown};
use crate::support::ports::Port;
use crate::support::{Gateway, Upstream};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The command line in an empty directory. A configuration that is not there shows that none is asked for.
fn bare(directory: &Path) -> Cli {
    Cli::new(directory, Some(&directory.join("no-such-configuration.toml")))
}

/// Every command with its words, `["key", "create"]`, as `--help` shows them, level by level.
fn commands(cli: &Cli) -> Vec<Vec<String>> {
    let (mut todo, mut found) = (vec![Vec::<String>::new()], Vec::new());
    while let Some(words) = todo.pop() {
        let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
        arguments.push("-h");
        let help = cli.run(&arguments);
        assert!(help.status.success(), "{arguments:?}: {}", shown(&help));
        let help = String::from_utf8(help.stdout).unwrap();
        let list = help.split_once("\nCommands:\n").map_or("", |(_, list)| list);
        for line in list.lines().take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                todo.push([words.as_slice(), &[name.to_owned()]].concat());
            }
        }
        found.push(words);
    }
    assert!(found.len() > 15, "the commands are found: {found:?}");
    found
}

#[test]
fn the_manual_has_a_page_for_every_command_and_its_options() {
    let directory = tempfile::tempdir().unwrap();
    let cli = bare(directory.path());
    let man = directory.path().join("share/man1");
    let written = cli.json(&["man", man.to_str().unwrap()]);
    let written: BTreeSet<&str> =
        written["pages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut wanted = BTreeSet::new();
    for words in commands(&cli) {
        let name = [&["weir".to_owned()], words.as_slice()].concat().join("-");
        let page = fs::read_to_string(man.join(format!("{name}.1"))).expect(&name);
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION"] {
            assert!(page.contains(&format!(".SH {section}\n")), "{name} has {section}");
        }
        assert!(page.contains(r"\-\-json"), "{name} has its options: {page}");
        wanted.insert(format!("{name}.1"));
    }
    assert_eq!(written, wanted.iter().map(String::as_str).collect());
    assert_eq!(fs::read_dir(&man).unwrap().count(), wanted.len(), "and nothing else");
}

#[test]
fn a_manual_that_cannot_be_written_says_where() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("file"), "").unwrap();
    let error = bare(directory.path()).fails(1, &["man", "file/man1"]);
    assert_eq!(error["code"], "not_written");
    assert!(error["message"].as_str().unwrap().contains("file/man1"), "{error}");
}

/// What bash completes `typed` to, with the script sourced.
fn completed(script: &Path, typed: &[&str]) -> BTreeSet<String> {
    let words = typed.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
    let last = typed.len() - 1;
    let (current, before) = (typed[last], typed[last - 1]);
    let ask = format!(
        "source {}; COMP_WORDS=({words}); COMP_CWORD={last}; _weir weir '{current}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display()
    );
    let answer = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
    assert!(answer.status.success(), "{}", shown(&answer));
    String::from_utf8(answer.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_completes_commands_and_options() {
    let directory = tempfile::tempdir().unwrap();
    let cli = bare(directory.path());
    let script = directory.path().join("weir.bash");
    let made = cli.run(&["completions", "bash"]);
    assert!(made.status.success(), "{}", shown(&made));
    fs::write(&script, &made.stdout).unwrap();
    for words in commands(&cli).iter().filter(|words| !words.is_empty()) {
        let (name, above) = words.split_last().unwrap();
        let mut typed: Vec<&str> = std::iter::once("weir").chain(above.iter().map(String::as_str)).collect();
        typed.push(&name[..1]);
        let offered = completed(&script, &typed);
        assert!(offered.contains(name), "{typed:?} completes to {name}: {offered:?}");
    }
    assert!(completed(&script, &["weir", "key", "create", "--acc"]).contains("--account"));
    for (shell, mark) in [("zsh", "#compdef weir"), ("fish", "complete -c weir")] {
        let script = cli.json(&["completions", shell]);
        assert_eq!(script["shell"], shell);
        assert!(script["script"].as_str().unwrap().contains(mark), "{shell}");
    }
    assert_eq!(cli.fails(2, &["completions", "cobol"])["code"], "usage");
}

#[test]
fn a_health_check_tells_a_ready_server_from_none() {
    let upstream = Upstream::start();
    let gateway = Gateway::before(&upstream);
    let ready = gateway.cli.run(&["ready"]);
    assert!(ready.status.success(), "{}", shown(&ready));

    let (directory, port) = (tempfile::tempdir().unwrap(), Port::take());
    let config = directory.path().join("weir.toml");
    fs::write(&config, format!("[admin]\nlisten = \"{}\"\n", port.address())).unwrap();
    let error = Cli::new(directory.path(), Some(&config)).fails(1, &["ready"]);
    assert_eq!(error["code"], "not_ready");
    assert!(error["message"].as_str().unwrap().contains(&port.address().to_string()), "{error}");
}
