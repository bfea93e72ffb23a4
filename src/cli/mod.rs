//! The command line: what is typed, carried out against the configuration and the books.
//!
//! Promises: exit status 0 done, 1 failed, 2 wrong arguments, 3 wrong configuration; with `--json` one JSON value on standard output,
//! always; every command creates the database when it is missing. Refuses to know: how the books are kept, and how requests are served.
//!
//! A file for each noun has its arguments, what is done with them, and what is said of it.

mod account;
mod again;
mod backup;
mod check;
mod credit;
mod doctor;
mod failure;
mod key;
mod ledger;
mod manual;
mod migrate;
mod output;
mod price;
mod ready;
mod scrape;
mod serve;
mod table;
mod top;
mod upgrade;
mod usage;
mod values;

use crate::clock::Clock;
use crate::config::{Config, Loaded};
use crate::server;
use crate::store::{Opened, Store};
use again::Again;
use clap::{CommandFactory, Parser, Subcommand};
use failure::Failure;
use output::{Output, Report};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const BEGIN: &str = "\
How to begin, with nothing configured:
  weir serve --demo                             a built-in provider, a funded account, a key that is printed
  weir usage --account demo@weir.invalid        what its requests used and cost

With your own providers (conf/weir.toml is the commented reference):
  weir --config weir.toml check
  weir --config weir.toml price import conf/prices.toml
  weir --config weir.toml account create --email ada@example.com
  weir --config weir.toml credit add --account ada@example.com --usd 10.00 --reason \"invoice 1\"
  weir --config weir.toml key create --account ada@example.com --name laptop
  weir --config weir.toml serve

Accounts, credit, keys and prices take effect in a running server within a second.
Exit status: 0 done, 1 failed, 2 wrong arguments, 3 wrong configuration.";

/// Above the options that every command takes.
const EVERYWHERE: &str = "Options of every command";

/// An AI API gateway with prepaid credit: one OpenAI-compatible base URL in front of many providers
///
/// Weir checks keys, takes credit before a request is sent, relays it, counts every token that passes, and bills exactly what the
/// provider counted. The same program serves and keeps the books.
#[derive(Debug, Parser)]
#[command(name = "weir", version, after_long_help = BEGIN, after_help = "`weir --help` shows how to begin.")]
struct Cli {
    /// The configuration; without it, everything is in ./weir-data on SQLite
    #[arg(long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    config: Option<PathBuf>,
    /// Print one JSON value, of success or of failure, on standard output
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Upgrade(upgrade::Upgrade),
    Restore(backup::Restore),
    Doctor(doctor::Doctor),
    Ready(ready::Ready),
    Top(top::Top),
    #[command(flatten)]
    OnBooks(OnBooks),
    Man(manual::Man),
    Completions(manual::Completions),
}

/// The commands that read or write the books, and end.
#[derive(Debug, Subcommand)]
enum OnBooks {
    Migrate(migrate::Migrate),
    #[command(subcommand)]
    Account(account::Account),
    #[command(subcommand)]
    Key(key::Key),
    #[command(subcommand)]
    Credit(credit::Credit),
    #[command(subcommand)]
    Price(price::Price),
    Usage(usage::UsageQuery),
    #[command(subcommand)]
    Ledger(ledger::Ledger),
    Backup(backup::Backup),
}

/// What a command works with.
struct Books<'a> {
    config: &'a Config,
    /// For what is told to be typed next.
    again: Again<'a>,
    store: Store,
    clock: Clock,
}

/// Carries out the command of these arguments, the first of which is the program's name, and says what came of it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // A part of an upgrade, and nothing to type.
    if let Some(started) = server::start_successor(&arguments) {
        return if started.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match Cli::try_parse_from(&arguments) {
        Ok(cli) => {
            let output = Output::new(cli.json);
            output.say(&execute(cli, &arguments))
        }
        Err(error) => Output::new(asks_for_json(&arguments)).arguments(&error),
    }
}

fn execute(cli: Cli, arguments: &[OsString]) -> Result<Report, Failure> {
    match cli.command {
        Command::Serve(serve) => serve.run(cli.config, arguments),
        Command::Upgrade(upgrade) => upgrade.run(&Config::load(cli.config.as_deref())?),
        Command::Restore(restore) => restore.run(&Config::load(cli.config.as_deref())?),
        Command::Doctor(doctor) => doctor.run(cli.config.as_deref()),
        Command::Ready(ready) => ready.run(&Config::load(cli.config.as_deref())?),
        Command::Top(top) => top.run(&Config::load(cli.config.as_deref())?, cli.json),
        Command::Man(man) => man.run(Cli::command()),
        Command::Completions(completions) => completions.run(Cli::command()),
        Command::Check(check) => {
            let loaded = Loaded::read(cli.config.as_deref())?;
            on_books(&loaded.config, Again(cli.config.as_deref()), async |books| {
                check.run(&loaded, books).await
            })
        }
        Command::OnBooks(command) => {
            let config = Config::load(cli.config.as_deref())?;
            on_books(&config, Again(cli.config.as_deref()), async |books| command.run(books).await)
        }
    }
}

/// Opens the books, works on them, and closes them, on this thread.
fn on_books(
    config: &Config,
    again: Again<'_>,
    work: impl AsyncFnOnce(&Books<'_>) -> Result<Report, Failure>,
) -> Result<Report, Failure> {
    block_on(async {
        let store = Store::open(&config.store.url, Opened::ByCommand).await?;
        let books = Books { config, again, store, clock: Clock::system() };
        let result = work(&books).await;
        books.store.close().await;
        result
    })?
}

/// Runs it to its end on this thread.
fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new("system", error.to_string()))?;
    Ok(runtime.block_on(work))
}

impl OnBooks {
    async fn run(self, books: &Books<'_>) -> Result<Report, Failure> {
        match self {
            OnBooks::Migrate(migrate) => migrate.run(books),
            OnBooks::Account(account) => account.run(books).await,
            OnBooks::Key(key) => key.run(books).await,
            OnBooks::Credit(credit) => credit.run(books).await,
            OnBooks::Price(price) => price.run(books).await,
            OnBooks::Usage(usage) => usage.run(books).await,
            OnBooks::Ledger(ledger) => ledger.run(books).await,
            OnBooks::Backup(backup) => backup.run(books).await,
        }
    }
}

/// Whether JSON is asked for by arguments that could not be understood.
fn asks_for_json(arguments: &[OsString]) -> bool {
    arguments.iter().skip(1).take_while(|argument| *argument != "--").any(|argument| argument == "--json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_and_json_stand_anywhere() {
        for line in [
            "weir --config f --json ledger audit",
            "weir ledger --json audit --config f",
            "weir ledger audit --config=f --json",
        ] {
            let cli = parse(line).unwrap();
            assert!(cli.json && cli.config.is_some(), "{line}");
        }
        assert!(!parse("weir ledger audit").unwrap().json);
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(asks_for_json(&words("weir nonsense --json")));
        assert!(!asks_for_json(&words("weir nonsense -- --json")));
    }

    #[test]
    fn every_command_of_the_contract_is_understood() {
        let id = "019a0000-0000-7000-8000-000000000000";
        for line in [
            "serve".to_owned(),
            "serve --demo".to_owned(),
            "serve --take-over".to_owned(),
            "upgrade".to_owned(),
            "check".to_owned(),
            "migrate".to_owned(),
            "account create --email a@b --tier t".to_owned(),
            "account list --limit 5 --after a@b".to_owned(),
            "account show a@b".to_owned(),
            "account suspend a@b --reason r".to_owned(),
            "account resume a@b".to_owned(),
            "key create --account a@b --name n --models a,b --expires 2030-01-01T00:00:00Z --spend-limit-usd 5".to_owned(),
            "key list --account a@b".to_owned(),
            format!("key revoke {id}"),
            "credit add --account a@b --usd 10.00 --reason r --idempotency-key k".to_owned(),
            format!("credit refund --account a@b --lot {id} --force --idempotency-key k"),
            "price import f --effective 2030-01-01T00:00:00Z --force".to_owned(),
            "price list".to_owned(),
            "usage --account a@b --since 2030-01-01T00:00:00Z --limit 5".to_owned(),
            "ledger audit".to_owned(),
            "backup d".to_owned(),
            "doctor".to_owned(),
            "restore d --accept-loss".to_owned(),
            "ready".to_owned(),
            "top".to_owned(),
            "man d".to_owned(),
            "completions bash".to_owned(),
        ] {
            if let Err(error) = parse(&format!("weir {line}")) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn help_tells_how_to_begin_and_every_command_has_a_line_of_its_own() {
        let help = parse("weir --help").unwrap_err();
        assert_eq!(help.kind(), ErrorKind::DisplayHelp);
        assert!(help.to_string().contains("weir serve --demo"));
        let mut todo = vec![Cli::command()];
        while let Some(command) = todo.pop() {
            assert!(command.get_about().is_some(), "{} has no line in the help", command.get_name());
            let silent = command.get_arguments().find(|argument| argument.get_help().is_none());
            assert!(silent.is_none(), "{silent:?} of {} has no help", command.get_name());
            todo.extend(command.get_subcommands().cloned());
        }
    }
}
