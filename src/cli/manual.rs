//! `weir man` and `weir completions`: what a package installs so that a shell knows the commands, made from the commands themselves.
//!
//! Promises: a page for every command that `--help` shows, and none for those that it does not. Needs neither a configuration nor a
//! database.

use super::failure::Failure;
use super::output::Report;
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man as Page;
use serde::Serialize;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Write the manual, a page for each command
///
/// `weir.1` is the first one; `man weir-key-create` shows that of `weir key create`. Pages that are there are written anew.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Example:
  weir man /usr/local/share/man/man1")]
pub(super) struct Man {
    /// Where to; it is made where it is missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

/// Print what makes a shell complete the commands and their options
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  source <(weir completions bash)
  weir completions fish > ~/.config/fish/completions/weir.fish")]
pub(super) struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Serialize)]
struct Written<'a> {
    pages: &'a [String],
}

#[derive(Serialize)]
struct Script<'a> {
    shell: String,
    script: &'a str,
}

impl Man {
    /// Writes the pages of this command and of those below it.
    pub(super) fn run(self, commands: Command) -> Result<Report, Failure> {
        let refused = |path: &Path, error: io::Error| {
            Failure::new("not_written", format!("{} cannot be written: {error}", path.display()))
        };
        fs::create_dir_all(&self.directory).map_err(|error| refused(&self.directory, error))?;
        let mut names = Vec::new();
        for (name, page) in pages(commands).map_err(|error| refused(&self.directory, error))? {
            let path = self.directory.join(&name);
            fs::write(&path, page).map_err(|error| refused(&path, error))?;
            names.push(name);
        }
        let people = format!("{} pages in {}.", names.len(), self.directory.display());
        Report::new(&Written { pages: &names }, people)
    }
}

impl Completions {
    /// Prints the script for this command and those below it.
    pub(super) fn run(self, mut commands: Command) -> Result<Report, Failure> {
        let mut script = Vec::new();
        let name = commands.get_name().to_owned();
        clap_complete::generate(self.shell, &mut commands, name, &mut script);
        let script =
            String::from_utf8(script).map_err(|error| Failure::new("internal", error.to_string()))?;
        Report::new(&Script { shell: self.shell.to_string(), script: &script }, script.as_str())
    }
}

/// The name and the text of each page, the command's own first.
fn pages(root: Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let source = format!("{} {}", root.get_name(), root.get_version().unwrap_or_default());
    let mut root = root.disable_help_subcommand(true);
    root.build();
    let mut todo = vec![root];
    let mut pages = Vec::new();
    while let Some(command) = todo.pop() {
        todo.extend(command.get_subcommands().filter(|below| !below.is_hide_set()).cloned());
        let page = Page::new(with_examples(command)).source(&source).manual("Weir");
        pages.push((page.get_filename(), text(&page)?));
    }
    pages.sort();
    Ok(pages)
}

/// The command, with its examples as a page has them: below a heading, not behind a word.
fn with_examples(command: Command) -> Command {
    let after = command.get_after_long_help().map(ToString::to_string);
    let command = command.subcommand_help_heading("COMMANDS").subcommand_value_name("COMMAND");
    match after {
        Some(after) => {
            let examples = after.trim_start_matches("Examples:\n").trim_start_matches("Example:\n");
            command.after_long_help(examples.to_owned())
        }
        None => command,
    }
}

/// The page, with the name of manuals for what the library calls `EXTRA`, and its lines as they are typed.
fn text(page: &Page) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let Some((above, examples)) = text.split_once("\n.SH EXTRA\n") else { return Ok(text.into_bytes()) };
    let (examples, below) = match examples.find(".SH ") {
        Some(end) => examples.split_at(end),
        None => (examples, ""),
    };
    Ok(format!("{above}\n.SH EXAMPLES\n.nf\n{}\n.fi\n{below}", examples.trim_end()).into_bytes())
}
