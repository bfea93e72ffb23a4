//! The `weir` command in a directory of its own, as an operator runs it.

use super::upstream::PROVIDER_KEY;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The variable from which the gateway under test takes its credential at providers.
pub(crate) const PROVIDER_KEY_VARIABLE: &str = "WEIR_TEST_PROVIDER_KEY";

/// The command, run in one directory, with one configuration or none.
#[derive(Clone, Debug)]
pub(crate) struct Cli {
    directory: PathBuf,
    config: Option<PathBuf>,
    /// Certificates that providers are trusted by, in place of the machine's.
    trusted: Option<PathBuf>,
    program: PathBuf,
    variables: Vec<(String, String)>,
}

impl Cli {
    /// Runs in this directory, with `--config` where there is a file.
    pub(crate) fn new(directory: &Path, config: Option<&Path>) -> Cli {
        Cli {
            directory: directory.to_owned(),
            config: config.map(Path::to_owned),
            trusted: None,
            program: env!("CARGO_BIN_EXE_weir").into(),
            variables: Vec::new(),
        }
    }

    /// Trusts providers with the certificates in this file, and no others.
    pub(crate) fn trust(&mut self, certificates: &Path) {
        self.trusted = Some(certificates.to_owned());
    }

    /// Runs the program that is at this path from now on.
    pub(crate) fn program(&mut self, path: &Path) {
        self.program = path.to_owned();
    }

    /// Sets a variable of the environment.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The command with these arguments, not yet started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        self.prepare(&mut command, arguments);
        command
    }

    /// Runs to the end, which comes within thirty seconds or counts as a failure (exit 124).
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "30", env!("CARGO_BIN_EXE_weir")]);
        self.prepare(&mut command, arguments);
        command.output().expect("the weir binary runs")
    }

    /// Runs with `--json` and hands its answer on. Fails where the command does.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "weir {arguments:?}: {}", shown(&output));
        one_value(arguments, &output)
    }

    /// Runs with `--json`, expecting this exit status, and hands the `error` object on.
    #[track_caller]
    pub(crate) fn fails(&self, exit: i32, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(exit), "weir {arguments:?}: {}", shown(&output));
        let answer = one_value(arguments, &output);
        let error = answer["error"].clone();
        for key in ["message", "code"] {
            assert!(error[key].as_str().is_some_and(|text| !text.is_empty()), "weir {arguments:?}: {answer}");
        }
        error
    }

    fn prepare(&self, command: &mut Command, arguments: &[&str]) {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.args(arguments).current_dir(&self.directory).env(PROVIDER_KEY_VARIABLE, PROVIDER_KEY);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if let Some(certificates) = &self.trusted {
            command.env("SSL_CERT_FILE", certificates);
        }
    }
}

/// The one JSON value that a command printed.
#[track_caller]
fn one_value(arguments: &[&str], output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("weir {arguments:?} prints one JSON value: {error}: {}", shown(output))
    })
}

/// What a command said, for messages.
pub(crate) fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}
