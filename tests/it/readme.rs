//! What the README tells to type works: its shell blocks are run in order, as one session, but for the commands listed here
//! with the reason why not.

use crate::support::{signal, wait_for};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Commands that are not run, by how they begin, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("make run", "the same as `weir serve --demo` below, which is run"),
    ("make test", "this is it"),
    ("make lint", "part of `make test`, which runs this"),
    ("make soak", "takes an hour"),
    ("make bench", "takes minutes, and measures rather than tests"),
    ("make fuzz", "takes minutes; `make test` does it for seconds"),
    ("make deny", "part of `make lint`"),
    ("make deb", "takes minutes; `package` makes the package from the binary under test"),
    ("git clone", "the clone is here"),
    ("cargo build", "the binary under test is built"),
    ("cargo install", "the binary under test is built"),
    ("cargo run", "the same as `weir`, which is run"),
    ("cd ", "the session runs in a directory of its own"),
    ("pip install", "clients are installed and used by the end-to-end test"),
    ("npm install", "clients are installed and used by the end-to-end test"),
    (
        "sudo ",
        "changes the machine; the package's parts and the commands behind `sudo -u weir` have tests of their own",
    ),
    ("sudoedit ", "asks a person"),
    ("systemctl ", "there is no systemd to ask, nor an installed service"),
    ("journalctl ", "there is no systemd to ask, nor an installed service"),
    ("curl https://", "needs the network"),
    (
        "podman ",
        "needs base images and a release build; `package` does what is between, with the binary under test",
    ),
    ("export OPENAI_API_KEY", "the session has no account at a real provider"),
    ("weir restore", "the gateway of the session runs; the tests of `crash::restored` do it"),
    ("weir --config weir.toml serve", "its addresses are those of the gateway that runs already"),
];

/// Where a gateway without a configuration listens for operators.
const ADMIN: &str = "127.0.0.1:9090";

/// The commands of the fenced `sh` blocks, continued lines joined, comments and empty lines left out.
fn commands(markdown: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in markdown.lines() {
        if let Some(fence) = line.trim_start().strip_prefix("```") {
            inside = !inside && matches!(fence.trim(), "sh" | "bash" | "console" | "shell");
            continue;
        }
        if !inside {
            continue;
        }
        let line = line.strip_prefix("$ ").unwrap_or(line);
        open.push_str(line.strip_suffix('\\').unwrap_or(line));
        let quotes_open = open.matches('\'').count() % 2 == 1;
        if line.ends_with('\\') || quotes_open {
            open.push(if line.ends_with('\\') { ' ' } else { '\n' });
            continue;
        }
        let command = std::mem::take(&mut open);
        if !command.trim().is_empty() && !command.trim_start().starts_with('#') {
            commands.push(command.trim().to_owned());
        }
    }
    commands
}

fn reason_not_to_run(command: &str) -> Option<&'static str> {
    NOT_RUN.iter().find(|(start, _)| command.starts_with(start)).map(|(_, reason)| *reason)
}

/// `weir serve` as the README shows it, in the background.
fn serve(command: &str, directory: &Path) -> Child {
    let file = |name: &str| fs::File::create(directory.join(name)).unwrap();
    let mut shell = shell(directory);
    shell.args(["-c", &format!("exec {command}")]).stdout(file("serve.out")).stderr(file("serve.err"));
    let child = shell.spawn().unwrap();
    let address = ADMIN.parse().unwrap();
    wait_for("the gateway of the README to be ready", Duration::from_secs(20), || {
        crate::support::http::is_ready(address).then_some(())
    });
    child
}

/// A shell in the session's directory in which `weir` is the binary under test.
fn shell(directory: &Path) -> Command {
    let bin = Path::new(env!("CARGO_BIN_EXE_weir")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var_os("PATH").unwrap().to_string_lossy());
    let mut shell = Command::new("bash");
    shell.current_dir(directory).env("PATH", path).stdin(Stdio::null());
    shell
}

#[test]
fn what_the_readme_tells_to_type_works() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("README.md");
    let commands = commands(&readme);
    assert!(!commands.is_empty(), "the README has shell blocks");
    let session = tempfile::tempdir().unwrap();
    let link = |name: &str| {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        std::os::unix::fs::symlink(from, session.path().join(name)).unwrap();
    };
    link("conf");

    let demo = serve("weir serve --demo", session.path());
    let mut said = String::new();
    wait_for("the demo's key", Duration::from_secs(10), || {
        said = fs::read_to_string(session.path().join("serve.out")).unwrap();
        said.contains("sk-weir-").then_some(())
    });
    let start = said.find("sk-weir-").unwrap();
    let key: String = said[start..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();

    let mut script = format!("set -euo pipefail\nKEY={key}\n");
    for command in &commands {
        if let Some(reason) = reason_not_to_run(command) {
            eprintln!("not run: {command}: {reason}");
        } else if command.starts_with("weir serve") {
            eprintln!("runs already: {command}");
        } else {
            // The key that was printed is the one thing that a reader fills in.
            let command = command.replace("sk-weir-...", &key);
            script.push_str(&format!("printf '+ %s\\n' {} >&2\n{command}\n", quoted(&command)));
        }
    }
    let file = session.path().join("session.sh");
    fs::write(&file, script).unwrap();
    let output =
        shell(session.path()).arg("-c").arg(format!("timeout 60 bash {}", file.display())).output().unwrap();
    // Here is the one server of the suite that has no configuration, since its addresses are fixed: a hang-up does it no harm.
    signal("HUP", demo.id());
    wait_for("the hang-up to be told", Duration::from_secs(5), || {
        let log = fs::read_to_string(session.path().join("serve.err")).unwrap();
        log.contains("`weir serve` was started without --config").then_some(())
    });
    assert!(crate::support::http::is_ready(ADMIN.parse().unwrap()), "it serves on");
    let stopped = stop(demo);
    let text = crate::support::cli::shown(&output);
    assert!(output.status.success(), "the README's session fails: {text}");
    assert!(!text.contains("\"error\""), "the README's session shows an error: {text}");
    assert!(stopped, "the gateway of the README ends well");
}

fn stop(mut child: Child) -> bool {
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    told.is_ok_and(|status| status.success()) && child.wait().is_ok_and(|status| status.success())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[test]
fn commands_are_read_as_a_shell_would() {
    let text = "x\n```sh\n# a comment\n$ one --flag\ntwo \\\n  more\ncurl -d '{\n \"a\": 1}'\n```\n```toml\nthree\n```\n";
    assert_eq!(commands(text), ["one --flag", "two    more", "curl -d '{\n \"a\": 1}'"]);
}
